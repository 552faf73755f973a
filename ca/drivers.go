package ca

import (
	"context"
	"crypto/x509"
	"errors"
)

// CreateStore makes an empty store where none is: dsn is the path of a SQLite
// file or a postgres:// URL. ErrExists if there is one.
func CreateStore(ctx context.Context, dsn string, m Meta) error {
	return errors.New("create store: no driver for " + dsn)
}

// OpenStore opens the store of root's authority. It never makes one: ErrMissing,
// ErrOtherRoot.
func OpenStore(ctx context.Context, dsn string, root *x509.Certificate) (Store, error) {
	return nil, errors.New("open store: no driver")
}
