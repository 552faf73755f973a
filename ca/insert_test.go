package ca_test

import (
	"context"
	"crypto"
	"crypto/sha256"
	"database/sql"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	kmsapi "go.step.sm/crypto/kms/apiv1"

	"github.com/mayfly-ca/mayfly/ca"
	"github.com/mayfly-ca/mayfly/ca/catest"
	"github.com/mayfly-ca/mayfly/ca/store"
)

// countingKMS is an opaqueKMS that notes what each key signs.
type countingKMS struct{ opaqueKMS }

const countingScheme = "countingkms"

func init() {
	kmsapi.Register(countingScheme, func(context.Context, kmsapi.Options) (kmsapi.KeyManager, error) { return countingKMS{}, nil })
}

func (k countingKMS) CreateSigner(r *kmsapi.CreateSignerRequest) (crypto.Signer, error) {
	path := strings.TrimPrefix(r.SigningKey, countingScheme+":path=")
	s, err := k.opaqueKMS.CreateSigner(&kmsapi.CreateSignerRequest{SigningKey: opaqueScheme + ":path=" + path})
	if err != nil {
		return nil, err
	}
	signed, _ := signatures.LoadOrStore(path, new(signedDigests))
	return countingKey{s, signed.(*signedDigests)}, nil
}

// signedDigests lists the digests that a key has signed.
type signedDigests struct {
	mu  sync.Mutex
	all []string
}

func (s *signedDigests) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.all)
}

// countOf returns how often the SHA-256 of message was signed.
func (s *signedDigests) countOf(message []byte) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	digest := sha256.Sum256(message)
	for _, d := range s.all {
		if d == string(digest[:]) {
			n++
		}
	}
	return n
}

type countingKey struct {
	crypto.Signer
	signed *signedDigests
}

func (k countingKey) Sign(random io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	k.signed.mu.Lock()
	k.signed.all = append(k.signed.all, string(digest))
	k.signed.mu.Unlock()
	return k.Signer.Sign(random, digest, opts)
}

// database is the database of a store, which the test changes without the store.
type database struct {
	dsn  string
	exec func(t *testing.T, statement string)
	// faults are statements that make an issuance fail, each with the statement
	// that undoes it.
	faults map[string][2]string
}

// tables are the tables that an issuance writes to.
var tables = []string{"certificates", "bodies", "tokens", "events", "links"}

func sqliteDatabase(_ *testing.T, c *catest.CA) database {
	d := database{dsn: c.Files.DSN, faults: map[string][2]string{}}
	d.exec = func(t *testing.T, statement string) {
		t.Helper()
		db, err := sql.Open("sqlite", "file:"+d.dsn+"?_pragma=busy_timeout(10000)")
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		if _, err := db.ExecContext(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
	for _, table := range tables {
		d.faults[table] = [2]string{"CREATE TRIGGER fault BEFORE INSERT ON " + table + " BEGIN SELECT RAISE(ABORT, 'fault'); END", "DROP TRIGGER fault"}
	}
	return d
}

func postgresDatabase(t *testing.T, c *catest.CA) database {
	d := database{dsn: catest.StartPostgres(t).Database(t), faults: map[string][2]string{}}
	d.exec = func(t *testing.T, statement string) {
		t.Helper()
		conn, err := pgx.Connect(t.Context(), d.dsn)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close(context.WithoutCancel(t.Context()))
		if _, err := conn.Exec(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
	meta, err := ca.MetaOf(c.Config.Root, c.Config.Intermediate)
	if err != nil {
		t.Fatal(err)
	}
	if err := ca.CreateStore(t.Context(), d.dsn, meta); err != nil {
		t.Fatal(err)
	}
	d.exec(t, "CREATE FUNCTION fault() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'fault'; END $$")
	for _, table := range tables {
		d.faults[table] = [2]string{"CREATE TRIGGER fault BEFORE INSERT ON " + table + " EXECUTE FUNCTION fault()", "DROP TRIGGER fault ON " + table}
	}
	d.faults["commit"] = [2]string{
		"CREATE CONSTRAINT TRIGGER fault AFTER INSERT ON certificates DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION fault()",
		"DROP TRIGGER fault ON certificates",
	}
	return d
}

// signatures maps the path of a key to its *signedDigests.
var signatures sync.Map

// countingAuthority opens c over the database d, with a key that notes what it
// signs.
func countingAuthority(t *testing.T, c *catest.CA, d database) (*ca.Authority, *signedDigests) {
	t.Helper()
	config := c.Config
	var err error
	if config.Store, err = ca.OpenStore(t.Context(), d.dsn, c.Root(), store.StateKey{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := config.Store.Close(); err != nil {
			t.Error(err)
		}
	})
	config.Key = countingScheme + ":path=" + c.Files.IntermediateKey
	a := catest.OpenConfig(t, config)
	signed, _ := signatures.Load(c.Files.IntermediateKey)
	return a, signed.(*signedDigests)
}

// Attack 36 in the database itself: any INSERT of an issuance, or its COMMIT,
// fails. Then the key signs nothing, no row stays, and the token is good again
// after the fault.
func TestInsertFails(t *testing.T) {
	t.Parallel()
	for name, open := range map[string]func(*testing.T, *catest.CA) database{"sqlite": sqliteDatabase, "postgres": postgresDatabase} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := catest.New(t, catest.Options{})
			d := open(t, c)
			a, signed := countingAuthority(t, c, d)
			recorded := 0
			for fault, statements := range d.faults {
				g, csr := catest.Grant(t, catest.ClientParams(t, "default")), catest.CSR(t, catest.Key(t))
				d.exec(t, statements[0])
				before := signed.count()
				if issued, err := a.Issue(t.Context(), g, csr); err == nil {
					t.Errorf("%s: issued %s", fault, issued.Record.Serial)
				}
				if n := signed.count() - before; n != 0 {
					t.Errorf("%s: the key signed %d times", fault, n)
				}
				d.exec(t, statements[1])
				issued, err := a.Issue(t.Context(), g, csr)
				if err != nil || issued.Repeated || signed.count() != before+1 {
					t.Errorf("%s, afterwards: %+v, %v, %d signatures", fault, issued, err, signed.count()-before)
				}
				recorded++
			}
			all, _, err := a.Store().Certificates(t.Context(), store.CertificateFilter{Limit: 100})
			if err != nil || len(all) != recorded {
				t.Errorf("%d records, want %d: %v", len(all), recorded, err)
			}
			if _, err := a.Verify(t.Context()); err != nil {
				t.Error(fmt.Errorf("verify: %w", err))
			}
		})
	}
}
