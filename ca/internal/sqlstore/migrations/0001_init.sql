-- The shape of a mayfly store, shared by both drivers. Words that begin with
-- @ are the driver's: @int is a 64-bit integer (SQLite: INTEGER, which makes a
-- primary key the row's own address), @bytes a byte string, and @clustered
-- asks for a table that is its own index. Times are Unix microseconds.

CREATE TABLE meta (
    id               @int PRIMARY KEY CHECK (id = 1),
    root_fingerprint TEXT NOT NULL,
    trust_domain     TEXT NOT NULL,
    created_at       @int NOT NULL,
    cursor_key       @bytes NOT NULL
);

-- One row, read first and written last by every commit, under the ledger lock.
CREATE TABLE state (
    id             @int PRIMARY KEY CHECK (id = 1),
    floor          @int NOT NULL,
    blocks_version @int NOT NULL, -- grows when blocks change
    revision       @int NOT NULL, -- grows when a certificate is revoked or the floor rises
    head_seq       @int NOT NULL, -- of the newest event
    head_hash      @bytes NOT NULL, -- of the newest link
    head_time      @int NOT NULL, -- the latest time of any event
    disorder       @int NOT NULL  -- how far behind head_time an event ever was
);

-- id is IssuedAt in microseconds, times 1024, plus a number that sets apart
-- what was issued within one microsecond: so the order of ids is the order of
-- issuing, and every index ends in it.
CREATE TABLE certificates (
    id            @int PRIMARY KEY,
    serial        @bytes NOT NULL,
    profile       TEXT NOT NULL,
    provider      TEXT NOT NULL,
    identity      TEXT NOT NULL,
    rule          TEXT NOT NULL,
    run           TEXT NOT NULL,
    engines       TEXT NOT NULL, -- JSON array
    repository    TEXT NOT NULL,
    repository_id TEXT NOT NULL,
    run_id        TEXT NOT NULL,
    actor         TEXT NOT NULL,
    token_issuer  TEXT NOT NULL,
    token_id      TEXT NOT NULL,
    single_use    @int NOT NULL,
    token_iat     @int NOT NULL,
    spki          @bytes NOT NULL,
    aki           @bytes NOT NULL,
    not_before    @int NOT NULL,
    not_after     @int NOT NULL,
    event_seq     @int NOT NULL -- of the event that tells of it
);
CREATE UNIQUE INDEX certificates_serial ON certificates (serial);
CREATE INDEX certificates_identity ON certificates (identity, id);
CREATE INDEX certificates_repository ON certificates (repository, id) WHERE repository <> '';
CREATE INDEX certificates_repository_id ON certificates (repository_id, id) WHERE repository_id <> '';
CREATE INDEX certificates_run_id ON certificates (run_id, id) WHERE run_id <> '';
CREATE INDEX certificates_actor ON certificates (actor, id) WHERE actor <> '';
-- Servers are few among many clients; a list of clients needs no index.
CREATE INDEX certificates_servers ON certificates (id) WHERE profile <> 'client';

-- What is read one at a time, kept apart so that lists stay narrow.
CREATE TABLE bodies (
    id        @int PRIMARY KEY,
    claims    @bytes NOT NULL,
    tbs       @bytes NOT NULL,
    signature @bytes NOT NULL
) @bodies;

-- Single-use tokens, by a hash of issuer and id: the issuer's name in every
-- row would be most of the table.
CREATE TABLE tokens (
    token   @bytes PRIMARY KEY,
    cert_id @int NOT NULL
) @clustered;

CREATE TABLE revocations (
    seq        @int PRIMARY KEY,
    cert_id    @int NOT NULL UNIQUE,
    serial     @bytes NOT NULL,
    aki        @bytes NOT NULL,
    not_after  @int NOT NULL,
    revoked_at @int NOT NULL,
    revoked_by TEXT NOT NULL,
    reason     TEXT NOT NULL
);
CREATE INDEX revocations_not_after ON revocations (not_after);

CREATE TABLE blocks (
    id         TEXT PRIMARY KEY,
    created_at @int NOT NULL,
    until      @int NOT NULL,
    match      TEXT NOT NULL, -- JSON
    reason     TEXT NOT NULL,
    created_by TEXT NOT NULL
);

-- One row: the newest set of CRLs, and what it was made from.
CREATE TABLE crl_state (
    id        @int PRIMARY KEY CHECK (id = 1),
    number    @int NOT NULL,
    signed_at @int NOT NULL,
    revision  @int NOT NULL
);
CREATE TABLE crls (
    number @int NOT NULL,
    aki    @bytes NOT NULL,
    der    @bytes NOT NULL,
    PRIMARY KEY (number, aki)
);

CREATE TABLE events (
    seq        @int PRIMARY KEY,
    time       @int NOT NULL,
    type       TEXT NOT NULL,
    actor      TEXT NOT NULL,
    serial     TEXT NOT NULL,
    identity   TEXT NOT NULL,
    repository TEXT NOT NULL,
    run_id     TEXT NOT NULL,
    rule       TEXT NOT NULL,
    reason     TEXT NOT NULL,
    count      @int NOT NULL,
    detail     TEXT NOT NULL -- JSON object, or empty
);
CREATE INDEX events_type ON events (type, seq);
-- The event of an issuance is found by its certificate.
CREATE INDEX events_serial ON events (serial, seq) WHERE serial <> '' AND type <> 'issued';
CREATE INDEX events_repository ON events (repository, seq) WHERE repository <> '';
CREATE INDEX events_run_id ON events (run_id, seq) WHERE run_id <> '';

-- One row for each commit that added events: the hash chain.
CREATE TABLE links (
    last_seq  @int PRIMARY KEY,
    first_seq @int NOT NULL,
    newest    @int NOT NULL, -- the latest time of any event up to here
    hash      @bytes NOT NULL
);
CREATE INDEX links_newest ON links (newest, last_seq);

-- Where the chain begins after pruning: the link before the first one kept.
CREATE TABLE checkpoints (
    seq       @int PRIMARY KEY,
    hash      @bytes NOT NULL,
    pruned_at @int NOT NULL
);

CREATE TABLE hours (
    hour   @int PRIMARY KEY,
    issued @int NOT NULL,
    denied @int NOT NULL
);

CREATE TABLE sessions (
    id          TEXT PRIMARY KEY,
    engine      TEXT NOT NULL,
    machine     TEXT NOT NULL,
    serial      TEXT NOT NULL,
    run         TEXT NOT NULL,
    run_id      TEXT NOT NULL,
    repository  TEXT NOT NULL,
    identity    TEXT NOT NULL,
    remote_addr TEXT NOT NULL,
    reason      TEXT NOT NULL,
    opened_at   @int NOT NULL,
    seen_at     @int NOT NULL,
    closed_at   @int NOT NULL, -- 0 while open
    bytes_in    @int NOT NULL,
    bytes_out   @int NOT NULL
);
CREATE INDEX sessions_opened ON sessions (opened_at, id);
CREATE INDEX sessions_engine ON sessions (engine, opened_at, id);
CREATE INDEX sessions_serial ON sessions (serial, opened_at, id);
CREATE INDEX sessions_run_id ON sessions (run_id, opened_at, id);
CREATE INDEX sessions_repository ON sessions (repository, opened_at, id);
CREATE INDEX sessions_live ON sessions (opened_at, id) WHERE closed_at = 0;

CREATE TABLE logins (
    id         TEXT PRIMARY KEY,
    provider   TEXT NOT NULL,
    subject    TEXT NOT NULL,
    claims     @bytes NOT NULL,
    created_at @int NOT NULL,
    expires_at @int NOT NULL
);
CREATE INDEX logins_expires ON logins (expires_at);
