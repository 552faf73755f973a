package sqlstore

import (
	"context"
	"errors"
	"fmt"
)

// Version is the newest version of the tables.
const Version = version

// CreateVersion makes the tables of an earlier version, without a row.
func CreateVersion(ctx context.Context, dsn string, version int64) error {
	connect := func(ctx context.Context, dsn string) (database, error) { return connectSQLite(ctx, dsn) }
	if IsPostgres(dsn) {
		connect = connectPostgres
	}
	d, err := connect(ctx, dsn)
	if err != nil {
		return err
	}
	return errors.Join(migrate(ctx, d, version), d.close())
}

// ParseRow parses a row of a backup.
func ParseRow(name string, line []byte) ([]any, error) {
	for _, t := range backupTables {
		if t.name == name {
			return t.parse(line)
		}
	}
	return nil, fmt.Errorf("unknown table %q", name)
}
