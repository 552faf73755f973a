-- One repository's events of one kind, such as its denials, among the many of
-- both. Issuances are most events of every repository that has any: these are
-- found along events_repository, and cost nothing here.
CREATE INDEX events_repository_type ON events (repository, type, seq) WHERE repository <> '' AND type <> 'issued';
