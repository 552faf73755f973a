package issuer

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"time"

	"github.com/mayfly-ca/mayfly/ca"
	"github.com/mayfly-ca/mayfly/ca/store"
	"github.com/mayfly-ca/mayfly/client/wire"
)

// maxPEMBytes bounds a certificate or CRL file.
const maxPEMBytes = 1 << 20

// CreateStoreEnv names a variable that lets serve create a missing store, where no
// other command can run. Its value is an RFC 3339 time at most an hour ahead. After
// that time, serve does not replace a store that vanished by an empty one, which would
// know no replay and no revocation.
const CreateStoreEnv = "MAYFLY_CREATE_STORE_UNTIL"

// maxCreateAhead bounds CreateStoreEnv.
const maxCreateAhead = time.Hour

// RootCertificate reads the root certificate named in c.
func (c *Config) RootCertificate() (*x509.Certificate, error) {
	data, err := readBounded(c.CA.Root, maxPEMBytes)
	if err != nil {
		return nil, fmt.Errorf("ca.root: %w", err)
	}
	block, _ := pem.Decode(data)
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, fmt.Errorf("ca.root: %s holds no certificate in PEM", c.CA.Root)
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("ca.root: %w", err)
	}
	return cert, nil
}

// OpenStore opens the store named in c. It never creates one.
func OpenStore(ctx context.Context, c Config) (store.Store, error) {
	dsn, err := c.StoreDSN()
	if err != nil {
		return nil, err
	}
	root, err := c.RootCertificate()
	if err != nil {
		return nil, err
	}
	key, err := ca.LoadStateKey(c.StateKey)
	if err != nil {
		return nil, wire.WithHint(err, "make a first one, which logs every admin out, and give it to each issuer of this store: openssl rand -hex 32 >state.key")
	}
	st, err := ca.OpenStore(ctx, dsn, root, key)
	if err != nil {
		return nil, storeRemedy(err)
	}
	return st, nil
}

// storeRemedy adds a hint to err.
func storeRemedy(err error) error {
	switch {
	case errors.Is(err, store.ErrMissing):
		first := "run `mayfly-issuer store create` with this configuration"
		if os.Getenv("FLY_MACHINE_ID") != "" { // where only serve can run
			first = "set " + CreateStoreEnv + " to a time within the next hour (RFC 3339)"
		}
		return wire.WithHint(err, "if this is the first start, "+first+"; if the store was lost, put a backup back with `mayfly-issuer restore`")
	case errors.Is(err, store.ErrOtherRoot):
		return wire.WithHint(err, "in issuer.yaml, correct store or ca.root: they belong to two CAs")
	}
	if errors.Is(err, store.ErrNewer) {
		return wire.WithHint(err, "run that version of mayfly-issuer, or a later one")
	}
	return fmt.Errorf("store: %w", err)
}

// CreateStore creates the store named in c, for the root named in c.
func CreateStore(ctx context.Context, c Config) error {
	dsn, err := c.StoreDSN()
	if err != nil {
		return err
	}
	root, err := readBounded(c.CA.Root, maxPEMBytes)
	if err != nil {
		return fmt.Errorf("ca.root: %w", err)
	}
	intermediate, err := readBounded(c.CA.Intermediate, maxPEMBytes)
	if err != nil {
		return fmt.Errorf("ca.intermediate: %w", err)
	}
	meta, err := ca.MetaOf(root, intermediate)
	if err != nil {
		return err
	}
	return ca.CreateStore(ctx, dsn, meta)
}

// openStore is OpenStore for serve. It requires a state key, and creates the store
// where CreateStoreEnv allows it.
func openStore(ctx context.Context, c Config, dsn string) (store.Store, error) {
	switch {
	case len(c.StateKey) > 0:
	case ca.IsPostgres(dsn):
		return nil, wire.WithHint(errors.New("state_key is missing: without it, who can write to the database could make an admin's login"),
			"make a key, and give every issuer of this database the same one:\nopenssl rand -hex 32 >state.key && chmod 600 state.key\nand in issuer.yaml: state_key: [state.key]")
	default:
		c.Logger.WarnContext(ctx, "no state_key: a restart logs every admin out", "hint", "openssl rand -hex 32 >state.key, and state_key: [state.key]")
	}
	st, err := OpenStore(ctx, c)
	if !errors.Is(err, store.ErrMissing) {
		return st, err
	}
	until := os.Getenv(CreateStoreEnv)
	if until == "" {
		return nil, err
	}
	t, perr := time.Parse(time.RFC3339, until)
	now := time.Now()
	switch {
	case perr != nil:
		return nil, wire.WithHint(fmt.Errorf("%w, and %s=%q is not a time", err, CreateStoreEnv, until), "write it as in RFC 3339: "+now.Add(maxCreateAhead/2).UTC().Format(time.RFC3339))
	case t.After(now.Add(maxCreateAhead)):
		return nil, wire.WithHint(fmt.Errorf("%w, and %s is more than an hour ahead", err, CreateStoreEnv), "set it to a time within the next hour")
	case !t.After(now):
		return nil, wire.WithHint(fmt.Errorf("%w, and %s is past", err, CreateStoreEnv), "set it again only if this really is the first start; a lost store comes back with `mayfly-issuer restore`")
	}
	c.Logger.WarnContext(ctx, "store is missing and "+CreateStoreEnv+" allows one to be made", "until", until, "postgres", ca.IsPostgres(dsn))
	if err := CreateStore(ctx, c); err != nil {
		return nil, fmt.Errorf("create store: %w", err)
	}
	return OpenStore(ctx, c)
}

// OpenAuthority opens the authority of c over st. The caller still owns st.
func OpenAuthority(ctx context.Context, c Config, st store.Store) (*ca.Authority, error) {
	u, err := c.publicURL()
	if err != nil {
		return nil, err
	}
	cfg := ca.Config{Key: c.CA.Key, Store: st, PublicURL: u.String(), Logger: c.Logger}
	read := func(key, path string, into *[]byte) {
		data, rerr := readBounded(path, maxPEMBytes)
		if rerr != nil && err == nil {
			err = fmt.Errorf("%s: %w", key, rerr)
		}
		*into = data
	}
	read("ca.root", c.CA.Root, &cfg.Root)
	read("ca.root_crl", c.CA.RootCRL, &cfg.RootCRL)
	read("ca.intermediate", c.CA.Intermediate, &cfg.Intermediate)
	if len(c.CA.Previous) == 0 && err == nil {
		cfg.Previous, err = ca.LoadPrevious(filepath.Dir(c.CA.Intermediate))
	}
	for _, p := range c.CA.Previous {
		prev := ca.Previous{Key: p.Key}
		read("ca.previous", p.Intermediate, &prev.Certificate)
		cfg.Previous = append(cfg.Previous, prev)
	}
	if err != nil {
		return nil, err
	}
	a, err := ca.Open(ctx, cfg)
	if errors.Is(err, fs.ErrNotExist) { // the other files have been read above
		return nil, wire.WithHint(err, "in issuer.yaml, ca.key and ca.previous name the keys: put the file there, or correct the name")
	}
	return a, err
}

// Version returns the module's version and the revision of the build.
var Version = sync.OnceValue(func() string {
	bi, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	v, rev := bi.Main.Version, ""
	for _, s := range bi.Settings {
		if s.Key == "vcs.revision" && len(s.Value) >= 12 {
			rev = s.Value[:12]
		}
	}
	if v == "" || v == "(devel)" {
		v = "devel"
		if rev != "" {
			v += "-" + rev
		}
	}
	return v
})
