-- The MAC of a login over its other columns, under the issuer's state key: a row
-- that was written or changed by hand is no login. Earlier logins have none, and
-- so have ended.
ALTER TABLE logins ADD COLUMN mac @bytes NOT NULL DEFAULT '';
