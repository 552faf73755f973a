package sidecar

import (
	"net/netip"
	"testing"
)

func TestRelaysWithin(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		files      uint64
		want, most int
	}{{1 << 20, 10000, 10000}, {20064, 10000, 10000}, {20063, 10000, 9999}, {1024, 10000, 480}, {20, 10000, 1}, {1024, 100, 100}} {
		if got := relaysWithin(tc.files, tc.want); got != tc.most {
			t.Errorf("%d files, %d wanted: %d, want %d", tc.files, tc.want, got, tc.most)
		}
	}
}

func TestOneClient(t *testing.T) {
	t.Parallel()
	same := func(a, b string) bool { return oneClient(netip.MustParseAddr(a)) == oneClient(netip.MustParseAddr(b)) }
	if !same("2001:db8:1:2::1", "2001:db8:1:2:ffff::9") || same("2001:db8:1:2::1", "2001:db8:1:3::1") {
		t.Error("IPv6 is not counted by /64")
	}
	if same("203.0.113.1", "203.0.113.2") || !same("203.0.113.1", "::ffff:203.0.113.1") {
		t.Error("IPv4 is not counted by address")
	}
}
