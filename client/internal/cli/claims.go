package cli

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/mayfly-ca/mayfly/client/wire"
)

// claimSet is the payload of a token. Nothing in it is verified.
type claimSet struct {
	raw    json.RawMessage
	values map[string]json.RawMessage
	// person reports whether the token is from a login.
	person bool
}

// readClaims parses the payload of a compact JWS and ignores the signature.
func readClaims(token string) (claimSet, error) {
	if len(token) > wire.MaxTokenBytes {
		return claimSet{}, fmt.Errorf("the token is over %d bytes", wire.MaxTokenBytes)
	}
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return claimSet{}, errors.New("the token has not three parts")
	}
	raw, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return claimSet{}, errors.New("the token's payload is not base64url")
	}
	c := claimSet{raw: raw}
	if err := json.Unmarshal(raw, &c.values); err != nil || c.values == nil {
		return claimSet{}, errors.New("the token's payload is not a JSON object")
	}
	return c, nil
}

// text returns a claim that is a string, else "".
func (c claimSet) text(name string) string {
	var s string
	if json.Unmarshal(c.values[name], &s) != nil {
		return ""
	}
	return s
}

// at returns a claim that is a time in seconds, else the zero time.
func (c claimSet) at(name string) time.Time {
	var n float64
	if json.Unmarshal(c.values[name], &n) != nil {
		return time.Time{}
	}
	return time.Unix(int64(n), 0)
}

// audience returns aud as one string.
func (c claimSet) audience() string {
	if s := c.text("aud"); s != "" {
		return s
	}
	return string(c.values["aud"])
}
