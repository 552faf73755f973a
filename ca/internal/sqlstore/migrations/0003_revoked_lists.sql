-- Whether a certificate is revoked stands in its row, so that the lists of a
-- status go along an index, whatever part of the certificates has it. It says
-- again what revocations says, and is left out of backups. Indexes keep the
-- revoked and the others apart, each newest last.
ALTER TABLE certificates ADD COLUMN revoked SMALLINT NOT NULL DEFAULT 0;
UPDATE certificates SET revoked = 1 WHERE id IN (SELECT cert_id FROM revocations);

DROP INDEX certificates_identity;
DROP INDEX certificates_repository;
DROP INDEX certificates_repository_id;
DROP INDEX certificates_run_id;
DROP INDEX certificates_actor;
DROP INDEX certificates_servers;
CREATE INDEX certificates_identity ON certificates (identity, revoked, id);
CREATE INDEX certificates_repository ON certificates (repository, revoked, id) WHERE repository <> '';
CREATE INDEX certificates_repository_id ON certificates (repository_id, revoked, id) WHERE repository_id <> '';
CREATE INDEX certificates_run_id ON certificates (run_id, revoked, id) WHERE run_id <> '';
CREATE INDEX certificates_actor ON certificates (actor, revoked, id) WHERE actor <> '';
-- Servers are few among many clients; a list of clients needs no index.
CREATE INDEX certificates_servers ON certificates (revoked, id) WHERE profile <> 'client';
-- Written so that no list by a value may use it: PostgreSQL would, and look
-- through all that is revoked for a value that it believes is half of that.
CREATE INDEX certificates_revoked ON certificates (id) WHERE revoked + 0 = 1;

-- A repository's issuances, most of its events, and the others apart likewise.
DROP INDEX events_repository;
CREATE INDEX events_repository ON events (repository, (CASE WHEN type = 'issued' THEN 1 ELSE 0 END), seq) WHERE repository <> '';

-- The live sessions are found by when they were last seen: those whose machine
-- went without a word stay open.
DROP INDEX sessions_live;
CREATE INDEX sessions_live ON sessions (seen_at, opened_at, id) WHERE closed_at = 0;
