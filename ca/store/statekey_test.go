package store

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"
)

func TestParseStateKey(t *testing.T) {
	t.Parallel()
	raw := bytes.Repeat([]byte{0xa7}, 32)
	inHex, in64 := hex.EncodeToString(raw), base64.StdEncoding.EncodeToString(raw)
	for _, text := range []string{inHex, strings.ToUpper(inHex), in64} {
		k, err := ParseStateKey(text)
		if err != nil || !bytes.Equal(k.keys[0], raw) {
			t.Errorf("%q: %v", text, err)
		}
	}
	other := EncodeStateKey(NewStateKey())
	for name, texts := range map[string][]string{
		"empty":          {""},
		"a password":     {"correct horse battery staple"},
		"32 characters":  {"abcdefghijklmnopqrstuvwxyz012345"},
		"31 bytes":       {inHex[:62]},
		"33 bytes":       {inHex + "00"},
		"two lines":      {inHex + "\n" + other},
		"the same twice": {inHex, other, in64},
		"second is bad":  {inHex, "x"},
	} {
		k, err := ParseStateKey(texts...)
		if err == nil || !k.IsZero() {
			t.Errorf("%s is a key", name)
		}
		if err != nil && strings.Contains(err.Error(), "abcdef") {
			t.Errorf("%s: the error shows the key: %v", name, err)
		}
	}
	if k, err := ParseStateKey(); err != nil || !k.IsZero() {
		t.Errorf("no keys: %v, %v", k, err)
	}
}

func TestStateKeyMAC(t *testing.T) {
	t.Parallel()
	old, next := EncodeStateKey(NewStateKey()), EncodeStateKey(NewStateKey())
	parse := func(texts ...string) StateKey {
		k, err := ParseStateKey(texts...)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	a, b := []byte("ab"), []byte("c")
	mac := parse(old).MAC("use", a, b)
	for name, good := range map[string]bool{
		"same key":          parse(old).Verify(mac, "use", a, b),
		"second of a list":  parse(next, old).Verify(mac, "use", a, b),
		"first key signs":   parse(old).Verify(parse(old, next).MAC("use", a, b), "use", a, b),
		"one field no more": !parse(old).Verify(mac, "use", []byte("abc")),
		"moved boundary":    !parse(old).Verify(mac, "use", []byte("a"), []byte("bc")),
		"an empty field":    !parse(old).Verify(mac, "use", a, b, nil),
		"another use":       !parse(old).Verify(mac, "us", a, b),
		"use as a field":    !parse(old).Verify(mac, "", []byte("use"), a, b),
		"another key":       !parse(next).Verify(mac, "use", a, b),
		"no key":            !StateKey{}.Verify(mac, "use", a, b),
		"no MAC":            !parse(old).Verify(nil, "use", a, b),
		"half a MAC":        !parse(old).Verify(mac[:16], "use", a, b),
	} {
		if !good {
			t.Errorf("%s: wrong answer", name)
		}
	}
}

func TestStateKeyIsNotPrinted(t *testing.T) {
	t.Parallel()
	k := NewStateKey()
	var out bytes.Buffer
	slog.New(slog.NewJSONHandler(&out, nil)).Info("x", "key", k, "in", struct{ K StateKey }{k})
	slog.New(slog.NewTextHandler(&out, nil)).Info("x", "key", k, "in", struct{ K StateKey }{k})
	fmt.Fprintf(&out, "%v %+v %#v %s %d %x %q %v %+v", k, k, k, k, k, k, k, &k, struct{ K StateKey }{k})
	if err := json.NewEncoder(&out).Encode(map[string]any{"key": k}); err != nil {
		t.Fatal(err)
	}
	secret := k.keys[0]
	for _, form := range []string{hex.EncodeToString(secret), strings.ToUpper(hex.EncodeToString(secret)), string(secret), fmt.Sprint(secret)[1:40], base64.StdEncoding.EncodeToString(secret)} {
		if strings.Contains(out.String(), form) {
			t.Errorf("printed: %s", out.String())
		}
	}
}
