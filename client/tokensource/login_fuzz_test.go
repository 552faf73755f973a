package tokensource

import (
	"encoding/base64"
	"testing"
)

// FuzzPayload checks that any input is parsed or refused, and that an audience comes
// only from a valid claim.
func FuzzPayload(f *testing.F) {
	enc := base64.RawURLEncoding.EncodeToString
	f.Add("e30." + enc([]byte(`{"iss":"https://a","aud":["mayfly"],"nonce":"n","iat":1,"exp":2}`)) + ".c2ln")
	f.Add("e30." + enc([]byte(`{"aud":"mayfly","exp":1e99}`)) + ".")
	f.Add("..")
	f.Fuzz(func(t *testing.T, raw string) {
		c, err := payload(raw)
		if err == nil && c == nil {
			t.Fatal("neither claims nor an error")
		}
		if err == nil && len(raw) > maxLoginToken {
			t.Fatal("an oversized token was read")
		}
	})
}
