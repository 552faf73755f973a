package client

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/mayfly-ca/mayfly/client/mtls"
)

// A failed renewal is repeated, soon at first, because a certificate of a short
// lifetime has little time left at half of it.
const (
	renewDelayMin = time.Second
	renewDelayMax = time.Minute
	// maxFeedAge is the maximum age of the revocation feed at a dial.
	maxFeedAge = 5 * time.Minute
)

// renewLoop renews the certificate at half its lifetime until ctx ends. It also
// retries after a denial, because an admin may be correcting the policy file.
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

// usable returns the current certificate, or mints another if that one has ended
// or is about to. A machine that slept through its renewal mints at its next dial.
func (c *Client) usable(ctx context.Context) (*Credential, error) {
	cred := c.cred.Load()
	if cred.usable(time.Now()) {
		return cred, nil
	}
	return c.replace(ctx, cred)
}

// replace mints the successor of old and hands the relays over to it. If another
// goroutine has replaced old already, it returns that certificate.
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
// current one.
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

// adopt makes f the newest feed unless it is older than the present one.
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

// freshFeed returns the newest feed. It fetches the feed again if it is older
// than maxFeedAge by either clock. A feed that is older than the previous one, or
// older than maxFeedAge, is an error.
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

// age is the larger of two durations: since the feed was signed, by the wall
// clock, and since it arrived, by the monotonic clock.
func (f *receivedFeed) age(now time.Time) time.Duration {
	return max(now.Sub(f.at), now.Sub(f.ThisUpdate))
}
