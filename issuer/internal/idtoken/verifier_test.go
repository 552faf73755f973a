package idtoken_test

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mayfly-ca/mayfly/issuer/idtokentest"
	"github.com/mayfly-ca/mayfly/issuer/internal/idtoken"
)

const audience = "mayfly:ci.example.com"

// claims holds overrides for a token's claims.
type claims = map[string]any

// start runs a provider until the test ends.
func start(t testing.TB, o idtokentest.Options) *idtokentest.Provider {
	t.Helper()
	p, err := idtokentest.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

// trust returns the configuration of a provider on loopback.
func trust(p *idtokentest.Provider, typ idtoken.Type) idtoken.Provider {
	out := idtoken.Provider{Name: "p-" + string(typ), Type: typ, Issuer: p.URL(), UnsafeHTTP: true}
	if typ == idtoken.People {
		out.ClientID = p.ClientID()
	}
	return out
}

func verifier(t testing.TB, providers ...idtoken.Provider) *idtoken.Verifier {
	t.Helper()
	v, err := idtoken.NewVerifier(providers, idtoken.Options{Logger: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(v.Close)
	return v
}

func mint(t testing.TB, p *idtokentest.Provider, overrides claims) string {
	t.Helper()
	token, err := p.Mint(overrides)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// forUs sets the audience of a token to mayfly's.
func forUs(overrides claims) claims {
	out := claims{"aud": audience}
	for k, v := range overrides {
		out[k] = v
	}
	return out
}

// wantRefused fails unless err is a *TokenError whose public text has part.
func wantRefused(t testing.TB, err error, part string) {
	t.Helper()
	var refused *idtoken.TokenError
	if !errors.As(err, &refused) {
		t.Fatalf("got %v, want a *TokenError about %q", err, part)
	}
	if !strings.Contains(refused.Public, part) {
		t.Errorf("refused for %q, want it to say %q", refused.Public, part)
	}
}

func TestVerifyReadsClaims(t *testing.T) {
	t.Parallel()
	p := start(t, idtokentest.Options{Type: idtoken.GitHub})
	v := verifier(t, trust(p, idtoken.GitHub))
	token := mint(t, p, forUs(claims{"jti": "id-1", "repository_property_team": "a,b"}))
	c, err := v.Verify(t.Context(), token, audience)
	if err != nil {
		t.Fatal(err)
	}
	if !c.Verified() || c.IsZero() || c.Restored() || !c.SingleUse() {
		t.Errorf("verified %v, zero %v, restored %v, single use %v", c.Verified(), c.IsZero(), c.Restored(), c.SingleUse())
	}
	got := []string{c.Issuer(), c.Audience(), c.TokenID(), c.Provider().ServerURL}
	if diff := cmp.Diff([]string{p.URL(), audience, "id-1", "https://github.com"}, got); diff != "" {
		t.Error(diff)
	}
	if d := c.ExpiresAt().Sub(c.IssuedAt()); d != 5*time.Minute {
		t.Errorf("exp - iat = %v", d)
	}
	if s, ok := c.String("repository_id"); !ok || s != "1339936803" {
		t.Errorf("repository_id = %q, %v", s, ok)
	}
	if _, ok := c.Get("environment"); ok {
		t.Error("a claim that is not there was found")
	}
}

func TestZeroClaimsAreEmpty(t *testing.T) {
	t.Parallel()
	var c idtoken.Claims
	if !c.IsZero() || c.Verified() || c.Subject() != "" || len(c.JSON()) != 0 || len(c.Names()) != 0 {
		t.Error("zero Claims say something")
	}
}

func TestClaimsAreImmutable(t *testing.T) {
	t.Parallel()
	p := idtoken.Provider{Name: "k8s", Type: idtoken.OIDC, Issuer: "https://k8s.example.com", Algorithms: []string{"RS256"}}
	c, err := idtoken.ParseClaims(p, []byte(`{"sub":"a","list":["x"],"tree":{"k":["y"]}}`))
	if err != nil {
		t.Fatal(err)
	}
	list, _ := c.Get("list")
	list.([]any)[0] = "changed"
	tree, _ := c.Get("tree")
	tree.(map[string]any)["k"].([]any)[0] = "changed"
	c.JSON()[0] = 'x'
	c.Provider().Algorithms[0] = "none"
	list, _ = c.Get("list")
	tree, _ = c.Get("tree")
	if diff := cmp.Diff([]any{[]any{"x"}, map[string]any{"k": []any{"y"}}, `{"sub":"a","list":["x"],"tree":{"k":["y"]}}`, "RS256"},
		[]any{list, tree, string(c.JSON()), c.Provider().Algorithms[0]}); diff != "" {
		t.Error(diff)
	}
	if c.Verified() {
		t.Error("recorded claims are verified")
	}
}

// TestProviderTypes is the table of the design: each type with its audience, its
// lifetime, and whether a token needs a jti.
func TestProviderTypes(t *testing.T) {
	t.Parallel()
	now := time.Now().Unix()
	lives := func(d time.Duration) claims { return forUs(claims{"iat": now, "exp": now + int64(d/time.Second)}) }
	person := func(d time.Duration) claims {
		c := lives(d)
		delete(c, "aud")
		return c
	}
	for _, typ := range []idtoken.Type{idtoken.GitHub, idtoken.Fly, idtoken.OIDC, idtoken.People} {
		t.Run(string(typ), func(t *testing.T) {
			t.Parallel()
			p := start(t, idtokentest.Options{Type: typ, ClientID: "mayfly-admin"})
			v := verifier(t, trust(p, typ))
			limit := map[idtoken.Type]time.Duration{
				idtoken.GitHub: 15 * time.Minute, idtoken.Fly: 15 * time.Minute, idtoken.OIDC: 24 * time.Hour, idtoken.People: 24 * time.Hour,
			}[typ]
			at := lives
			if typ == idtoken.People {
				at = person
			}
			if _, err := v.Verify(t.Context(), mint(t, p, at(limit)), audience); err != nil {
				t.Errorf("at the cap: %v", err)
			}
			_, err := v.Verify(t.Context(), mint(t, p, at(limit+time.Second)), audience)
			wantRefused(t, err, "lives for")

			without := at(time.Minute)
			without["jti"] = nil
			_, err = v.Verify(t.Context(), mint(t, p, without), audience)
			if typ.SingleUse() {
				wantRefused(t, err, "jti")
			} else if err != nil {
				t.Errorf("without jti: %v", err)
			}
		})
	}
}

func TestAudience(t *testing.T) {
	t.Parallel()
	p := start(t, idtokentest.Options{Type: idtoken.GitHub})
	v := verifier(t, trust(p, idtoken.GitHub))
	for _, ok := range []any{audience, []any{audience}} {
		if _, err := v.Verify(t.Context(), mint(t, p, claims{"aud": ok}), audience); err != nil {
			t.Errorf("aud %v: %v", ok, err)
		}
	}
	for name, tc := range map[string]struct {
		aud  any
		part string
	}{
		"the platform's default":   {"https://github.com/andreaso", "it is made for audience"},
		"another mayfly":           {"mayfly:other.example.com", "it is made for audience"},
		"the sessions audience":    {audience + ":sessions", "it is made for audience"},
		"a prefix":                 {"mayfly:ci.example", "it is made for audience"},
		"in another case":          {"mayfly:CI.example.com", "it is made for audience"},
		"several, ours among them": {[]any{audience, "https://sts.example.com"}, "exactly one"},
		"twice ours":               {[]any{audience, audience}, "exactly one"},
		"an empty array":           {[]any{}, "exactly one"},
		"an array of a number":     {[]any{1}, "exactly one"},
		"a number":                 {1, "aud is missing"},
		"an object":                {claims{"aud": audience}, "aud is missing"},
		"missing":                  {nil, "aud is missing"},
		"white space after":        {audience + " ", "it is made for audience"},
		"the empty string":         {"", "it is made for audience"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := v.Verify(t.Context(), mint(t, p, claims{"aud": tc.aud}), audience)
			wantRefused(t, err, tc.part)
		})
	}
	t.Run("asked for a URL", func(t *testing.T) {
		const aud = "https://github.com/andreaso"
		_, err := v.Verify(t.Context(), mint(t, p, claims{"aud": aud}), aud)
		wantRefused(t, err, "no audience of mayfly")
	})
}

func TestTimes(t *testing.T) {
	t.Parallel()
	p := start(t, idtokentest.Options{Type: idtoken.GitHub})
	v := verifier(t, trust(p, idtoken.GitHub))
	now := time.Now().Unix()
	for name, tc := range map[string]struct {
		claims claims
		part   string // "" means accepted
	}{
		"fresh":                     {claims{"iat": now}, ""},
		"expired within the leeway": {claims{"iat": now - 300, "exp": now - 20}, ""},
		"expired":                   {claims{"iat": now - 400, "exp": now - 32}, "expired"},
		"iat within the leeway":     {claims{"iat": now + 20}, ""},
		"iat in the future":         {claims{"iat": now + 40}, "iat is in the future"},
		"nbf within the leeway":     {claims{"iat": now, "nbf": now + 20}, ""},
		"nbf in the future":         {claims{"iat": now, "nbf": now + 40}, "nbf is in the future"},
		"no nbf":                    {claims{"nbf": nil}, ""},
		"fractions":                 {claims{"iat": float64(now) + 0.5, "exp": float64(now) + 60.25}, ""},
		"exp missing":               {claims{"exp": nil}, "exp is missing"},
		"nbf at iat":                {claims{"iat": now, "exp": now + 60, "nbf": now}, ""},
		"exp a string":              {claims{"exp": "9999999999"}, "exp is missing or not a time"},
		"exp a boolean":             {claims{"exp": true}, "exp is missing or not a time"},
		"exp negative":              {claims{"exp": -1}, "exp is missing or not a time"},
		"exp beyond all years":      {claims{"exp": 1e18}, "exp is missing or not a time"},
		"exp before iat":            {claims{"iat": now, "exp": now - 5}, "not after iat"},
		"nbf a string":              {claims{"nbf": "now"}, "nbf is not a time"},
		"iat long ago":              {claims{"iat": 1, "nbf": 1, "exp": now + 60}, "lives for"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := v.Verify(t.Context(), mint(t, p, forUs(tc.claims)), audience)
			if tc.part == "" && err != nil {
				t.Error(err)
			}
			if tc.part != "" {
				wantRefused(t, err, tc.part)
			}
		})
	}
	t.Run("no iat at all", func(t *testing.T) {
		c := p.Claims(forUs(nil))
		delete(c, "iat")
		_, err := v.Verify(t.Context(), signed(t, p, c, nil), audience)
		wantRefused(t, err, "iat is missing")
	})
}

func TestRequiredStrings(t *testing.T) {
	t.Parallel()
	p := start(t, idtokentest.Options{Type: idtoken.Fly})
	v := verifier(t, trust(p, idtoken.Fly))
	for name, tc := range map[string]struct {
		claims claims
		part   string
	}{
		"jti empty":    {claims{"jti": ""}, "jti"},
		"jti a number": {claims{"jti": 7}, "jti"},
		"jti too long": {claims{"jti": strings.Repeat("x", 257)}, "jti is longer"},
		"jti at most":  {claims{"jti": strings.Repeat("x", 256)}, ""},
		"sub empty":    {claims{"sub": ""}, "sub"},
		"sub missing":  {claims{"sub": nil}, "sub"},
		"sub a list":   {claims{"sub": []any{"a"}}, "sub"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := v.Verify(t.Context(), mint(t, p, forUs(tc.claims)), audience)
			if tc.part == "" && err != nil {
				t.Error(err)
			}
			if tc.part != "" {
				wantRefused(t, err, tc.part)
			}
		})
	}
}

// TestIssuer is ATTACKS 2: only the exact configured string is the issuer.
func TestIssuer(t *testing.T) {
	t.Parallel()
	p := start(t, idtokentest.Options{Type: idtoken.GitHub, Path: "/enterprise"})
	v := verifier(t, trust(p, idtoken.GitHub))
	if _, err := v.Verify(t.Context(), mint(t, p, forUs(nil)), audience); err != nil {
		t.Errorf("the issuer with a path: %v", err)
	}
	url := p.URL()
	for name, iss := range map[string]any{
		"a trailing slash":   url + "/",
		"without the path":   strings.TrimSuffix(url, "/enterprise"),
		"a longer path":      url + "/x",
		"userinfo":           strings.Replace(url, "http://", "http://github@", 1),
		"another scheme":     strings.Replace(url, "http://", "https://", 1),
		"localhost":          strings.Replace(url, "127.0.0.1", "localhost", 1),
		"upper case":         strings.ToUpper(url),
		"a prefix of it":     url[:len(url)-1],
		"as a prefix":        url + ".attacker.example",
		"a list":             []any{url},
		"missing":            nil,
		"of another service": "https://token.actions.githubusercontent.com",
	} {
		t.Run(name, func(t *testing.T) {
			_, err := v.Verify(t.Context(), mint(t, p, forUs(claims{"iss": iss})), audience)
			wantRefused(t, err, "iss")
		})
	}
}

// TestPeople is ATTACKS 58: other tokens that a login provider signs, which are no ID
// tokens for this client.
func TestPeople(t *testing.T) {
	t.Parallel()
	p := start(t, idtokentest.Options{Type: idtoken.People, ClientID: "mayfly"})
	hub := start(t, idtokentest.Options{Type: idtoken.GitHub})
	v := verifier(t, trust(p, idtoken.People), trust(hub, idtoken.GitHub))
	sign := func(c claims, typ string) string {
		return signed(t, p, p.Claims(c), map[string]any{"typ": typ})
	}
	for name, token := range map[string]string{
		"an ID token":        sign(nil, "JWT"),
		"with azp":           sign(claims{"azp": "mayfly"}, "JWT"),
		"audience as array":  sign(claims{"aud": []any{"mayfly"}}, "JWT"),
		"with its full type": sign(nil, "application/jwt"),
	} {
		t.Run(name, func(t *testing.T) {
			c, err := v.Verify(t.Context(), token, audience)
			if err != nil {
				t.Fatal(err)
			}
			if c.Audience() != "mayfly" || c.SingleUse() {
				t.Errorf("audience %q, single use %v", c.Audience(), c.SingleUse())
			}
		})
	}
	for name, tc := range map[string]struct{ token, part string }{
		"an access token":           {sign(nil, "at+jwt"), "access token"},
		"an access token in full":   {sign(nil, "Application/AT+JWT"), "access token"},
		"a logout token":            {sign(nil, "logout+jwt"), "logout token"},
		"events":                    {sign(claims{"events": claims{}}, "JWT"), "events"},
		"events, null in the token": {signed(t, p, with(p.Claims(nil), "events", nil), nil), "events"},
		"another client's azp":      {sign(claims{"azp": "other"}, "JWT"), "azp"},
		"azp as a list":             {sign(claims{"azp": []any{"mayfly"}}, "JWT"), "azp"},
		"another client":            {sign(claims{"aud": "other"}, "JWT"), "it is made for audience"},
		"for machines' audience":    {sign(claims{"aud": audience}, "JWT"), "it is made for audience"},
		"a machine's, as a person":  {mint(t, hub, claims{"aud": "mayfly"}), "it is made for audience"},
		"signed by the machines'":   {mint(t, hub, claims{"iss": p.URL(), "aud": "mayfly"}), "key"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := v.Verify(t.Context(), tc.token, audience)
			wantRefused(t, err, tc.part)
		})
	}
	t.Run("a workload may carry them", func(t *testing.T) {
		w := start(t, idtokentest.Options{Type: idtoken.OIDC})
		v := verifier(t, trust(w, idtoken.OIDC))
		if _, err := v.Verify(t.Context(), mint(t, w, forUs(claims{"azp": "other", "events": claims{}})), audience); err != nil {
			t.Error(err)
		}
	})
}

func TestRestore(t *testing.T) {
	t.Parallel()
	p := start(t, idtokentest.Options{Type: idtoken.People})
	hub := start(t, idtokentest.Options{Type: idtoken.GitHub})
	v := verifier(t, trust(p, idtoken.People), trust(hub, idtoken.GitHub))
	c, err := v.Verify(t.Context(), mint(t, p, nil), "")
	if err != nil {
		t.Fatal(err)
	}
	back, err := v.Restore(c.Provider().Name, c.JSON())
	if err != nil {
		t.Fatal(err)
	}
	if !back.Verified() || !back.Restored() || back.Subject() != c.Subject() {
		t.Errorf("restored claims are %+v", back)
	}
	_, err = v.Restore("p-github", c.JSON())
	wantRefused(t, err, "no longer one of people")
	_, err = v.Restore("gone", c.JSON())
	wantRefused(t, err, "no longer one of people")
	_, err = v.Restore(c.Provider().Name, []byte(`{"iss":"https://other.example.com","aud":"mayfly","sub":"x"}`))
	wantRefused(t, err, "log in again")
}

// TestWithKeepsKeys checks that a reload fetches no unchanged provider again, and
// stops refreshing the removed ones.
func TestWithKeepsKeys(t *testing.T) {
	t.Parallel()
	kept, gone := start(t, idtokentest.Options{Type: idtoken.GitHub}), start(t, idtokentest.Options{Type: idtoken.Fly})
	old := verifier(t, trust(kept, idtoken.GitHub), trust(gone, idtoken.Fly))
	for p, typ := range map[*idtokentest.Provider]string{kept: "github", gone: "fly"} {
		if _, err := old.Verify(t.Context(), mint(t, p, forUs(nil)), audience); err != nil {
			t.Fatalf("%s: %v", typ, err)
		}
	}
	if _, err := old.With(nil); err == nil {
		t.Error("no provider at all was accepted")
	}
	next, err := old.With([]idtoken.Provider{trust(kept, idtoken.GitHub)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(next.Close)
	if _, err := next.Verify(t.Context(), mint(t, kept, forUs(nil)), audience); err != nil {
		t.Error(err)
	}
	if _, keys := kept.Fetches(); keys != 1 {
		t.Errorf("keys were fetched %d times, want once", keys)
	}
	_, err = next.Verify(t.Context(), mint(t, gone, forUs(nil)), audience)
	wantRefused(t, err, "none of the providers")
	// A request that began before the reload ends with the old providers.
	if _, err := old.Verify(t.Context(), mint(t, gone, forUs(nil)), audience); err != nil {
		t.Errorf("under the old rules: %v", err)
	}
}

func TestContextEnds(t *testing.T) {
	t.Parallel()
	p := start(t, idtokentest.Options{Type: idtoken.GitHub})
	p.SetFaults(idtokentest.Faults{Discovery: idtokentest.Fault{Delay: time.Hour}})
	v := verifier(t, trust(p, idtoken.GitHub))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := v.Verify(ctx, mint(t, p, forUs(nil)), audience); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

// elsewhere returns a loopback server that must get no request.
func elsewhere(t testing.TB) *httptest.Server {
	s := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("a fetch was led astray") }))
	t.Cleanup(s.Close)
	return s
}
