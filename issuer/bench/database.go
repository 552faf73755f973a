package main

import (
	"context"
	"errors"

	"github.com/jackc/pgx/v5"
)

// databaseSize returns the size of a PostgreSQL database on disk. It leaves out the
// log (WAL), which the whole server shares.
func databaseSize(ctx context.Context, url string) (n int64, err error) {
	c, err := pgx.Connect(ctx, url)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, c.Close(ctx)) }()
	err = c.QueryRow(ctx, "SELECT pg_database_size(current_database())").Scan(&n)
	return n, err
}
