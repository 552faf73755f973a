// Package revocation follows the issuer's signed revocation feed and checks
// certificate chains against it: valid, revoked, or undecided because the feed
// is stale.
//
// A certificate that was once seen as revoked stays revoked, whatever a later
// feed says. The feed's age depends neither on the issuer's answers nor on the
// wall clock alone.
//
// The package imports client/mtls, which parses and verifies feeds,
// client/wire and ca/identity. It opens and cuts no connections.
package revocation

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/mayfly-ca/mayfly/ca/identity"
	"github.com/mayfly-ca/mayfly/client/mtls"
	"github.com/mayfly-ca/mayfly/client/wire"
)

const (
	// keepRevoked is how long a serial stays revoked after the last feed that
	// held it. No relay or certificate lives longer.
	keepRevoked = 25 * time.Hour
	// feedRetention is how long a feed must keep a serial after its first
	// appearance: the issuer keeps entries until NotAfter + 24 h. A feed that
	// drops a serial earlier has been rolled back.
	feedRetention = 24 * time.Hour
	// minPollInterval is the least time between two answers without a newer
	// feed.
	minPollInterval = time.Second
	// retryMin and retryMax bound the wait after an error.
	retryMin = 100 * time.Millisecond
	retryMax = 5 * time.Second
)

// Events that a Checker passes to Options.Report, for metrics.
const (
	// EventRolledBack: a verified feed has a lower number than one before it,
	// lacks a serial that must still be there, or has an earlier floor.
	EventRolledBack = "feed_rolled_back"
	// EventClockSkew: a feed is from the future or stale on arrival.
	EventClockSkew = "clock_skew"
	// EventInvalid: an answer is not a feed signed under our roots.
	EventInvalid = "feed_invalid"
	// EventUnreachable: the issuer gave no answer.
	EventUnreachable = "feed_unreachable"
)

// Source fetches feeds. client.Issuer is one.
type Source interface {
	// WaitCRL returns the PEM of GET /v1/crl/wait, or nil when no feed is
	// newer than after.
	WaitCRL(ctx context.Context, after int64) ([]byte, error)
}

// Options are the options of a Checker. All but Report and Changed are
// required.
type Options struct {
	Source Source
	// Roots returns the roots that feeds must chain to.
	Roots func() []*x509.Certificate
	// MaxStaleness is the age at which a feed no longer admits any peer.
	MaxStaleness time.Duration
	Logger       *slog.Logger
	// Report, if not nil, is called for each event, one of the Event
	// constants.
	Report func(event string)
	// Changed, if not nil, is called after each verified feed, by the
	// goroutine that processed it.
	Changed func()
}

// Certificate holds the parts of a verified chain that are needed to check it
// again later. It is comparable.
type Certificate struct {
	Serial string // as mtls.Serial writes it
	Issued time.Time
	Issuer mtls.IntermediateID // zero when the chain has no intermediate
}

// CertificateOf returns the Certificate of a verified chain (leaf first, root
// last).
func CertificateOf(chain []*x509.Certificate) Certificate {
	c := Certificate{Serial: mtls.Serial(chain[0].SerialNumber), Issued: identity.IssuedAt(chain[0])}
	if len(chain) > 1 {
		c.Issuer = mtls.IntermediateIDOf(chain[1])
	}
	return c
}

// Checker follows the feed. Use New to create one. It is safe for concurrent
// use.
type Checker struct {
	o Options

	mu      sync.RWMutex
	feed    *mtls.Feed // with the highest number; nil before the first
	arrival arrival
	revoked map[string]seenAt
	issuers map[mtls.IntermediateID]struct{} // intermediates that were ever seen as revoked
	floor   time.Time                        // the latest seen

	fresh     chan struct{} // closed after the first fresh feed
	freshOnce sync.Once
}

// seenAt is when feeds held a serial, and which issuer's CRL held it.
type seenAt struct {
	first, last time.Time
	issuer      mtls.IntermediateID
}

// New returns a Checker without a feed. Its Check finds every chain stale.
func New(o Options) *Checker {
	if o.Report == nil {
		o.Report = func(string) {}
	}
	if o.Changed == nil {
		o.Changed = func() {}
	}
	return &Checker{
		o:       o,
		revoked: map[string]seenAt{},
		issuers: map[mtls.IntermediateID]struct{}{},
		fresh:   make(chan struct{}),
	}
}

// Run follows the feed until ctx ends.
func (c *Checker) Run(ctx context.Context) {
	retry := retryMin
	failing := false
	for ctx.Err() == nil {
		began := time.Now()
		news, err := c.step(ctx)
		wait := time.Duration(0)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			wait = retry/2 + rand.N(retry)
			retry = min(2*retry, retryMax)
			if !failing {
				c.o.Logger.Warn("revocation feed fails", "error", err, "age", c.Age())
			}
			failing = true
		default:
			if failing {
				c.o.Logger.Info("revocation feed works again")
			}
			retry, failing = retryMin, false
			if !news {
				wait = minPollInterval - time.Since(began)
			}
		}
		sleep(ctx, wait)
	}
}

// step makes one request. news reports whether it brought a newer feed.
func (c *Checker) step(ctx context.Context) (news bool, err error) {
	data, err := c.o.Source.WaitCRL(ctx, c.Number())
	if err != nil {
		c.o.Report(EventUnreachable)
		return false, err
	}
	if data == nil {
		return false, nil
	}
	return c.Update(data)
}

// Update processes the PEM of a feed from any source, and reports whether it
// is newer than the current one. A feed that does not verify changes nothing.
func (c *Checker) Update(data []byte) (news bool, err error) {
	feed, err := mtls.ParseFeed(data, c.o.Roots())
	if err != nil {
		c.o.Report(EventInvalid)
		return false, err
	}
	news = c.accept(feed, time.Now())
	c.o.Changed()
	return news, nil
}

// accept makes a newer verified feed the current one. From an older feed it
// only adds the revocations.
func (c *Checker) accept(feed *mtls.Feed, now time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.feed != nil && feed.Number <= c.feed.Number {
		if feed.Number < c.feed.Number {
			c.rolledBack("a lower number", "number", feed.Number, "seen", c.feed.Number)
		}
		c.remember(feed, now)
		return false
	}
	c.compare(feed, now)
	c.remember(feed, now)
	c.forget(now)
	c.feed = feed
	c.arrival = newArrival(feed.ThisUpdate, now)
	if c.arrival.ahead > mtls.MaxFeedSkew || c.arrival.age >= c.o.MaxStaleness {
		c.o.Report(EventClockSkew)
		c.o.Logger.Error("clock skew: a new revocation feed is from the future or stale on arrival",
			"this_update", feed.ThisUpdate.UTC(), "now", now.UTC())
	} else {
		c.freshOnce.Do(func() { close(c.fresh) })
	}
	return true
}

// compare reports entries that a newer feed should hold and lacks. The CRL of
// an intermediate that the root has revoked may be missing with its serials.
func (c *Checker) compare(feed *mtls.Feed, now time.Time) {
	if feed.Floor.Before(c.floor) {
		c.rolledBack("an earlier floor", "floor", feed.Floor.UTC(), "seen", c.floor.UTC())
	}
	gone := map[mtls.IntermediateID]bool{}
	for _, id := range feed.RevokedIntermediates() {
		gone[id] = true
	}
	missing := 0
	example := ""
	for serial, seen := range c.revoked {
		if now.Sub(seen.first) < feedRetention && !feed.Revoked(serial) && !gone[seen.issuer] {
			missing++
			example = serial
		}
	}
	if missing > 0 {
		c.rolledBack("lacks serials that were revoked", "missing", missing, "serial", example)
	}
}

func (c *Checker) rolledBack(why string, args ...any) {
	c.o.Report(EventRolledBack)
	c.o.Logger.Error("revocation feed rolled back; keeping known revocations", append([]any{"why", why}, args...)...)
}

func (c *Checker) remember(feed *mtls.Feed, now time.Time) {
	for serial, issuer := range feed.All() {
		seen, ok := c.revoked[serial]
		if !ok {
			seen.first = now
		}
		seen.last, seen.issuer = now, issuer
		c.revoked[serial] = seen
	}
	for _, issuer := range feed.RevokedIntermediates() {
		c.issuers[issuer] = struct{}{}
	}
	if feed.Floor.After(c.floor) {
		c.floor = feed.Floor
	}
}

func (c *Checker) forget(now time.Time) {
	for serial, seen := range c.revoked {
		if now.Sub(seen.last) > keepRevoked {
			delete(c.revoked, serial)
		}
	}
}

// Fresh returns a channel that is closed after the first verified feed that
// was fresh.
func (c *Checker) Fresh() <-chan struct{} { return c.fresh }

// Number returns the number of the newest feed, or 0 without one.
func (c *Checker) Number() int64 {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if c.feed == nil {
		return 0
	}
	return c.feed.Number
}

// Age returns the feed's age. Without a feed it is larger than any bound.
func (c *Checker) Age() time.Duration {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.age(time.Now())
}

func (c *Checker) age(now time.Time) time.Duration {
	if c.feed == nil {
		return 1<<63 - 1
	}
	return c.arrival.ageAt(now.Round(0), now.Sub(c.arrival.at))
}

// Stale reports whether the feed is too old, too far ahead of this machine's
// clock, or missing. A stale feed admits no peer.
func (c *Checker) Stale() bool {
	now := time.Now()
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.age(now) >= c.o.MaxStaleness || c.feed.ThisUpdate.After(now.Add(mtls.MaxFeedSkew))
}

// Revoked reports whether a certificate is revoked: its serial or its
// intermediate was revoked, or it was issued before the floor.
func (c *Checker) Revoked(cert Certificate) bool {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.isRevoked(cert)
}

func (c *Checker) isRevoked(cert Certificate) bool {
	_, serial := c.revoked[cert.Serial]
	_, issuer := c.issuers[cert.Issuer]
	return serial || issuer || cert.Issued.Before(c.floor)
}

// Check checks a verified chain now. The reason is empty, wire.ReasonRevoked,
// which is final, or wire.ReasonFeedStale. err gives the details.
func (c *Checker) Check(chain []*x509.Certificate) (reason string, err error) {
	now := time.Now()
	c.mu.RLock()
	defer c.mu.RUnlock()
	if c.isRevoked(CertificateOf(chain)) {
		return wire.ReasonRevoked, mtls.ErrRevoked
	}
	if age := c.age(now); age >= c.o.MaxStaleness {
		if c.feed == nil {
			return wire.ReasonFeedStale, errors.New("there is no revocation list yet")
		}
		return wire.ReasonFeedStale, fmt.Errorf("revocation feed is %v old", age.Round(time.Second))
	}
	switch err := c.feed.CoversChain(chain, now); {
	case errors.Is(err, mtls.ErrRevoked):
		return wire.ReasonRevoked, err
	case err != nil:
		return wire.ReasonFeedStale, err
	}
	return "", nil
}

func sleep(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
