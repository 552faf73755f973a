package client

import (
	"sync/atomic"
	"time"
)

// EventKind is the kind of an Event.
type EventKind string

// The kinds of events.
const (
	// EventMinted and EventRenewed: Serial and NotAfter are the new
	// certificate's.
	EventMinted  EventKind = "minted"
	EventRenewed EventKind = "renewed"
	// EventRenewFailed: Serial and NotAfter are the old certificate's, which
	// remains in use until NotAfter.
	EventRenewFailed EventKind = "renew_failed"
	// EventIssuerWaiting: the issuer does not answer yet; Elapsed is the wait
	// before the next attempt.
	EventIssuerWaiting EventKind = "issuer_waiting"
	// EventWaking: a dial has failed as a dial to a sleeping machine does, and is
	// repeated. Attempt counts, Err is the error, Elapsed is since the first attempt.
	EventWaking EventKind = "waking"
	// EventRetrying: a dial has failed for another transient reason, such as a full
	// engine. The fields are as for EventWaking.
	EventRetrying EventKind = "retrying"
	// EventConnected: the engine has admitted a connection. Elapsed is the time of the dial.
	EventConnected EventKind = "connected"
	// EventFailed: a dial has ended without a relay. Err is the error that it returned.
	EventFailed EventKind = "failed"
	// EventCut: the engine ended a relay; Err is the *CutError.
	EventCut EventKind = "cut"
)

// Event is progress to show to a user.
type Event struct {
	Kind     EventKind
	Engine   string
	Endpoint string
	Serial   string
	NotAfter time.Time
	Attempt  int
	Elapsed  time.Duration
	Err      error
}

func (c *Client) event(e Event) {
	if c.cfg.Progress != nil {
		c.cfg.Progress(e)
	}
}

// Stats counts what a client has done since New.
type Stats struct {
	Connections   int64 `json:"connections"` // relays opened
	Open          int64 `json:"open"`        // relays open now
	BytesSent     int64 `json:"bytes_sent"`
	BytesReceived int64 `json:"bytes_received"`
	Renewals      int64 `json:"renewals"`
	FailedDials   int64 `json:"failed_dials"`
	Cut           int64 `json:"cut"` // relays that the engine ended
	// Wake is the longest time of a dial, which includes the time that the engine's
	// machine needed to wake up.
	Wake time.Duration `json:"wake_ns"`
}

type counters struct {
	connections, open, sent, received, renewals, failed, cut, wake atomic.Int64
}

// Stats returns what the client has done since New.
func (c *Client) Stats() Stats {
	s := &c.stats
	return Stats{
		Connections: s.connections.Load(), Open: s.open.Load(),
		BytesSent: s.sent.Load(), BytesReceived: s.received.Load(),
		Renewals: s.renewals.Load(), FailedDials: s.failed.Load(), Cut: s.cut.Load(),
		Wake: time.Duration(s.wake.Load()),
	}
}

func (s *counters) connected(d time.Duration) {
	for {
		old := s.wake.Load()
		if int64(d) <= old || s.wake.CompareAndSwap(old, int64(d)) {
			return
		}
	}
}
