package idtoken

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"math/big"
	"strings"
)

// MaxTokenBytes bounds a token, and is checked before anything else.
const MaxTokenBytes = 16 << 10

// jws is a compact JWS (RFC 7515 section 3.1), split into its parts and not yet
// verified.
type jws struct {
	alg, kid, typ string
	payload       string
	object        map[string]any // of the payload
	input         string         // the signed text: header.payload
	signature     []byte
}

// parseJWS parses a token, which has one valid spelling: at most MaxTokenBytes, three
// base64url parts, no padding and no stray bits. Two different strings are therefore
// never the same token. It checks size and alphabet before it splits or decodes. It
// ignores header members that name keys (jku, jwk, x5u, x5c) and refuses crit, because
// it supports no extension.
func parseJWS(raw string) (*jws, error) {
	first, second, err := dots(raw)
	if err != nil {
		return nil, err
	}
	header, err := decodePart(raw[:first])
	if err != nil {
		return nil, &TokenError{Public: "its header is not canonical base64url", Err: err}
	}
	payload, err := decodePart(raw[first+1 : second])
	if err != nil {
		return nil, &TokenError{Public: "its payload is not canonical base64url", Err: err}
	}
	signature, err := decodePart(raw[second+1:])
	if err != nil {
		return nil, &TokenError{Public: "its signature is not canonical base64url", Err: err}
	}
	t := &jws{payload: string(payload), input: raw[:second], signature: signature}
	if err := t.readHeader(string(header)); err != nil {
		return nil, err
	}
	if t.object, err = parseObject(t.payload); err != nil {
		return nil, &TokenError{Public: "its payload is not one strict JSON object", Err: err}
	}
	return t, nil
}

// dots returns the positions of the two dots in raw.
func dots(raw string) (first, second int, err error) {
	if raw == "" {
		return 0, 0, refuse("it is empty")
	}
	if len(raw) > MaxTokenBytes {
		return 0, 0, refuse("it is larger than %d bytes", MaxTokenBytes)
	}
	first, second = -1, -1
	for i := range len(raw) {
		switch b := raw[i]; {
		case b >= 'A' && b <= 'Z', b >= 'a' && b <= 'z', b >= '0' && b <= '9', b == '-', b == '_':
		case b == '.' && first < 0:
			first = i
		case b == '.' && second < 0:
			second = i
		default:
			return 0, 0, refuse("it is not a compact JWS: three parts of base64url without padding")
		}
	}
	if second < 0 {
		return 0, 0, refuse("it is not a compact JWS: three parts of base64url without padding")
	}
	return first, second, nil
}

// strictBase64 refuses stray bits after the last byte. It alone would skip line ends,
// but dots has refused them.
var strictBase64 = base64.RawURLEncoding.Strict()

func decodePart(s string) ([]byte, error) {
	if s == "" {
		return nil, errors.New("empty part")
	}
	return strictBase64.DecodeString(s)
}

func (t *jws) readHeader(text string) error {
	header, err := parseObject(text)
	if err != nil {
		return &TokenError{Public: "its header is not one strict JSON object", Err: err}
	}
	if _, ok := header["crit"]; ok {
		return refuse("its header has crit, of which nothing is understood here")
	}
	for name, to := range map[string]*string{"alg": &t.alg, "kid": &t.kid, "typ": &t.typ} {
		v, ok := header[name]
		if !ok {
			continue
		}
		if *to, ok = v.(string); !ok {
			return refuse("%s of its header is not a string", name)
		}
	}
	if t.alg == "" {
		return refuse("its header has no alg")
	}
	return nil
}

// mediaType normalizes typ for comparison, as in RFC 7515 section 4.1.9.
func mediaType(typ string) string {
	return strings.TrimPrefix(strings.ToLower(typ), "application/")
}

// verify checks the signature with key. The type of key must match alg: the header's
// alg never changes how a key is used.
func (t *jws) verify(key crypto.PublicKey) error {
	ok := false
	switch t.alg {
	case RS256:
		pub, is := key.(*rsa.PublicKey)
		if !is {
			return errKeyType
		}
		sum := sha256.Sum256([]byte(t.input))
		ok = rsa.VerifyPKCS1v15(pub, crypto.SHA256, sum[:], t.signature) == nil
	case ES256:
		pub, is := key.(*ecdsa.PublicKey)
		if !is {
			return errKeyType
		}
		const half = 32 // RFC 7518 section 3.4
		if len(t.signature) == 2*half {
			sum := sha256.Sum256([]byte(t.input))
			r, s := new(big.Int).SetBytes(t.signature[:half]), new(big.Int).SetBytes(t.signature[half:])
			ok = ecdsa.Verify(pub, sum[:], r, s)
		}
	case EdDSA:
		pub, is := key.(ed25519.PublicKey)
		if !is {
			return errKeyType
		}
		ok = ed25519.Verify(pub, []byte(t.input), t.signature)
	default:
		return fmt.Errorf("algorithm %q", t.alg)
	}
	if !ok {
		return errors.New("signature does not verify")
	}
	return nil
}

var errKeyType = errors.New("key is not of the algorithm's type")
