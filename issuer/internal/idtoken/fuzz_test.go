package idtoken_test

import (
	"crypto"
	"encoding/json"
	"errors"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"

	"github.com/mayfly-ca/mayfly/issuer/idtokentest"
	"github.com/mayfly-ca/mayfly/issuer/internal/idtoken"
)

// goOIDC returns a go-oidc verifier to compare with.
func goOIDC(t testing.TB, p *idtokentest.Provider, alg, audience string) *oidc.IDTokenVerifier {
	t.Helper()
	_, key := p.Signer()
	return oidc.NewVerifier(p.URL(), &oidc.StaticKeySet{PublicKeys: []crypto.PublicKey{key.Public()}},
		&oidc.Config{ClientID: audience, SupportedSigningAlgs: []string{alg}})
}

// FuzzVerify replaces bytes of a good token: cut bytes at a place, by edit. An
// accepted token must be the good token byte for byte, since a token has one spelling,
// and go-oidc must accept it too.
func FuzzVerify(f *testing.F) {
	p := start(f, idtokentest.Options{Type: idtoken.OIDC, Algorithm: idtoken.EdDSA})
	pinned := trust(p, idtoken.OIDC)
	pinned.Algorithms = []string{idtoken.EdDSA}
	v, oracle := verifier(f, pinned), goOIDC(f, p, idtoken.EdDSA, audience)
	good := mint(f, p, forUs(claims{"aud": []any{audience}, "x": claims{"y": []any{1, "z", nil}}}))
	dot := strings.IndexByte(good, '.')
	f.Add("", uint(0), uint(0))
	f.Add("", uint(0), uint(len(good)))
	f.Add("=", uint(len(good)), uint(0))
	f.Add("\n", uint(dot), uint(0))
	f.Add("eyJhbGciOiJub25lIn0", uint(0), uint(dot))
	f.Add("Q", uint(len(good)-1), uint(1))
	f.Add(`{"payload":"","signatures":[]}`, uint(0), uint(len(good)))
	f.Fuzz(func(t *testing.T, edit string, place, cut uint) {
		place %= uint(len(good) + 1)
		cut %= uint(len(good)) - place + 1
		raw := good[:place] + edit + good[place+cut:]
		c, err := v.Verify(t.Context(), raw, audience)
		if err != nil {
			var refused *idtoken.TokenError
			if !errors.As(err, &refused) {
				t.Fatalf("%v is no *TokenError", err)
			}
			if !c.IsZero() || raw == good {
				t.Fatalf("claims beside an error, or the good token refused: %v", err)
			}
			return
		}
		if raw != good {
			t.Fatalf("accepted, and never minted: %q", raw)
		}
		if _, err := oracle.Verify(t.Context(), raw); err != nil {
			t.Fatalf("go-oidc refuses it: %v", err)
		}
	})
}

// FuzzClaims signs any header members and payload with the right key. Accepted claims
// must meet all requirements of the design, also as encoding/json reads them, and
// go-oidc must accept the token.
func FuzzClaims(f *testing.F) {
	p := start(f, idtokentest.Options{Type: idtoken.People, Algorithm: idtoken.EdDSA})
	pinned := trust(p, idtoken.People)
	pinned.Algorithms = []string{idtoken.EdDSA}
	v, oracle := verifier(f, pinned), goOIDC(f, p, idtoken.EdDSA, p.ClientID())
	// ISSUER and NOW are replaced by this process's own.
	for payload, typ := range map[string]string{
		`{"iss":"ISSUER","aud":"mayfly","sub":"a","iat":NOW,"exp":NOW9}`:                                  "JWT",
		`{"iss":"ISSUER","aud":["mayfly"],"sub":"a","iat":NOW,"exp":NOW9.5,"azp":"mayfly"}`:               "",
		`{"iss":"ISSUER","aud":"mayfly","sub":"a","iat":NOW,"exp":NOW9,"events":{}}`:                      "logout+jwt",
		`{"iss":"ISSUER","aud":"mayfly","sub":"\u2028","iat":NOW,"exp":NOW9,"nbf":1.5,"x":{"y":[{}]}}`:    "at+jwt",
		`{"iss":"ISSUER","iss":"ISSUER","aud":"mayfly","sub":"a","iat":NOW,"exp":NOW9,"SUB":1,"jti":"x"}`: "JWT",
	} {
		f.Add(payload, typ)
	}
	f.Fuzz(func(t *testing.T, payload, typ string) {
		second := strconv.FormatInt(time.Now().Unix(), 10)
		payload = strings.ReplaceAll(payload, "ISSUER", p.URL())
		payload = strings.ReplaceAll(payload, "NOW9", second[:len(second)-4]+"9999")
		payload = strings.ReplaceAll(payload, "NOW", second)
		raw, err := p.Sign([]byte(payload), map[string]any{"typ": typ})
		if err != nil {
			t.Skip("not a header")
		}
		c, err := v.Verify(t.Context(), raw, "")
		if err != nil {
			return
		}
		var got claims
		if err := json.Unmarshal([]byte(payload), &got); err != nil {
			t.Fatalf("encoding/json cannot read it: %v", err)
		}
		if len(got) != len(c.Names()) {
			t.Fatalf("%d claims, encoding/json reads %d", len(c.Names()), len(got))
		}
		aud, _ := got["aud"].(string)
		if list, ok := got["aud"].([]any); ok && len(list) == 1 {
			aud, _ = list[0].(string)
		}
		_, events := got["events"]
		exp, _ := got["exp"].(float64)
		iat, _ := got["iat"].(float64)
		now := float64(time.Now().Unix())
		switch {
		case got["iss"] != p.URL(), aud != p.ClientID(), events, strings.EqualFold(typ, "at+jwt"), strings.EqualFold(typ, "logout+jwt"),
			exp < now-31, iat > now+31, exp-iat > 86401, c.Subject() == "", !c.Verified():
			t.Fatalf("accepted: typ %q, %s", typ, payload)
		}
		if _, err := oracle.Verify(t.Context(), raw); err != nil && !foldedTwice(got) && exp > now+1 {
			t.Fatalf("go-oidc refuses it: %v: %s", err, payload)
		}
	})
}

// foldedTwice reports whether two names differ only in case. The structs of
// encoding/json, and so go-oidc, treat these as equal; this package compares bytes.
func foldedTwice(c claims) bool {
	seen := map[string]bool{}
	for name := range c {
		folded := strings.ToLower(strings.ToUpper(name))
		if seen[folded] {
			return true
		}
		seen[folded] = true
		for _, read := range []string{"iss", "sub", "aud", "exp", "iat", "nbf", "nonce", "at_hash", "_claim_names", "_claim_sources"} {
			if folded == read && name != read || strings.HasPrefix(name, "_claim") || name == "nonce" || name == "at_hash" {
				return true
			}
		}
	}
	return false
}

// FuzzJSON checks that encoding/json reads an accepted text as the same value.
func FuzzJSON(f *testing.F) {
	for _, s := range []string{
		`{}`, `{"a":1}`, ` {"a":[true,false,null,-0.5e+10,"\u00e9\ud83d\ude00\\\/\b"],"b":{"c":{}}} `,
		`{"a":1,"a":2}`, `{"a":"\ud800"}`, `{"a":01}`, `{"a":}`, "{\"a\":\"\xff\"}", `{"a":1}{}`,
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got, err := idtoken.ParseObject(s)
		if err != nil {
			return
		}
		d := json.NewDecoder(strings.NewReader(s))
		d.UseNumber()
		var want map[string]any
		if err := d.Decode(&want); err != nil {
			t.Fatalf("encoding/json refuses it: %v", err)
		}
		if !reflect.DeepEqual(got, want) {
			t.Fatalf("got %v, encoding/json reads %v", got, want)
		}
	})
}
