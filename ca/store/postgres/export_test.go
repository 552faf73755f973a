package postgres

import (
	"context"
	"database/sql"
	"errors"

	"github.com/pressly/goose/v3"

	"github.com/mayfly-ca/mayfly/ca/store/internal/ledger"
)

// Shape makes a database of a version of the shape, without a row.
func Shape(ctx context.Context, url string, version int64) error {
	db, err := sql.Open("pgx", url)
	if err != nil {
		return err
	}
	return errors.Join(ledger.MigrateTo(ctx, goose.DialectPostgres, db, dialect, version), db.Close())
}
