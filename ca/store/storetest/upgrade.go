package storetest

import (
	"bytes"
	"compress/gzip"
	"context"
	"database/sql"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/ca/store"
)

// shape1 is a backup from a program of the first shape. It has twelve certificates,
// of which the last is a server's, a block, a denial, two sessions and a set of
// CRLs. The first certificate and the four of octo/r1 are revoked.
//
//go:embed testdata/shape1.backup.gz
var shape1 []byte

// Older is a database of an earlier shape.
type Older struct {
	Database
	Driver, DSN string // of database/sql
	// ParseRow parses a line of a backup that is a row of table.
	ParseRow func(table string, line []byte) ([]any, error)
}

// RunUpgrade runs the tests of databases of other shapes. newest is the shape of
// this program. older makes an empty database of a shape.
func RunUpgrade(t *testing.T, newest int64, older func(t testing.TB, version int64) Older) {
	backup := unpack(t)
	for version := int64(1); version <= newest; version++ {
		t.Run(fmt.Sprint("shape ", version), func(t *testing.T) {
			t.Parallel()
			o := older(t, version)
			load(t, o, backup)
			if version >= 3 { // migration 3 does this for the versions before it
				o.Exec(t, "UPDATE certificates SET revoked = 1 WHERE id IN (SELECT cert_id FROM revocations)")
			}
			testUpgraded(t, o)
		})
	}
	t.Run("backup of shape 1", func(t *testing.T) {
		t.Parallel()
		again, _, err := older(t, newest).Restore(t, bytes.NewReader(backup))
		if err != nil {
			t.Fatal(err)
		}
		s := open(t, again)
		page, _, err := s.Certificates(t.Context(), store.CertificateFilter{Status: "revoked"})
		byAnn := 0 // the restore revoked the others that had not expired
		for _, c := range page {
			if c.RevokedBy == "ann" {
				byAnn++
			}
		}
		if err != nil || byAnn != 5 {
			t.Errorf("%d revoked, %v; want 5", byAnn, err)
		}
		if _, err := s.VerifyEvents(t.Context()); err != nil {
			t.Error(err)
		}
	})
	t.Run("of a later program", func(t *testing.T) {
		t.Parallel()
		o := older(t, newest)
		load(t, o, backup)
		o.Exec(t, fmt.Sprintf("INSERT INTO goose_db_version (version_id, is_applied) VALUES (%d, true)", newest+1))
		_, err := o.Try(t, StateKey)
		if !errors.Is(err, store.ErrNewer) || !strings.Contains(err.Error(), fmt.Sprint("shape ", newest+1)) || !strings.Contains(err.Error(), "mayfly-issuer") {
			t.Fatalf("a store of a later shape: %v", err)
		}
		o.Exec(t, fmt.Sprintf("DELETE FROM goose_db_version WHERE version_id = %d", newest+1))
		if got := len(walk(t, open(t, o.Open), store.CertificateFilter{Limit: 5})); got != 12 {
			t.Errorf("%d certificates, want 12: the refusal changed something", got)
		}
	})
}

// testUpgraded: rows from before the upgrade can be listed, verified and revoked,
// and new rows continue from there.
func testUpgraded(t *testing.T, o Older) {
	ctx := t.Context()
	s := open(t, o.Open)
	for name, want := range map[string]struct {
		filter store.CertificateFilter
		n      int
	}{
		"all":                {store.CertificateFilter{}, 12},
		"revoked":            {store.CertificateFilter{Status: "revoked"}, 5},
		"expired":            {store.CertificateFilter{Status: "expired", Now: time.Now().Add(24 * time.Hour)}, 7},
		"repository":         {store.CertificateFilter{Match: store.Match{Repository: "octo/r0"}}, 4},
		"revoked repository": {store.CertificateFilter{Status: "revoked", Match: store.Match{Repository: "octo/r0"}}, 1},
		"revoked id":         {store.CertificateFilter{Status: "revoked", Match: store.Match{RepositoryID: "1"}}, 4},
		"revoked run":        {store.CertificateFilter{Status: "revoked", Match: store.Match{RunID: "0"}}, 2},
		"revoked actor":      {store.CertificateFilter{Status: "revoked", Match: store.Match{Actor: "a1"}}, 2},
		"revoked identity":   {store.CertificateFilter{Status: "revoked", Match: store.Match{Identity: "spiffe://ci.example.com/github/1/1"}}, 4},
		"expired identity":   {store.CertificateFilter{Status: "expired", Match: store.Match{Identity: "spiffe://ci.example.com/github/1/1"}, Now: time.Now().Add(24 * time.Hour)}, 0},
		"server":             {store.CertificateFilter{Match: store.Match{Profile: "server"}}, 1},
		"revoked server":     {store.CertificateFilter{Status: "revoked", Match: store.Match{Profile: "server"}}, 0},
	} {
		want.filter.Limit = 3
		if got := len(walk(t, s, want.filter)); got != want.n {
			t.Errorf("%s: %d, want %d", name, got, want.n)
		}
	}
	if got, _, err := s.Events(ctx, store.EventFilter{Repository: "octo/r1", Limit: 100}); err != nil || len(got) != 11 {
		t.Errorf("%d events of octo/r1, %v; want 4 issued, 4 revoked, a block, a denial and a connection", len(got), err)
	}
	if got, _, err := s.Sessions(ctx, store.SessionFilter{Repository: "octo/r0"}); err != nil || len(got) != 1 || got[0].ClosedAt == nil {
		t.Errorf("sessions: %+v, %v", got, err)
	}
	before, err := s.VerifyEvents(ctx)
	if err != nil {
		t.Error(err)
	}
	old, err := s.CRLs(ctx)
	if err != nil {
		t.Fatal(err)
	}
	left := walk(t, s, store.CertificateFilter{Match: store.Match{Repository: "octo/r2"}, Limit: 3})
	fresh := Certificate("100")
	fresh.Repository, fresh.RepositoryID, fresh.Identity = "octo/new", "100", "spiffe://ci.example.com/github/1/100"
	record(t, s, fresh)
	revoke(t, s, store.Revocation{Serial: left[0]})
	revoke(t, s, store.Revocation{Match: store.Match{Repository: "octo/new"}})
	got := walk(t, s, store.CertificateFilter{Status: "revoked", Limit: 3})
	if len(got) != 7 || got[0] != fresh.Serial {
		t.Errorf("revoked afterwards: %v", got)
	}
	// The state after a replica with the previous shape revoked it.
	o.Exec(t, "UPDATE certificates SET revoked = 0 WHERE repository = 'octo/new'")
	if _, err := s.Prune(ctx, time.Time{}); err != nil {
		t.Error(err)
	}
	if got := walk(t, s, store.CertificateFilter{Status: "revoked", Match: store.Match{Repository: "octo/new"}, Limit: 3}); len(got) != 1 {
		t.Errorf("what an older replica revoked is listed %d times", len(got))
	}
	if set := publish(t, s, 0); set.Number <= old.Number || !holds(listed(t, set), fresh.Serial) {
		t.Errorf("CRL %d after %d: %v", set.Number, old.Number, listed(t, set))
	}
	if after, err := s.VerifyEvents(ctx); err != nil || after != before+3 {
		t.Errorf("%d events after %d, %v", after, before, err)
	}
}

// unpack returns the backup of shape1.
func unpack(t testing.TB) []byte {
	t.Helper()
	z, err := gzip.NewReader(bytes.NewReader(shape1))
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if _, err := out.ReadFrom(z); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// load writes the rows of a backup unchanged. Restore, in contrast, raises the
// floor.
func load(t testing.TB, o Older, backup []byte) {
	t.Helper()
	db, err := sql.Open(o.Driver, o.DSN)
	if err != nil {
		t.Fatal(err)
	}
	err = loadRows(t.Context(), db, o, backup)
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
}

func loadRows(ctx context.Context, db *sql.DB, o Older, backup []byte) error {
	insert, table := "", ""
	for line := range bytes.Lines(backup) {
		if line[0] == '[' {
			row, err := o.ParseRow(table, line)
			if err != nil {
				return err
			}
			if _, err := db.ExecContext(ctx, insert, row...); err != nil {
				return fmt.Errorf("%s: %w", insert, err)
			}
			continue
		}
		var head struct {
			Meta    *store.Meta
			Table   string
			Columns []string
		}
		if err := json.Unmarshal(line, &head); err != nil {
			return err
		}
		if m := head.Meta; m != nil {
			if _, err := db.ExecContext(ctx, "INSERT INTO meta (id, root_fingerprint, trust_domain, created_at, cursor_key) VALUES (1, $1, $2, $3, $4)",
				m.RootFingerprint, m.TrustDomain, m.CreatedAt.UnixMicro(), random(32)); err != nil {
				return err
			}
		}
		values := make([]string, len(head.Columns))
		for i := range values {
			values[i] = fmt.Sprintf("$%d", i+1)
		}
		table = head.Table
		insert = "INSERT INTO " + head.Table + " (" + strings.Join(head.Columns, ", ") + ") VALUES (" + strings.Join(values, ", ") + ")"
	}
	return nil
}
