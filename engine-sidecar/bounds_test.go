package sidecar

import (
	"bytes"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"
)

func TestRelaysWithin(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		files      uint64
		want, most int
	}{{1 << 20, 10000, 10000}, {20064, 10000, 10000}, {20063, 10000, 9999}, {1024, 10000, 480}, {20, 10000, 1}, {1024, 100, 100}} {
		if got := relaysForFDs(tc.files, tc.want); got != tc.most {
			t.Errorf("%d files, %d wanted: %d, want %d", tc.files, tc.want, got, tc.most)
		}
	}
}

func TestOneClient(t *testing.T) {
	t.Parallel()
	same := func(a, b string) bool { return rateKey(netip.MustParseAddr(a)) == rateKey(netip.MustParseAddr(b)) }
	if !same("2001:db8:1:2::1", "2001:db8:1:2:ffff::9") || same("2001:db8:1:2::1", "2001:db8:1:3::1") {
		t.Error("IPv6 is not counted by /64")
	}
	if same("203.0.113.1", "203.0.113.2") || !same("203.0.113.1", "::ffff:203.0.113.1") {
		t.Error("IPv4 is not counted by address")
	}
}

func TestShares(t *testing.T) {
	t.Parallel()
	s, now := newShares(40), time.Now()
	flood, other := netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("203.0.113.2")
	passed := 0
	for range 100 {
		if s.allow(flood, now) {
			passed++
		}
	}
	if passed != 20 || !s.allow(other, now) {
		t.Errorf("%d of a flood passed at once, want 20, and another address: it must", passed)
	}
	if now = now.Add(time.Second); !s.allow(flood, now) {
		t.Error("refused a second later")
	}
	for i := range 2 * maxShares {
		s.allow(netip.MustParseAddr(fmt.Sprintf("2001:db8:%x:%x::1", i>>16, i&0xffff)), now)
	}
	if len(s.of) > maxShares {
		t.Errorf("%d addresses are remembered", len(s.of))
	}
	s.allow(other, now.Add(shareKept+time.Second))
	s.allow(netip.MustParseAddr("203.0.113.3"), now.Add(2*shareKept+2*time.Second))
	if len(s.of) > 2 {
		t.Errorf("%d addresses are remembered long after", len(s.of))
	}
}

// TestDefaultConnectionsFit: the default fits this machine's limit of open
// files, so a start with defaults logs no warning.
func TestDefaultConnectionsFit(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer
	s := &sidecar{cfg: DefaultConfig(), log: slog.New(slog.NewTextHandler(&log, nil))}
	if got := s.maxRelays(); got != s.cfg.Limits.Connections || log.Len() > 0 {
		t.Errorf("%d relays of %d: %s", got, s.cfg.Limits.Connections, &log)
	}
	s.cfg.Limits.Connections = maxLimit
	if got := s.maxRelays(); got < maxLimit && !strings.Contains(log.String(), "raise the limit of open files to 2000064") {
		t.Errorf("%d relays of %d: %s", got, maxLimit, &log)
	}
}
