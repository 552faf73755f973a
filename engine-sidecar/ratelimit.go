package sidecar

import (
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

const (
	// One address may use 1/rateShares of handshake_rate, so that a flood from
	// a few addresses leaves room for the others.
	rateShares = 4
	// maxShares bounds the addresses that are remembered. Beyond it, only the
	// common rate applies to new addresses.
	maxShares = 1 << 14
	// shareKept is how long an address is remembered after its last handshake.
	shareKept = 10 * time.Second
)

// addressLimiter limits the handshakes per second of each client address.
type addressLimiter struct {
	rate  rate.Limit
	burst int

	mu    sync.Mutex
	of    map[netip.Addr]*share
	swept time.Time
}

type share struct {
	limiter *rate.Limiter
	last    time.Time
}

func newShares(perSecond int) *addressLimiter {
	one := max(perSecond/rateShares, 1)
	return &addressLimiter{rate: rate.Limit(one), burst: 2 * one, of: map[netip.Addr]*share{}}
}

// allow reports whether an address may start a handshake at now.
func (s *addressLimiter) allow(addr netip.Addr, now time.Time) bool {
	addr = rateKey(addr)
	s.mu.Lock()
	defer s.mu.Unlock()
	one := s.of[addr]
	if one == nil {
		s.sweep(now)
		if len(s.of) >= maxShares {
			return true
		}
		one = &share{limiter: rate.NewLimiter(s.rate, s.burst)}
		s.of[addr] = one
	}
	one.last = now
	return one.limiter.AllowN(now, 1)
}

// sweep removes the addresses without a recent handshake, once a second at
// most.
func (s *addressLimiter) sweep(now time.Time) {
	if now.Sub(s.swept) < time.Second {
		return
	}
	s.swept = now
	for addr, one := range s.of {
		if now.Sub(one.last) > shareKept {
			delete(s.of, addr)
		}
	}
}
