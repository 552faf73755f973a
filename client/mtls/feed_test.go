package mtls_test

import (
	"bytes"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"flag"
	"math/big"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/ca/identity"
	"github.com/mayfly-ca/mayfly/client/clienttest"
	"github.com/mayfly-ca/mayfly/client/mtls"
)

func TestParseFeed(t *testing.T) {
	t.Parallel()
	ca := clienttest.New(t, trustDomain)
	ca.AddIntermediate(t)
	forger := clienttest.New(t, trustDomain)
	floor := time.Now().Add(-time.Hour).Truncate(time.Second)
	block := func(kind string, der []byte) []byte {
		return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
	}
	crl := func(der []byte) []byte { return block("X509 CRL", der) }
	inter := func(i int) []byte { return block("CERTIFICATE", ca.Intermediates[i].Certificate.Raw) }
	f := clienttest.Feed{Number: 7, Floor: floor, ThisUpdate: time.Now()}
	l0, l1, root := crl(ca.List(t, 0, f)), crl(ca.List(t, 1, f)), crl(ca.RootList(t, f))
	with := func(change func(*clienttest.Feed)) []byte {
		g := f
		change(&g)
		return ca.Feed(t, g)
	}
	second := func(change func(*x509.RevocationList)) []byte {
		return with(func(g *clienttest.Feed) {
			g.List = func(i int, list *x509.RevocationList) {
				if i == 1 {
					change(list)
				}
			}
		})
	}
	tests := []struct {
		name string
		feed []byte
		says string // empty means it parses
	}{
		{"whole", ca.Feed(t, f), ""},
		{"in another order", slices.Concat(root, l1, inter(0), l0, inter(1)), ""},
		{"empty", nil, "no intermediate"},
		{"no PEM", []byte("hello"), "text outside"},
		{"text between", slices.Concat(inter(0), []byte("hello\n"), l0, root), "text outside"},
		{"text at the end", slices.Concat(ca.Feed(t, f), []byte("hello")), "text outside"},
		{"cut off", ca.Feed(t, f)[:len(ca.Feed(t, f))-40], "not PEM"},
		{"another block", slices.Concat(ca.Feed(t, f), block("PRIVATE KEY", []byte("x"))), "unexpected PEM block"},
		{"headers", append(ca.Feed(t, f), pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Headers: map[string]string{"a": "b"}, Bytes: []byte("x")})...), "headers"},
		{"too large", make([]byte, mtls.MaxFeedBytes+1), "larger"},
		{"list of an intermediate missing", slices.Concat(inter(0), l0, inter(1), root), "missing"},
		{"root's list missing", slices.Concat(inter(0), l0, inter(1), l1), "root's list: missing"},
		{"intermediate missing", slices.Concat(inter(0), l0, l1, root), "no intermediate and no root"},
		{"list twice", slices.Concat(inter(0), l0, l0, inter(1), l1, root), "two of one issuer"},
		{"intermediate twice", slices.Concat(inter(0), inter(0), l0, inter(1), l1, root), "missing"},
		{"lists of one intermediate only", slices.Concat(inter(0), l0, root), ""},
		{"forged list", slices.Concat(inter(0), crl(forger.List(t, 0, f)), root), "missing"},
		{"forged intermediate", forger.Feed(t, f), "not signed by a known root"},
		{"root's list forged", slices.Concat(inter(0), l0, inter(1), l1, crl(forger.RootList(t, f))), "root's list: missing"},
		{"root as an intermediate", slices.Concat(block("CERTIFICATE", ca.Root.Certificate.Raw), root), "not an intermediate"},
		{"numbers differ", second(func(l *x509.RevocationList) { l.Number = big.NewInt(8) }), "numbers 7 and 8"},
		{"number of 65 bits", with(func(g *clienttest.Feed) {
			g.List = func(_ int, l *x509.RevocationList) { l.Number = new(big.Int).Lsh(big.NewInt(1), 64) }
		}), "63 bits"},
		{"floors differ", second(func(l *x509.RevocationList) {
			l.ExtraExtensions = []pkix.Extension{clienttest.Floor(t, floor.Add(-time.Second))}
		}), "different floors"},
		{"floor in one list only", second(func(l *x509.RevocationList) { l.ExtraExtensions = nil }), "no floor"},
		{"no floor", with(func(g *clienttest.Feed) {
			g.List = func(_ int, l *x509.RevocationList) { l.ExtraExtensions = nil }
		}), "no floor"},
		{"floor is no time", with(func(g *clienttest.Feed) {
			g.List = func(_ int, l *x509.RevocationList) {
				l.ExtraExtensions = []pkix.Extension{{Id: identity.OIDFloor, Value: []byte{asn1.TagUTF8String, 1, 'x'}}}
			}
		}), "floor"},
		{"two floors", with(func(g *clienttest.Feed) {
			g.List = func(_ int, l *x509.RevocationList) {
				l.ExtraExtensions = append(l.ExtraExtensions, clienttest.Floor(t, floor))
			}
		}), "malformed floor"},
		{"critical extension", with(func(g *clienttest.Feed) {
			g.List = func(_ int, l *x509.RevocationList) {
				// A delta list (RFC 5280 5.2.4) is incomplete.
				l.ExtraExtensions = append(l.ExtraExtensions, pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 27}, Critical: true, Value: []byte{2, 1, 1}})
			}
		}), "critical extension"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			feed, err := mtls.ParseFeed(tt.feed, ca.RootCertificates())
			if tt.says == "" {
				if err != nil {
					t.Fatal(err)
				}
				if feed.Number != 7 || !feed.Floor.Equal(floor) || feed.ThisUpdate.IsZero() || !feed.NextUpdate.After(feed.ThisUpdate) {
					t.Errorf("feed %+v", feed)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tt.says) {
				t.Fatalf("error %v, want %q in it", err, tt.says)
			}
		})
	}
}

func TestCheckChain(t *testing.T) {
	t.Parallel()
	ca := clienttest.New(t, trustDomain)
	second := ca.AddIntermediate(t)
	now := time.Now()
	good, bad := ca.Issue(t, clienttest.Leaf{}), ca.Issue(t, clienttest.Leaf{})
	younger := ca.Issue(t, clienttest.Leaf{Intermediate: second})
	issued := good.Leaf.NotBefore.Add(time.Minute)
	chain := func(leaf *x509.Certificate, intermediate int) []*x509.Certificate {
		return []*x509.Certificate{leaf, ca.Intermediates[intermediate].Certificate, ca.Root.Certificate}
	}
	revoked := []*big.Int{bad.Leaf.SerialNumber}
	tests := []struct {
		name  string
		feed  clienttest.Feed
		chain []*x509.Certificate
		at    time.Time
		want  error
	}{
		{name: "good", chain: chain(good.Leaf, 0)},
		{name: "revoked", chain: chain(bad.Leaf, 0), want: mtls.ErrRevoked},
		{name: "of the second intermediate", chain: chain(younger.Leaf, second)},
		{name: "of a compromised intermediate", feed: clienttest.Feed{Compromised: []int{second}}, chain: chain(younger.Leaf, second), want: mtls.ErrRevoked},
		{name: "of a compromised intermediate that the feed leaves out", feed: clienttest.Feed{Compromised: []int{second}, Absent: []int{second}}, chain: chain(younger.Leaf, second), want: mtls.ErrRevoked},
		{name: "of another intermediate that the feed leaves out", feed: clienttest.Feed{Absent: []int{second}}, chain: chain(younger.Leaf, second), want: mtls.ErrNotCovered},
		{name: "of the intermediate beside one that is left out", feed: clienttest.Feed{Compromised: []int{second}, Absent: []int{second}}, chain: chain(good.Leaf, 0)},
		{name: "of the intermediate beside a compromised one", feed: clienttest.Feed{Compromised: []int{second}}, chain: chain(good.Leaf, 0)},
		{name: "issued at the floor", feed: clienttest.Feed{Floor: issued}, chain: chain(good.Leaf, 0)},
		{name: "issued a second before the floor", feed: clienttest.Feed{Floor: issued.Add(time.Second)}, chain: chain(good.Leaf, 0), want: mtls.ErrBeforeFloor},
		{name: "of an intermediate that the feed has not", chain: []*x509.Certificate{good.Leaf, ca.Root.Certificate, ca.Root.Certificate}, want: mtls.ErrNotCovered},
		{name: "a chain of two", chain: []*x509.Certificate{good.Leaf, ca.Root.Certificate}, want: mtls.ErrNotCovered},
		{name: "just before the next update", chain: chain(good.Leaf, 0), at: now.Add(10*time.Minute - 2*time.Second)},
		{name: "at the next update", chain: chain(good.Leaf, 0), at: now.Add(10 * time.Minute), want: mtls.ErrStale},
		{name: "root's list is over", feed: clienttest.Feed{RootNextUpdate: now.Add(time.Minute)}, chain: chain(good.Leaf, 0), at: now.Add(2 * time.Minute), want: mtls.ErrStale},
		{name: "a minute from the future", chain: chain(good.Leaf, 0), at: now.Add(-59 * time.Second)},
		{name: "two minutes from the future", chain: chain(good.Leaf, 0), at: now.Add(-2 * time.Minute), want: mtls.ErrClockSkew},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			tt.feed.Revoked, tt.feed.ThisUpdate = revoked, now
			feed, err := mtls.ParseFeed(ca.Feed(t, tt.feed), ca.RootCertificates())
			if err != nil {
				t.Fatal(err)
			}
			if tt.at.IsZero() {
				tt.at = now
			}
			if err := feed.CheckChain(tt.chain, tt.at); !errors.Is(err, tt.want) {
				t.Errorf("error %v, want %v", err, tt.want)
			}
			ofAge := errors.Is(tt.want, mtls.ErrStale) || errors.Is(tt.want, mtls.ErrClockSkew)
			if err := feed.CheckChainAtAnyAge(tt.chain); ofAge && err != nil || !ofAge && !errors.Is(err, tt.want) {
				t.Errorf("at any age: error %v, want %v", err, tt.want)
			}
			if !feed.Revoked(mtls.Serial(bad.Leaf.SerialNumber)) || feed.Revoked(mtls.Serial(good.Leaf.SerialNumber)) || feed.Len() != 1 {
				t.Error("wrong serials are revoked")
			}
			if got := feed.RevokedIntermediate(ca.Intermediates[second].Certificate); got != (len(tt.feed.Compromised) > 0) {
				t.Errorf("second intermediate revoked: %v", got)
			}
		})
	}
}

var update = flag.Bool("update", false, "make the files of testdata anew")

// fuzzSerial is the serial that testdata/feed.pem revokes. fuzzNumber is its CRL number.
var fuzzSerial = big.NewInt(1 << 40)

const fuzzNumber = 3

// The workers of a fuzz test are separate processes, so the CA comes from a file.
func readFuzzFeed(f *testing.F) (roots []*x509.Certificate, feed []byte) {
	if *update {
		ca := clienttest.New(f, trustDomain)
		ca.AddIntermediate(f)
		root := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.Root.Certificate.Raw})
		feed := ca.Feed(f, clienttest.Feed{Number: fuzzNumber, Revoked: []*big.Int{fuzzSerial}, Floor: time.Now()})
		for name, data := range map[string][]byte{"testdata/root.pem": root, "testdata/feed.pem": feed} {
			if err := os.WriteFile(name, data, 0o644); err != nil {
				f.Fatal(err)
			}
		}
	}
	read := func(name string) []byte {
		b, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		return b
	}
	block, _ := pem.Decode(read("testdata/root.pem"))
	root, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		f.Fatal(err)
	}
	return []*x509.Certificate{root}, read("testdata/feed.pem")
}

// For any bytes, a feed that parses has only lists that the roots' CA signed: it
// checks number and serials. White space around blocks changes nothing.
func FuzzParseFeed(f *testing.F) {
	roots, whole := readFuzzFeed(f)
	if _, err := mtls.ParseFeed(whole, roots); err != nil {
		f.Fatal(err)
	}
	f.Add(whole)
	f.Add(whole[:len(whole)/2])
	f.Add([]byte("-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		feed, err := mtls.ParseFeed(data, roots)
		if err != nil {
			if feed != nil {
				t.Fatal("a feed beside an error")
			}
			return
		}
		if feed.Number != fuzzNumber || feed.Len() != 1 || !feed.Revoked(mtls.Serial(fuzzSerial)) {
			t.Fatalf("believed %d with %d serials", feed.Number, feed.Len())
		}
		again, err := mtls.ParseFeed(slices.Concat([]byte("\n\n"), bytes.TrimSpace(data), []byte("\n \n")), roots)
		if err != nil || again.Number != feed.Number || again.Len() != feed.Len() {
			t.Fatalf("white space made a difference: %v", err)
		}
	})
}
