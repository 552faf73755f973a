package idtoken

import (
	"context"
	"crypto"
	"net/netip"
)

// IsPublic and ParseObject are exported for their own tests.
func IsPublic(s string) bool { return isPublic(netip.MustParseAddr(s).Unmap()) }

func ParseObject(s string) (map[string]any, error) { return parseObject(s) }

func ParseKeys(data []byte) (int, error) {
	k, err := parseKeys(data)
	return len(k), err
}

// TestSet is a key set that a function fetches.
type TestSet struct{ set *keySet }

// NewTestSet returns a set that fetches with f. f returns the published kids.
func NewTestSet(f func(context.Context) ([]string, error)) *TestSet {
	return &TestSet{newKeySet("p", fakeFetcher(f), nil)}
}

type fakeFetcher func(context.Context) ([]string, error)

func (f fakeFetcher) fetch(ctx context.Context) (keys, error) {
	kids, err := f(ctx)
	if err != nil {
		return nil, err
	}
	out := keys{}
	for _, kid := range kids {
		out[keyName{kid, RS256}] = crypto.PublicKey(kid)
	}
	return out, nil
}

func (fakeFetcher) close() {}

// Key requests a key as a token does.
func (s *TestSet) Key(ctx context.Context, kid string) error {
	_, err := s.set.key(ctx, kid, RS256)
	return err
}

func (s *TestSet) Close() { s.set.close() }
