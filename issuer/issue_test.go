package issuer_test

import (
	"crypto/x509"
	"encoding/pem"
	"testing"

	"github.com/mayfly-ca/mayfly/issuer/issuertest"
)

func TestIssue(t *testing.T) {
	t.Parallel()
	i := issuertest.Start(t, issuertest.Options{Log: t.Output()})
	out, err := i.Issue(i.GitHubToken(nil))
	if err != nil {
		t.Fatal(err)
	}
	block, rest := pem.Decode([]byte(out.Certificate))
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	intermediates, roots := x509.NewCertPool(), x509.NewCertPool()
	intermediates.AppendCertsFromPEM(rest)
	roots.AppendCertsFromPEM([]byte(out.TrustBundle))
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: intermediates, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		t.Error(err)
	}
	if out.Rule != "app-main" || len(out.Engines) != 1 || out.CRL == "" {
		t.Errorf("answer %+v", out)
	}
}
