package ca_test

import (
	"crypto/x509"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mayfly-ca/mayfly/ca"
	"github.com/mayfly-ca/mayfly/ca/catest"
	"github.com/mayfly-ca/mayfly/ca/store"
)

// rotation holds an authority's files and what a rotation of them needs.
type rotation struct {
	files *ca.InitResult
	o     ca.RotationOptions
}

func newRotation(t *testing.T, c *catest.CA) rotation {
	t.Helper()
	request, err := ca.RequestRotation(t.Context(), c.Files.IssuerDir, "")
	if err != nil {
		t.Fatal(err)
	}
	return rotation{c.Files, ca.RotationOptions{
		RootDir:  c.Files.RootDir,
		Password: []byte(c.Files.RootPassword),
		Request:  catest.ReadFile(t, request.Request),
	}}
}

func (r rotation) sign(t *testing.T) *ca.Rotation {
	t.Helper()
	signed, err := ca.SignRotation(t.Context(), r.o)
	if err != nil {
		t.Fatal(err)
	}
	return signed
}

// open opens the current contents of the issuer's folder.
func (r rotation) open(t *testing.T, st store.Store) *ca.Authority {
	t.Helper()
	return catest.OpenConfig(t, r.config(t, st))
}

func (r rotation) config(t *testing.T, st store.Store) ca.Config {
	t.Helper()
	previous, err := ca.LoadPrevious(r.files.IssuerDir)
	if err != nil {
		t.Fatal(err)
	}
	return ca.Config{
		Root:         catest.ReadFile(t, r.files.Root),
		RootCRL:      catest.ReadFile(t, r.files.RootCRL),
		Intermediate: catest.ReadFile(t, r.files.Intermediate),
		Key:          r.files.IntermediateKey,
		Previous:     previous,
		Store:        st,
		PublicURL:    catest.PublicURL,
	}
}

// Attack 56: during a rotation, the leaves of both intermediates verify, and a leaf
// of the old intermediate can still be revoked. If the old intermediate is
// compromised, the root's CRL lists it from then on.
func TestRotation(t *testing.T) {
	t.Parallel()
	c := catest.New(t, catest.Options{})
	old, olds := c.Intermediates()[0], c.Client(t, "default").Leaf
	before, err := c.CRLs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	r := newRotation(t, c)
	installed, err := ca.InstallRotation(t.Context(), r.files.IssuerDir, *r.sign(t), "")
	if err != nil {
		t.Fatal(err)
	}
	if installed.PreviousKey == "" || installed.PreviousCertificate == "" {
		t.Errorf("installed %+v", installed)
	}
	a := r.open(t, c.Store())
	rotated := &catest.CA{Authority: a, Files: c.Files}
	crls, err := a.Publish(t.Context(), "test")
	if err != nil {
		t.Fatal(err)
	}
	if crls.Number <= before.Number || len(crls.ByAKI) != 2 {
		t.Errorf("CRL number %d after %d, %d CRLs", crls.Number, before.Number, len(crls.ByAKI))
	}
	p := catest.ClientParams(t, "default")
	issued, err := a.Issue(t.Context(), catest.Grant(t, p), catest.CSR(t, catest.Key(t)))
	if err != nil {
		t.Fatal(err)
	}
	if issued.Chain[1].Equal(old) {
		t.Error("issued by the old intermediate")
	}
	verify(t, rotated, issued.Chain, p)
	verify(t, rotated, []*x509.Certificate{olds, old}, p)

	_, number := revoke(t, a, store.Revocation{Serial: serial(olds)})
	if crls, err = a.CRLs(t.Context()); err != nil || crls.Number != number {
		t.Fatalf("number %d, want %d: %v", crls.Number, number, err)
	}
	list := parseCRL(t, crls.ByAKI[hexID(old)])
	if err := list.CheckSignatureFrom(old); err != nil {
		t.Error(err)
	}
	if !lists(t, crls.ByAKI[hexID(old)], olds) || lists(t, crls.Current, olds) {
		t.Error("the revoked certificate is not in its own intermediate's CRL alone")
	}
	if _, err := a.Verify(t.Context()); err != nil {
		t.Error(err)
	}

	// The replica that has not been restarted accepts the new set.
	if stale, err := c.WaitCRLs(t.Context(), before.Number); err != nil || stale.Number != number {
		t.Errorf("a replica of before: %v", err)
	}

	r.o.Request, r.o.Compromised = nil, []string{serial(old)}
	signed := r.sign(t)
	if signed.Intermediate != nil {
		t.Error("signed an intermediate that nobody asked for")
	}
	if _, err := ca.InstallRotation(t.Context(), r.files.IssuerDir, *signed, ""); err != nil {
		t.Fatal(err)
	}
	config := r.config(t, c.Store())
	cleaned := catest.OpenConfig(t, config)
	if got := cleaned.Intermediates(); len(got) != 1 || got[0].Equal(old) {
		t.Error("the compromised intermediate is still in use")
	}
	config.Intermediate, config.Key, config.Previous = c.Config.Intermediate, config.Previous[0].Key, nil
	if _, err := ca.Open(t.Context(), config); err == nil || !strings.Contains(err.Error(), "compromised") {
		t.Errorf("opened a compromised intermediate: %v", err)
	}
	r.o.Compromised = nil
	next := newRotation(t, c)
	if !lists(t, crlDER(t, next.sign(t).RootCRL), old) {
		t.Error("the next CRL of the root forgot the compromised intermediate")
	}
}

// After rotate install, the old process serves the new number with only its own
// intermediate and root CRL. So the restarted issuer publishes another number at
// once, and engines fetch it.
func TestFirstSetAfterRotationIsNew(t *testing.T) {
	t.Parallel()
	for name, compromised := range map[string]bool{"planned": false, "compromised": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := catest.New(t, catest.Options{})
			old := c.Intermediates()[0]
			before, err := c.CRLs(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			r := newRotation(t, c)
			if compromised {
				r.o.Compromised = []string{serial(old)}
			}
			if _, err := ca.InstallRotation(t.Context(), r.files.IssuerDir, *r.sign(t), ""); err != nil {
				t.Fatal(err)
			}
			if _, err := r.open(t, c.Store()).Publish(t.Context(), "test"); err != nil {
				t.Fatal(err)
			}
			served, err := c.WaitCRLs(t.Context(), before.Number)
			if err != nil || served.Number <= before.Number {
				t.Fatalf("the old process serves %d after %d: %v", served.Number, before.Number, err)
			}
			restarted := r.open(t, c.Store())
			first, err := restarted.WaitCRLs(t.Context(), served.Number)
			if err != nil || first.Number <= served.Number {
				t.Fatalf("the restarted issuer serves %d after %d: %v", first.Number, served.Number, err)
			}
			crls := blocks(t, first.PEM, "X509 CRL")
			want := 3 // two intermediates' and the root's
			if compromised {
				want = 2
			}
			if len(crls) != want || lists(t, crls[len(crls)-1], old) != compromised {
				t.Errorf("%d CRLs, want %d; the root's names the old intermediate: %v", len(crls), want, !compromised)
			}
			if next, err := restarted.CRLs(t.Context()); err != nil || next.Number != first.Number {
				t.Errorf("signed again without need: %v", err)
			}
		})
	}
}

// A retry after a rotation is refused: its record names the old intermediate, which
// no longer issues. A fresh token gets a certificate from the new one.
func TestRetryAfterRotation(t *testing.T) {
	t.Parallel()
	c := catest.New(t, catest.Options{})
	key, p := catest.Key(t), catest.ClientParams(t, "default")
	if _, err := c.Issue(t.Context(), catest.Grant(t, p), catest.CSR(t, key)); err != nil {
		t.Fatal(err)
	}
	r := newRotation(t, c)
	if _, err := ca.InstallRotation(t.Context(), r.files.IssuerDir, *r.sign(t), ""); err != nil {
		t.Fatal(err)
	}
	rotated := &catest.CA{Authority: r.open(t, c.Store()), Files: c.Files}
	wantReplay(t, rotated, catest.Grant(t, p), key, "another grant")
	rotated.Client(t, "default")
}

func crlDER(t *testing.T, data []byte) []byte {
	t.Helper()
	all := blocks(t, data, "X509 CRL")
	if len(all) != 1 {
		t.Fatalf("%d CRLs", len(all))
	}
	return all[0]
}

func hexID(c *x509.Certificate) string { return hex.EncodeToString(c.SubjectKeyId) }

func TestRootCRL(t *testing.T) {
	t.Parallel()
	c := catest.New(t, catest.Options{})
	first := parseCRL(t, crlDER(t, c.Config.RootCRL))
	if !first.NextUpdate.Equal(c.Intermediates()[0].NotAfter) || len(first.RevokedCertificateEntries) != 0 {
		t.Errorf("the first CRL: until %v, %d entries", first.NextUpdate, len(first.RevokedCertificateEntries))
	}
	r := newRotation(t, c)
	signed := r.sign(t)
	second := parseCRL(t, crlDER(t, signed.RootCRL))
	if second.Number.Cmp(first.Number) <= 0 {
		t.Errorf("number %v after %v", second.Number, first.Number)
	}
	if want := catest.Certificate(t, signed.Intermediate).NotAfter; !second.NextUpdate.Equal(want) {
		t.Errorf("until %v, want %v", second.NextUpdate, want)
	}
	if _, err := ca.InstallRotation(t.Context(), r.files.IssuerDir, *signed, ""); err != nil {
		t.Fatal(err)
	}
	// The number may not go down: an older CRL is refused.
	if _, err := ca.InstallRotation(t.Context(), r.files.IssuerDir, ca.Rotation{RootCRL: c.Config.RootCRL}, ""); err == nil {
		t.Error("installed an older CRL of the root")
	}
}

// An install that was interrupted between any two of its steps can be repeated.
func TestInstallAgain(t *testing.T) {
	t.Parallel()
	c := catest.New(t, catest.Options{})
	r := newRotation(t, c)
	signed := r.sign(t)
	dir := r.files.IssuerDir
	if _, err := ca.InstallRotation(t.Context(), dir, *signed, ""); err != nil {
		t.Fatal(err)
	}
	// As if the process was killed after it moved the key and before it wrote the
	// certificate.
	if err := os.WriteFile(r.files.Intermediate, c.Config.Intermediate, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := ca.Open(t.Context(), r.config(t, c.Store())); err == nil {
		t.Error("opened with the key of another intermediate")
	}
	installed, err := ca.InstallRotation(t.Context(), dir, *signed, "")
	if err != nil {
		t.Fatal(err)
	}
	if installed.PreviousKey == "" {
		t.Error("the previous key is lost")
	}
	a := r.open(t, c.Store())
	if n := len(a.Intermediates()); n != 2 {
		t.Errorf("%d intermediates", n)
	}
	if _, err := ca.InstallRotation(t.Context(), dir, *signed, ""); err != nil {
		t.Errorf("a third time: %v", err)
	}
	if err := r.open(t, c.Store()).Ready(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestRotationRefuses(t *testing.T) {
	t.Parallel()
	c, other := catest.New(t, catest.Options{}), catest.New(t, catest.Options{})
	if _, err := ca.RequestRotation(t.Context(), c.Files.IssuerDir, c.Files.IntermediateKey); err != nil {
		t.Fatal(err)
	}
	same := catest.ReadFile(t, filepath.Join(c.Files.IssuerDir, "next.csr"))
	r := newRotation(t, c)
	for name, change := range map[string]func(*ca.RotationOptions){
		"wrong password": func(o *ca.RotationOptions) { o.Password = []byte("guess") },
		"no password":    func(o *ca.RotationOptions) { o.Password = nil },
		"another root key": func(o *ca.RotationOptions) {
			o.RootKey, o.Password = other.Files.RootKey, []byte(other.Files.RootPassword)
		},
		"the same key":      func(o *ca.RotationOptions) { o.Request = same },
		"no request":        func(o *ca.RotationOptions) { o.Request = []byte("no request") },
		"cut request":       func(o *ca.RotationOptions) { o.Request = o.Request[:len(o.Request)/2] },
		"unknown name":      func(o *ca.RotationOptions) { o.Compromised = []string{"no-such-file"} },
		"URL without names": func(o *ca.RotationOptions) { o.IssuerURL = "https://issuer.example.com" },
		"bad name":          func(o *ca.RotationOptions) { o.EngineDNS = []string{"*.example.com"} },
	} {
		t.Run(name, func(t *testing.T) {
			o := r.o
			change(&o)
			if _, err := ca.SignRotation(t.Context(), o); err == nil {
				t.Error("signed")
			}
		})
	}
	if _, err := ca.RequestRotation(t.Context(), c.Files.IssuerDir, ""); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a request over a key that waits: %v", err)
	}
	signed := r.sign(t)
	foreign := newRotation(t, other).sign(t)
	for name, bad := range map[string]ca.Rotation{
		"another root's":          *foreign,
		"another root's CRL":      {Intermediate: signed.Intermediate, RootCRL: foreign.RootCRL},
		"another's intermediate":  {Intermediate: foreign.Intermediate, RootCRL: signed.RootCRL},
		"an intermediate, no key": {Intermediate: newIntermediate(t, r), RootCRL: signed.RootCRL},
		"no CRL":                  {Intermediate: signed.Intermediate},
	} {
		if _, err := ca.InstallRotation(t.Context(), c.Files.IssuerDir, bad, ""); err == nil {
			t.Errorf("%s: installed", name)
		}
	}
	if _, err := ca.Open(t.Context(), r.config(t, c.Store())); err != nil {
		t.Errorf("what was refused changed the folder: %v", err)
	}
}

// newIntermediate returns an intermediate for a key that the issuer does not have.
func newIntermediate(t *testing.T, r rotation) []byte {
	t.Helper()
	dir := t.TempDir()
	request, err := ca.RequestRotation(t.Context(), dir, "")
	if err != nil {
		t.Fatal(err)
	}
	r.o.Request = catest.ReadFile(t, request.Request)
	return r.sign(t).Intermediate
}

// A rotation can widen the name constraints, and keeps them otherwise.
func TestRotationConstraints(t *testing.T) {
	t.Parallel()
	c := catest.New(t, catest.Options{})
	r := newRotation(t, c)
	r.o.EngineDNS, r.o.IssuerURL = []string{catest.EngineDNS, "builds.example.org"}, "https://issuer.example.com"
	if _, err := ca.InstallRotation(t.Context(), r.files.IssuerDir, *r.sign(t), ""); err != nil {
		t.Fatal(err)
	}
	a := r.open(t, c.Store())
	if got := a.Constraints(); !got.PermitsDNS("builds.example.org") || !got.PermitsDNS("issuer.example.com") || got.Loopback {
		t.Errorf("constraints %+v", got)
	}
	next := newRotation(t, c)
	if _, err := ca.InstallRotation(t.Context(), r.files.IssuerDir, *next.sign(t), ""); err != nil {
		t.Fatal(err)
	}
	b := next.open(t, c.Store())
	if got := b.Constraints(); !got.PermitsDNS("builds.example.org") || got.Loopback {
		t.Errorf("constraints %+v", got)
	}
	if n := len(b.Intermediates()); n != 3 {
		t.Errorf("%d intermediates, want 3", n)
	}
}
