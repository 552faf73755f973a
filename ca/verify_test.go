package ca_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/mayfly-ca/mayfly/ca/catest"
	"github.com/mayfly-ca/mayfly/ca/store"
)

// Verify finds a record that does not match its certificate, whichever column was
// changed, and names the certificate.
func TestVerifyFindsDamage(t *testing.T) {
	t.Parallel()
	c := catest.New(t, catest.Options{})
	d := sqliteDatabase(t, c)
	var serials []string
	for range 2 {
		p := catest.ClientParams(t, "default")
		issued, err := c.Issue(t.Context(), catest.Grant(t, p), catest.CSR(t, catest.Key(t)))
		if err != nil {
			t.Fatal(err)
		}
		serials = append(serials, issued.Record.Serial)
	}
	if v, err := c.Verify(t.Context()); err != nil || v.Certificates != 2 || v.Events < 2 {
		t.Fatalf("undamaged: %+v, %v", v, err)
	}
	first := "(SELECT id FROM certificates WHERE serial = x'" + serials[0] + "')"
	for column, to := range map[string]string{
		"identity": "'spiffe://ci.example.com/github/1/1'", "rule": "'other'", "run": "'9/9/9'", "repository": "'other/app'", "repository_id": "'7'", "run_id": "'9'", "engines": `'["other"]'`,
		"spki": "zeroblob(32)", "aki": "x'00ff'", "not_after": "not_after + 1000000", "not_before": "not_before - 1000000",
	} {
		d.exec(t, "CREATE TABLE kept AS SELECT "+column+" AS v FROM certificates WHERE id = "+first)
		d.exec(t, fmt.Sprintf("UPDATE certificates SET %s = %s WHERE id = %s", column, to, first))
		if _, err := c.Verify(t.Context()); err == nil || !strings.Contains(err.Error(), serials[0]) || strings.Contains(err.Error(), serials[1]) {
			t.Errorf("%s: %v", column, err)
		}
		d.exec(t, fmt.Sprintf("UPDATE certificates SET %s = (SELECT v FROM kept) WHERE id = %s", column, first))
		d.exec(t, "DROP TABLE kept")
	}
	for what, statement := range map[string]string{
		"a TBS of another":          "UPDATE bodies SET tbs = (SELECT tbs FROM bodies WHERE id <> " + first + ") WHERE id = " + first,
		"a TBS that is none":        "UPDATE bodies SET tbs = x'3000' WHERE id = " + first,
		"a signature that is wrong": "UPDATE bodies SET signature = x'30060201010201ff' WHERE id = " + first,
	} {
		d.exec(t, "CREATE TABLE kept AS SELECT * FROM bodies WHERE id = "+first)
		d.exec(t, statement)
		if _, err := c.Verify(t.Context()); err == nil || !strings.Contains(err.Error(), serials[0]) {
			t.Errorf("%s: %v", what, err)
		}
		d.exec(t, "UPDATE bodies SET tbs = (SELECT tbs FROM kept), signature = (SELECT signature FROM kept) WHERE id = "+first)
		d.exec(t, "DROP TABLE kept")
	}
	if _, err := c.Verify(t.Context()); err != nil {
		t.Errorf("undone: %v", err)
	}
}

// Verify finds a deleted certificate, revocation or event, and a certificate that
// was never issued: other rows disagree with it.
func TestVerifyFindsWhatIsGone(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct{ statement, want string }{
		"certificate": {"DELETE FROM certificates WHERE serial = x'SERIAL'", "issue event without a record"},
		"revocation":  {"DELETE FROM revocations WHERE serial = x'SERIAL'", "its revocation is gone"},
		"event":       {"UPDATE certificates SET event_seq = 0 WHERE serial = x'SERIAL'; UPDATE events SET type = 'login' WHERE serial = 'SERIAL' AND type = 'issued'", "no issue event for the record"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := catest.New(t, catest.Options{})
			d := sqliteDatabase(t, c)
			gone, kept := serial(c.Client(t, "default").Leaf), serial(c.Client(t, "default").Leaf)
			for _, s := range []string{gone, kept} {
				if _, _, err := c.Revoke(t.Context(), store.Revocation{Serial: s}); err != nil {
					t.Fatal(err)
				}
			}
			if v, err := c.Verify(t.Context()); err != nil || v.Certificates != 2 {
				t.Fatalf("undamaged: %+v, %v", v, err)
			}
			d.exec(t, strings.ReplaceAll(tc.statement, "SERIAL", gone))
			_, err := c.Verify(t.Context())
			if err == nil || !strings.Contains(err.Error(), "certificate "+gone+": ") || !strings.Contains(err.Error(), tc.want) || strings.Contains(err.Error(), kept) {
				t.Errorf("%v, want %q of %s", err, tc.want, gone)
			}
		})
	}
}
