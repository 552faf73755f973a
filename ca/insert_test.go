package ca_test

import (
	"context"
	"crypto"
	"database/sql"
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"
	kmsapi "go.step.sm/crypto/kms/apiv1"

	"github.com/mayfly-ca/mayfly/ca"
	"github.com/mayfly-ca/mayfly/ca/catest"
	"github.com/mayfly-ca/mayfly/ca/store/postgres/postgrestest"
)

// countingKMS is opaqueKMS that counts its signatures, per key.
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
	n, _ := signatures.LoadOrStore(path, new(atomic.Int64))
	return countingKey{s, n.(*atomic.Int64)}, nil
}

type countingKey struct {
	crypto.Signer
	n *atomic.Int64
}

func (k countingKey) Sign(random io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	k.n.Add(1)
	return k.Signer.Sign(random, digest, opts)
}

// database is a store's own, to be broken behind its back.
type database struct {
	dsn  string
	exec func(t *testing.T, statement string)
	// faults are statements that make an issuance fail, and their undoing.
	faults map[string][2]string
}

// tables are those that an issuance writes to.
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
	d := database{dsn: postgrestest.Start(t).Database(t), faults: map[string][2]string{}}
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

// signatures counts by the path of the key.
var signatures sync.Map

// Attack 36 in the database itself: whichever INSERT of an issuance fails, and
// the COMMIT, the key signs nothing, nothing of it stays, and the token is
// still good when the fault is over.
func TestInsertFails(t *testing.T) {
	t.Parallel()
	for name, open := range map[string]func(*testing.T, *catest.CA) database{"sqlite": sqliteDatabase, "postgres": postgresDatabase} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := catest.New(t, catest.Options{})
			d := open(t, c)
			config := c.Config
			var err error
			if config.Store, err = ca.OpenStore(t.Context(), d.dsn, c.Root(), ca.StateKey{}); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := config.Store.Close(); err != nil {
					t.Error(err)
				}
			})
			config.Key = countingScheme + ":path=" + c.Files.IntermediateKey
			a := catest.OpenConfig(t, config)
			counted, _ := signatures.Load(c.Files.IntermediateKey)
			signed := counted.(*atomic.Int64)
			recorded := 0
			for fault, statements := range d.faults {
				g, csr := catest.Grant(t, catest.ClientParams(t, "default")), catest.CSR(t, catest.Key(t))
				d.exec(t, statements[0])
				before := signed.Load()
				if issued, err := a.Issue(t.Context(), g, csr); err == nil {
					t.Errorf("%s: issued %s", fault, issued.Record.Serial)
				}
				if n := signed.Load() - before; n != 0 {
					t.Errorf("%s: the key signed %d times", fault, n)
				}
				d.exec(t, statements[1])
				issued, err := a.Issue(t.Context(), g, csr)
				if err != nil || issued.Repeated || signed.Load() != before+1 {
					t.Errorf("%s, afterwards: %+v, %v, %d signatures", fault, issued, err, signed.Load()-before)
				}
				recorded++
			}
			all, _, err := config.Store.Certificates(t.Context(), ca.CertificateFilter{Limit: 100})
			if err != nil || len(all) != recorded {
				t.Errorf("%d records, want %d: %v", len(all), recorded, err)
			}
			if _, err := a.Verify(t.Context()); err != nil {
				t.Error(fmt.Errorf("verify: %w", err))
			}
		})
	}
}
