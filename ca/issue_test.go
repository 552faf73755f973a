package ca_test

import (
	"bytes"
	"crypto/x509"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mayfly-ca/mayfly/ca/catest"
	"github.com/mayfly-ca/mayfly/ca/identity"
)

func TestIssue(t *testing.T) {
	t.Parallel()
	c := catest.New(t, catest.Options{})
	for name, p := range map[string]struct {
		eku x509.ExtKeyUsage
		dns string
	}{
		"client": {x509.ExtKeyUsageClientAuth, ""},
		"server": {x509.ExtKeyUsageServerAuth, catest.EngineDNS},
	} {
		t.Run(name, func(t *testing.T) {
			params := catest.ClientParams(t, "default", "large")
			if name == "server" {
				params = catest.ServerParams(t, "default")
			}
			before := time.Now()
			issued, err := c.Issue(t.Context(), catest.Grant(t, params), catest.CSR(t, catest.Key(t)))
			if err != nil {
				t.Fatal(err)
			}
			leaf := issued.Certificate
			intermediates := x509.NewCertPool()
			intermediates.AddCert(issued.Chain[1])
			if _, err := leaf.Verify(x509.VerifyOptions{Roots: c.Roots(), Intermediates: intermediates, KeyUsages: []x509.ExtKeyUsage{p.eku}, DNSName: p.dns}); err != nil {
				t.Fatal(err)
			}
			if d := leaf.NotAfter.Sub(leaf.NotBefore); d != params.TTL+time.Minute {
				t.Errorf("lifetime %v", d)
			}
			if d := before.Sub(leaf.NotBefore); d < time.Minute || d > 62*time.Second {
				t.Errorf("NotBefore lies %v back", d)
			}
			got, err := identity.FromCertificate(leaf, c.TrustDomain())
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(params.Identity, got, cmp.Comparer(func(a, b identity.Claims) bool {
				return a.ID == b.ID && a.CommonName == b.CommonName && a.Workflow == b.Workflow && cmp.Equal(a.Grant, b.Grant)
			})); diff != "" {
				t.Error(diff)
			}
			stored, err := c.Store().Certificate(t.Context(), issued.Record.Serial)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(stored.TBS, leaf.RawTBSCertificate) {
				t.Error("the record is of another certificate")
			}
		})
	}
}
