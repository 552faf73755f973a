-- What the sidecar of each machine last reported of itself. It is left out of
-- backups: a minute later there is a newer one.
CREATE TABLE statuses (
    engine                TEXT NOT NULL,
    machine               TEXT NOT NULL,
    state                 TEXT NOT NULL,
    version               TEXT NOT NULL,
    engine_version        TEXT NOT NULL,
    engine_socket         TEXT NOT NULL,
    certificate_not_after @int NOT NULL,
    feed_at               @int NOT NULL,
    seen_at               @int NOT NULL,
    PRIMARY KEY (engine, machine)
);
CREATE INDEX statuses_seen ON statuses (seen_at);

-- The sessions that an engine cut, of which there are few among many.
CREATE INDEX sessions_cut ON sessions (opened_at, id, closed_at) WHERE reason IN ('revoked', 'expired', 'feed_stale', 'max_age');

-- The live sessions of each machine are counted along the index alone.
DROP INDEX sessions_live;
CREATE INDEX sessions_live ON sessions (seen_at, opened_at, id, engine, machine) WHERE closed_at = 0;
