package client

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/mayfly-ca/mayfly/client/mtls"
)

// Renewal that fails is tried again, soon at first: a certificate at half life
// has time, and one of a short lifetime has not.
const (
	renewDelayMin = time.Second
	renewDelayMax = time.Minute
	// maxFeedAge is how old the revocation feed may be at a dial.
	maxFeedAge = 5 * time.Minute
)

// renewLoop renews at half life, for good. A denial may be a policy file that
// is being corrected, so it is asked again too.
func (c *Client) renewLoop(ctx context.Context) {
	b := backoff{min: renewDelayMin, max: renewDelayMax}
	cred := c.cred.Load()
	wait := cred.renewIn(time.Now())
	for sleep(ctx, wait) == nil {
		if newer := c.cred.Load(); newer != cred { // a dial has minted
			cred, wait = newer, newer.renewIn(time.Now())
			continue
		}
		newer, err := c.replace(ctx, cred)
		if err != nil {
			if ctx.Err() != nil {
				return
			}
			wait = b.next()
			c.log.Warn("renewal failed", "serial", cred.Serial(), "not_after", cred.Response.NotAfter, "retry_in", wait, "error", err)
			c.event(Event{Kind: EventRenewFailed, Serial: cred.Serial(), NotAfter: cred.Response.NotAfter, Err: err})
			continue
		}
		b.reset()
		cred, wait = newer, newer.renewIn(time.Now())
	}
}

// usable is the present certificate, or a new one if that has ended: a machine
// that slept through its renewal mints at its next dial.
func (c *Client) usable(ctx context.Context) (*Credential, error) {
	cred := c.cred.Load()
	if cred.usable(time.Now()) {
		return cred, nil
	}
	return c.replace(ctx, cred)
}

// replace mints the successor of old, unless somebody has by now, and hands the
// relays over to it.
func (c *Client) replace(ctx context.Context, old *Credential) (*Credential, error) {
	select {
	case c.minting <- struct{}{}:
		defer func() { <-c.minting }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if cred := c.cred.Load(); cred != old {
		return cred, nil
	}
	cred, err := c.mint(ctx)
	if err != nil {
		c.renewal.Store(&renewalError{err})
		return nil, err
	}
	c.renewal.Store(nil)
	c.stats.renewals.Add(1)
	c.log.Info("certificate renewed", "serial", cred.Serial(), "not_after", cred.Response.NotAfter)
	c.event(Event{Kind: EventRenewed, Serial: cred.Serial(), NotAfter: cred.Response.NotAfter})
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, t := range c.tethers {
		t.signal()
	}
	return cred, nil
}

// mint mints with a fresh token and a new key, and makes the certificate the
// present one.
func (c *Client) mint(ctx context.Context) (*Credential, error) {
	engine := c.cfg.Engine
	if cred := c.cred.Load(); cred != nil && c.cfg.OneEngine {
		engine = cred.Response.Engines[0].Name // the rule may grant more by now
	}
	cred, err := c.issuer.Mint(ctx, MintRequest{
		Source: c.cfg.Source, Audience: c.audience, Engine: engine, OneEngine: c.cfg.OneEngine,
		Retry: func(err error, wait time.Duration) {
			c.log.Info("issuer does not answer yet", "retry_in", wait, "error", err)
			c.event(Event{Kind: EventIssuerWaiting, Err: err, Elapsed: wait})
		},
	})
	if err != nil {
		return nil, err
	}
	c.adopt(cred.feed)
	c.cred.Store(cred)
	return cred, nil
}

// adopt takes a feed for the newest, unless it is older than what we have.
func (c *Client) adopt(f receivedFeed) {
	for {
		old := c.feed.Load()
		if old != nil && f.Number < old.Number {
			return
		}
		if c.feed.CompareAndSwap(old, &f) {
			return
		}
	}
}

// freshFeed is the newest feed, fetched again when it is older than maxFeedAge
// by either clock. A feed that is not newer than what we had is no answer to
// that.
func (c *Client) freshFeed(ctx context.Context, cred *Credential) (*mtls.Feed, error) {
	if f := c.feed.Load(); f.age(time.Now()) <= maxFeedAge {
		return f.Feed, nil
	}
	select {
	case c.fetching <- struct{}{}:
		defer func() { <-c.fetching }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	old := c.feed.Load()
	if old.age(time.Now()) <= maxFeedAge {
		return old.Feed, nil
	}
	feed, err := c.issuer.Feed(ctx, cred.roots)
	if err != nil {
		return nil, fmt.Errorf("fetch revocation list: %w", err)
	}
	next := receivedFeed{feed, time.Now()}
	switch {
	case feed.Number < old.Number || feed.Floor.Before(old.Floor):
		return nil, errors.New("issuer answers a revocation list that is older than one it answered before")
	case next.age(next.at) > maxFeedAge:
		return nil, hinted("set this machine's clock, or the issuer's (NTP)",
			fmt.Errorf("issuer's revocation list is of %s and this machine's clock says %s", stamp(feed.ThisUpdate), stamp(next.at)))
	}
	c.adopt(next)
	return feed, nil
}

// age is the larger of the time since the feed was signed, by the wall clock,
// and of the time since it came, by the monotonic one.
func (f *receivedFeed) age(now time.Time) time.Duration {
	return max(now.Sub(f.at), now.Sub(f.ThisUpdate))
}
