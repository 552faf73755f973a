package storetest

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mayfly-ca/mayfly/ca/store"
)

// walk reads every page and checks the order and that nothing appears twice.
func walk(t testing.TB, s store.Store, f store.CertificateFilter) []string {
	t.Helper()
	var serials []string
	seen := make(map[string]bool)
	last := time.Now().Add(24 * time.Hour)
	for {
		page, next, err := s.Certificates(context.Background(), f)
		if err != nil {
			t.Fatalf("%+v: %v", f, err)
		}
		if len(page) > f.Limit {
			t.Fatalf("page of %d, asked for %d", len(page), f.Limit)
		}
		for _, c := range page {
			if seen[c.Serial] || c.IssuedAt.After(last) {
				t.Fatalf("%s at %v, again or after %v", c.Serial, c.IssuedAt, last)
			}
			seen[c.Serial], last = true, c.IssuedAt
			serials = append(serials, c.Serial)
		}
		if next == "" {
			return serials
		}
		f.Cursor = next
	}
}

func testLists(t *testing.T, o Open) {
	s := open(t, o)
	var all []*store.Certificate
	base := time.Now().UTC().Truncate(time.Second).Add(-30 * time.Minute)
	for i := range 60 {
		c := Certificate(fmt.Sprint(i / 2))
		c.IssuedAt = base.Add(time.Duration(i/3) * time.Second) // three per microsecond
		c.Repository, c.RepositoryID, c.Actor = fmt.Sprintf("octo/r%d", i%3), fmt.Sprint(i%3), fmt.Sprintf("a%d", i%5)
		c.Identity = fmt.Sprintf("spiffe://ci.example.com/github/1/%d", i%3)
		if i%10 == 0 {
			c.Profile = "server"
		}
		if i%4 == 0 {
			c.NotBefore, c.NotAfter = base, time.Now().Add(-time.Minute).UTC().Truncate(time.Second)
		}
		all = append(all, record(t, s, c))
	}
	revoked := make(map[string]bool)
	for i := 0; i < 60; i += 7 {
		revoke(t, s, store.Revocation{Serial: all[i].Serial})
		revoked[all[i].Serial] = true
	}
	since, until := base.Add(3*time.Second), base.Add(9*time.Second)
	prefix := all[5].Serial[:3]
	now := time.Now()
	for name, f := range map[string]struct {
		filter store.CertificateFilter
		keep   func(c *store.Certificate) bool
	}{
		"all":           {store.CertificateFilter{}, func(*store.Certificate) bool { return true }},
		"repository":    {store.CertificateFilter{Match: store.Match{Repository: "octo/r1"}}, func(c *store.Certificate) bool { return c.Repository == "octo/r1" }},
		"repository id": {store.CertificateFilter{Match: store.Match{RepositoryID: "2"}}, func(c *store.Certificate) bool { return c.RepositoryID == "2" }},
		"run id":        {store.CertificateFilter{Match: store.Match{RunID: "4"}}, func(c *store.Certificate) bool { return c.RunID == "4" }},
		"actor":         {store.CertificateFilter{Match: store.Match{Actor: "a3"}}, func(c *store.Certificate) bool { return c.Actor == "a3" }},
		"identity":      {store.CertificateFilter{Match: store.Match{Identity: "spiffe://ci.example.com/github/1/1"}}, func(c *store.Certificate) bool { return c.RepositoryID == "1" }},
		"client":        {store.CertificateFilter{Match: store.Match{Profile: "client"}}, func(c *store.Certificate) bool { return c.Profile == "client" }},
		"server":        {store.CertificateFilter{Match: store.Match{Profile: "server"}}, func(c *store.Certificate) bool { return c.Profile == "server" }},
		"other profile": {store.CertificateFilter{Match: store.Match{Profile: "other"}}, func(*store.Certificate) bool { return false }},
		"since":         {store.CertificateFilter{Match: store.Match{Since: &since}}, func(c *store.Certificate) bool { return !c.IssuedAt.Before(since) }},
		"since until": {store.CertificateFilter{Match: store.Match{Since: &since, Until: &until}}, func(c *store.Certificate) bool {
			return !c.IssuedAt.Before(since) && c.IssuedAt.Before(until)
		}},
		"prefix of 1":      {store.CertificateFilter{SerialPrefix: prefix[:1]}, func(c *store.Certificate) bool { return c.Serial[:1] == prefix[:1] }},
		"prefix of 3":      {store.CertificateFilter{SerialPrefix: prefix}, func(c *store.Certificate) bool { return c.Serial[:3] == prefix }},
		"serial":           {store.CertificateFilter{SerialPrefix: all[9].Serial}, func(c *store.Certificate) bool { return c.Serial == all[9].Serial }},
		"prefix and actor": {store.CertificateFilter{SerialPrefix: prefix, Match: store.Match{Actor: all[5].Actor}}, func(c *store.Certificate) bool { return c.Serial[:3] == prefix && c.Actor == all[5].Actor }},
		"revoked":          {store.CertificateFilter{Status: "revoked"}, func(c *store.Certificate) bool { return revoked[c.Serial] }},
		"valid":            {store.CertificateFilter{Status: "valid"}, func(c *store.Certificate) bool { return !revoked[c.Serial] && c.NotAfter.After(now) }},
		"expired":          {store.CertificateFilter{Status: "expired"}, func(c *store.Certificate) bool { return !revoked[c.Serial] && !c.NotAfter.After(now) }},
		"revoked, actor":   {store.CertificateFilter{Status: "revoked", Match: store.Match{Actor: "a2"}}, func(c *store.Certificate) bool { return revoked[c.Serial] && c.Actor == "a2" }},
		"revoked, server":  {store.CertificateFilter{Status: "revoked", Match: store.Match{Profile: "server"}}, func(c *store.Certificate) bool { return revoked[c.Serial] && c.Profile == "server" }},
		"valid, two": {store.CertificateFilter{Status: "valid", Match: store.Match{Actor: "a2", Repository: "octo/r0"}}, func(c *store.Certificate) bool {
			return !revoked[c.Serial] && c.NotAfter.After(now) && c.Actor == "a2" && c.Repository == "octo/r0"
		}},
	} {
		want := make(map[string]bool)
		for _, c := range all {
			if f.keep(c) {
				want[c.Serial] = true
			}
		}
		for _, limit := range []int{1, 7, 500} {
			f.filter.Limit, f.filter.Now = limit, now
			got := make(map[string]bool)
			for _, serial := range walk(t, s, f.filter) {
				got[serial] = true
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%s by %d (-want +got):\n%s", name, limit, diff)
			}
		}
	}
	for name, f := range map[string]store.CertificateFilter{"status": {Status: "good"}, "prefix": {SerialPrefix: "xyz"}, "case": {SerialPrefix: "AB"}, "wildcard": {SerialPrefix: "%"}} {
		if _, _, err := s.Certificates(context.Background(), f); err == nil {
			t.Errorf("bad %s: listed", name)
		}
	}
}

func testCursors(t *testing.T, o Open) {
	ctx := context.Background()
	s := open(t, o)
	for range 5 {
		record(t, s, Certificate("1"))
	}
	f := store.CertificateFilter{Limit: 2}
	_, cursor, err := s.Certificates(ctx, f)
	if err != nil || cursor == "" {
		t.Fatalf("cursor %q, %v", cursor, err)
	}
	f.Cursor = cursor
	if page, _, err := s.Certificates(ctx, f); err != nil || len(page) != 2 {
		t.Fatalf("second page: %d, %v", len(page), err)
	}
	raw, err := base64.RawURLEncoding.DecodeString(cursor)
	if err != nil {
		t.Fatal(err)
	}
	bad := []string{"x", "AAAA", cursor + "A", cursor[:len(cursor)-1], cursor + "=", "!" + cursor, string(make([]byte, 4096))}
	for i := range raw {
		flipped := append([]byte(nil), raw...)
		flipped[i] ^= 1
		bad = append(bad, base64.RawURLEncoding.EncodeToString(flipped))
	}
	for _, b := range bad {
		f.Cursor = b
		if _, _, err := s.Certificates(ctx, f); !errors.Is(err, store.ErrBadCursor) {
			t.Errorf("cursor %q: %v", b, err)
		}
	}
	f.Cursor, f.Actor = cursor, "octocat"
	if _, _, err := s.Certificates(ctx, f); !errors.Is(err, store.ErrBadCursor) {
		t.Errorf("the cursor of other filters: %v", err)
	}
	if _, _, err := s.Events(ctx, store.EventFilter{Cursor: cursor}); !errors.Is(err, store.ErrBadCursor) {
		t.Errorf("the cursor of another list: %v", err)
	}
	if _, _, err := s.Sessions(ctx, store.SessionFilter{Cursor: cursor}); !errors.Is(err, store.ErrBadCursor) {
		t.Errorf("the cursor of another list: %v", err)
	}
}
