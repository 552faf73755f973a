package idtoken_test

import (
	"crypto"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"maps"
	"strings"
	"testing"

	"github.com/mayfly-ca/mayfly/issuer/idtokentest"
	"github.com/mayfly-ca/mayfly/issuer/internal/idtoken"
)

func signed(t testing.TB, p *idtokentest.Provider, c claims, header map[string]any) string {
	t.Helper()
	payload, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	token, err := p.Sign(payload, header)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

func with(c claims, name string, v any) claims {
	c = maps.Clone(c)
	c[name] = v
	return c
}

var b64 = base64.RawURLEncoding

// rs256 signs any header and payload with the provider's own key.
func rs256(t testing.TB, p *idtokentest.Provider, header, payload string) string {
	t.Helper()
	_, key := p.Signer()
	input := b64.EncodeToString([]byte(header)) + "." + b64.EncodeToString([]byte(payload))
	sum := sha256.Sum256([]byte(input))
	sig, err := key.Sign(rand.Reader, sum[:], crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	return input + "." + b64.EncodeToString(sig)
}

func payloadOf(t testing.TB, p *idtokentest.Provider, overrides claims) string {
	t.Helper()
	data, err := json.Marshal(p.Claims(forUs(overrides)))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// TestAlgorithms is ATTACKS 15: only the provider's pinned algorithm is accepted.
func TestAlgorithms(t *testing.T) {
	t.Parallel()
	p := start(t, idtokentest.Options{Type: idtoken.GitHub})
	v := verifier(t, trust(p, idtoken.GitHub))
	kid, key := p.Signer()
	payload := b64.EncodeToString([]byte(payloadOf(t, p, nil)))
	header := func(s string) string { return b64.EncodeToString([]byte(s)) }
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	hs256 := func(secret []byte) string {
		input := header(`{"alg":"HS256","kid":"`+kid+`"}`) + "." + payload
		mac := hmac.New(sha256.New, secret)
		mac.Write([]byte(input))
		return input + "." + b64.EncodeToString(mac.Sum(nil))
	}
	if _, err := v.Verify(t.Context(), rs256(t, p, `{"alg":"RS256","kid":"`+kid+`"}`, payloadOf(t, p, nil)), audience); err != nil {
		t.Errorf("RS256: %v", err)
	}
	for name, tc := range map[string]struct{ token, part string }{
		"none, no signature":    {header(`{"alg":"none"}`) + "." + payload + ".", "signature"},
		"none, some signature":  {header(`{"alg":"none"}`) + "." + payload + ".AA", "alg"},
		"None":                  {header(`{"alg":"None"}`) + "." + payload + ".AA", "alg"},
		"HS256 by the DER":      {hs256(public), "alg"},
		"HS256 by the PEM":      {hs256(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public})), "alg"},
		"HS256 by the modulus":  {hs256(key.Public().(*rsa.PublicKey).N.Bytes()), "alg"},
		"an algorithm not ours": {rs256(t, p, `{"alg":"PS256","kid":"`+kid+`"}`, payloadOf(t, p, nil)), "alg"},
		"rs256 in lower case":   {rs256(t, p, `{"alg":"rs256","kid":"`+kid+`"}`, payloadOf(t, p, nil)), "alg"},
		"a list":                {rs256(t, p, `{"alg":["RS256"],"kid":"`+kid+`"}`, payloadOf(t, p, nil)), "alg"},
		"missing":               {rs256(t, p, `{"kid":"`+kid+`"}`, payloadOf(t, p, nil)), "alg"},
		"ES256 header":          {rs256(t, p, `{"alg":"ES256","kid":"`+kid+`"}`, payloadOf(t, p, nil)), "alg"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := v.Verify(t.Context(), tc.token, audience)
			wantRefused(t, err, tc.part)
		})
	}
}

func TestConfiguredAlgorithms(t *testing.T) {
	t.Parallel()
	for _, alg := range []string{idtoken.RS256, idtoken.ES256, idtoken.EdDSA} {
		t.Run(alg, func(t *testing.T) {
			t.Parallel()
			p := start(t, idtokentest.Options{Type: idtoken.OIDC, Algorithm: alg})
			pinned := trust(p, idtoken.OIDC)
			pinned.Algorithms = []string{alg}
			token := mint(t, p, forUs(nil))
			v := verifier(t, pinned)
			if _, err := v.Verify(t.Context(), token, audience); err != nil {
				t.Fatal(err)
			}
			forged := mint(t, p, forUs(claims{"sub": "system:masters"}))
			mixed := token[:strings.LastIndexByte(token, '.')] + forged[strings.LastIndexByte(forged, '.'):]
			_, err := v.Verify(t.Context(), mixed, audience)
			wantRefused(t, err, "signature")

			other := idtoken.RS256
			if alg == other {
				other = idtoken.ES256
			}
			pinned.Algorithms = []string{other}
			_, err = verifier(t, pinned).Verify(t.Context(), token, audience)
			wantRefused(t, err, "pinned")
		})
	}
}

// TestKeysInTheHeader is ATTACKS 16: a header that brings its own key.
func TestKeysInTheHeader(t *testing.T) {
	t.Parallel()
	p := start(t, idtokentest.Options{Type: idtoken.GitHub})
	thief := start(t, idtokentest.Options{Type: idtoken.GitHub})
	astray := elsewhere(t)
	v := verifier(t, trust(p, idtoken.GitHub))
	kid, _ := p.Signer()
	jwk := `{"kty":"RSA","e":"AQAB","n":"` + b64.EncodeToString(publicKey(thief).N.Bytes()) + `","kid":"` + kid + `"}`
	for name, member := range map[string]string{
		"jwk": `"jwk":` + jwk,
		"jku": `"jku":"` + astray.URL + `"`,
		"x5u": `"x5u":"` + astray.URL + `"`,
		"x5c": `"x5c":["AAAA"]`,
	} {
		t.Run(name, func(t *testing.T) {
			header := `{"alg":"RS256","kid":"` + kid + `",` + member + `}`
			_, err := v.Verify(t.Context(), rs256(t, thief, header, payloadOf(t, p, nil)), audience)
			wantRefused(t, err, "signature")
			// Next to a good signature, the header's key is ignored.
			if _, err := v.Verify(t.Context(), rs256(t, p, header, payloadOf(t, p, nil)), audience); err != nil {
				t.Errorf("the provider's own: %v", err)
			}
		})
	}
}

func publicKey(p *idtokentest.Provider) *rsa.PublicKey {
	_, key := p.Signer()
	return key.Public().(*rsa.PublicKey)
}

// TestSpelling is ATTACKS 18 and 26: one token has one spelling.
func TestSpelling(t *testing.T) {
	t.Parallel()
	p := start(t, idtokentest.Options{Type: idtoken.GitHub})
	v := verifier(t, trust(p, idtoken.GitHub))
	good := mint(t, p, forUs(nil))
	if _, err := v.Verify(t.Context(), good, audience); err != nil {
		t.Fatal(err)
	}
	parts := strings.Split(good, ".")
	kid, _ := p.Signer()
	// The last character of this payload has spare bits.
	padded := rs256(t, p, `{"alg":"RS256","kid":"`+kid+`"}`, payloadOf(t, p, nil)+strings.Repeat(" ", 3-len(payloadOf(t, p, nil))%3+1))
	for name, tc := range map[string]struct{ token, part string }{
		"empty":                     {"", "empty"},
		"garbage":                   {"garbage", "compact JWS"},
		"two parts":                 {parts[0] + "." + parts[1], "compact JWS"},
		"four parts":                {good + ".AA", "compact JWS"},
		"five, as a JWE":            {good + ".AA.AA", "compact JWS"},
		"many dots":                 {strings.Repeat(".", 16<<10), "compact JWS"},
		"only dots":                 {"..", "canonical"},
		"a space before":            {" " + good, "compact JWS"},
		"a line end after":          {good + "\n", "compact JWS"},
		"a line end within":         {parts[0] + ".\n" + parts[1] + "." + parts[2], "compact JWS"},
		"a carriage return within":  {parts[0] + "." + parts[1] + ".\r" + parts[2], "compact JWS"},
		"padding":                   {good + "==", "compact JWS"},
		"the other alphabet":        {parts[0] + "." + parts[1] + ".+/" + parts[2][2:], "compact JWS"},
		"NUL":                       {good + "\x00", "compact JWS"},
		"a letter that looks alike": {strings.Replace(good, "e", "е", 1), "compact JWS"},
		"bits after the signature":  {respell(t, good, 2), "signature is not canonical"},
		"bits after the payload":    {respell(t, padded, 1), "payload is not canonical"},
		"JSON serialisation": {`{"payload":"` + parts[1] + `","protected":"` + parts[0] + `","signature":"` + parts[2] + `"}`,
			"compact JWS"},
		"too large by one": {strings.Repeat("A", 16<<10+1), "larger than 16384"},
		"huge":             {strings.Repeat("A", 10<<20), "larger than 16384"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := v.Verify(t.Context(), tc.token, audience)
			wantRefused(t, err, tc.part)
		})
	}
	t.Run("as large as may be", func(t *testing.T) {
		fill := strings.Repeat("x", 10900)
		token := mint(t, p, forUs(claims{"fill": fill}))
		if len(token) > 16<<10 || len(token) < 15<<10 {
			t.Fatalf("the test's token is of %d bytes", len(token))
		}
		if _, err := v.Verify(t.Context(), token, audience); err != nil {
			t.Error(err)
		}
	})
}

// respell sets a spare bit of the last character of one part. A lenient decoder would
// ignore it.
func respell(t testing.TB, token string, part int) string {
	t.Helper()
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	parts := strings.Split(token, ".")
	s := parts[part]
	if len(s)%4 == 0 {
		t.Fatalf("part %d has no spare bits", part)
	}
	i := strings.IndexByte(alphabet, s[len(s)-1])
	parts[part] = s[:len(s)-1] + alphabet[i^1:i^1+1]
	lenient, err := b64.DecodeString(parts[part])
	if want, _ := b64.DecodeString(s); err != nil || string(lenient) != string(want) {
		t.Fatal("the respelled part is not the same to a lenient decoder")
	}
	return strings.Join(parts, ".")
}

// TestStrictJSON checks that JSON with two possible readings is refused.
func TestStrictJSON(t *testing.T) {
	t.Parallel()
	p := start(t, idtokentest.Options{Type: idtoken.OIDC})
	v := verifier(t, trust(p, idtoken.OIDC))
	kid, _ := p.Signer()
	header := `{"alg":"RS256","typ":"JWT","kid":"` + kid + `"}`
	payload := payloadOf(t, p, nil)
	add := func(members string) string { return payload[:len(payload)-1] + "," + members + "}" }
	for name, tc := range map[string]struct{ header, payload, part string }{
		"as it should be":              {header, add(`"x":{"a":1,"b":[{"a":1},{"a":2}],"c":"\ud83d\ude00\u00e9\/"}`), ""},
		"white space":                  {header, " {\n" + payload[1:] + "\t\r\n", ""},
		"a name in two cases":          {header, add(`"SUB":"other"`), ""},
		"sub twice":                    {header, add(`"sub":"other"`), "payload"},
		"sub twice, escaped":           {header, add(`"s\u0075b":"other"`), "payload"},
		"aud twice":                    {header, add(`"aud":"` + audience + `"`), "payload"},
		"twice, deep":                  {header, add(`"x":[{"y":{"a":1,"a":1}}]`), "payload"},
		"alg twice":                    {`{"alg":"RS256","alg":"RS256","kid":"` + kid + `"}`, payload, "header"},
		"crit":                         {`{"alg":"RS256","kid":"` + kid + `","crit":["exp"]}`, payload, "crit"},
		"crit, empty":                  {`{"alg":"RS256","kid":"` + kid + `","crit":null}`, payload, "crit"},
		"b64 false, critical":          {`{"alg":"RS256","kid":"` + kid + `","b64":false,"crit":["b64"]}`, payload, "crit"},
		"kid a number":                 {`{"alg":"RS256","kid":7}`, payload, "kid"},
		"typ a list":                   {`{"alg":"RS256","kid":"` + kid + `","typ":["JWT"]}`, payload, "typ"},
		"header an array":              {`[]`, payload, "header"},
		"header a string":              {`"alg"`, payload, "header"},
		"payload an array":             {header, `[` + payload + `]`, "payload"},
		"payload empty":                {header, ``, "payload"},
		"payload null":                 {header, `null`, "payload"},
		"data after it":                {header, payload + "{}", "payload"},
		"a trailing comma":             {header, add(``), "payload"},
		"a comment":                    {header, payload + "//", "payload"},
		"cut off":                      {header, payload[:len(payload)-1], "payload"},
		"not UTF-8":                    {header, add("\"x\":\"\xff\""), "payload"},
		"an unpaired surrogate":        {header, add(`"x":"\ud800"`), "payload"},
		"a low surrogate first":        {header, add(`"x":"\udc00\ud800"`), "payload"},
		"a high one twice":             {header, add(`"x":"\ud800\ud800"`), "payload"},
		"NUL":                          {header, add(`"x":"\u0000"`), "payload"},
		"a raw control character":      {header, add("\"x\":\"\n\""), "payload"},
		"an unknown escape":            {header, add(`"x":"\x41"`), "payload"},
		"a number with a leading zero": {header, add(`"x":01`), "payload"},
		"a hexadecimal number":         {header, add(`"x":0x1`), "payload"},
		"NaN":                          {header, add(`"x":NaN`), "payload"},
		"True":                         {header, add(`"x":True`), "payload"},
		"nested at the bound":          {header, add(`"x":` + strings.Repeat("[", 15) + strings.Repeat("]", 15)), ""},
		"nested beyond it":             {header, add(`"x":` + strings.Repeat("[", 16) + strings.Repeat("]", 16)), "payload"},
		"nested far beyond":            {header, add(`"x":` + strings.Repeat("[", 5000) + strings.Repeat("]", 5000)), "payload"},
		"too many values":              {header, add(`"x":[` + strings.Repeat("1,", 4096) + `1]`), "payload"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := v.Verify(t.Context(), rs256(t, p, tc.header, tc.payload), audience)
			if tc.part == "" && err != nil {
				t.Error(err)
			}
			if tc.part != "" {
				wantRefused(t, err, tc.part)
			}
		})
	}
}
