package idtoken

import (
	"context"
	"crypto"
	"net/netip"
)

// IsPublic and ParseObject are tested by themselves.
func IsPublic(s string) bool { return isPublic(netip.MustParseAddr(s).Unmap()) }

func ParseObject(s string) (map[string]any, error) { return parseObject(s) }

func ParseKeys(data []byte) (int, error) {
	k, err := parseKeys(data)
	return len(k), err
}

// TestSet is a key set whose provider is a function.
type TestSet struct{ set *keySet }

// NewTestSet fetches by f, which returns the kids that are published.
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

// Key asks for a key as a token does.
func (s *TestSet) Key(ctx context.Context, kid string) error {
	_, err := s.set.key(ctx, kid, RS256)
	return err
}

func (s *TestSet) Close() { s.set.close() }
