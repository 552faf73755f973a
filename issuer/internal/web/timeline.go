package web

import (
	"slices"
	"time"

	"github.com/mayfly-ca/mayfly/client/wire"
)

// moment is one line of a certificate's timeline: its time, a word such as "issued",
// and the rest of the text.
type moment struct {
	At               time.Time
	Tone, Word, Text string
	Until            time.Time // shown after Text; zero means none
}

// timeline returns the history of a certificate, in order.
func timeline(c *wire.CertificateDetail) []moment {
	out := []moment{{c.IssuedAt, "good", "issued", ", ends", c.NotAfter}}
	for _, s := range c.Sessions {
		text := " to engine " + s.Engine
		if s.RemoteAddr != "" {
			text += " from " + s.RemoteAddr
		}
		moved := wire.Size(s.BytesIn) + " sent, " + wire.Size(s.BytesOut) + " received"
		if s.ClosedAt == nil {
			out = append(out, moment{s.OpenedAt, "good", "connected", text + ", " + moved + ", live when last heard of " + short(time.Since(s.SeenAt)) + " ago", time.Time{}})
			continue
		}
		end := " from engine " + s.Engine
		if s.Reason != "" {
			end += ": " + s.Reason
		}
		out = append(out, moment{s.OpenedAt, "good", "connected", text, time.Time{}}, moment{*s.ClosedAt, "quiet", "disconnected", end + ", " + moved, time.Time{}})
	}
	if c.RevokedAt != nil {
		text := ""
		if c.RevokedBy != "" {
			text = " by " + c.RevokedBy
		}
		if c.Reason != "" {
			text += ": " + c.Reason
		}
		out = append(out, moment{*c.RevokedAt, "bad", "revoked", text, time.Time{}})
	}
	slices.SortStableFunc(out, func(a, b moment) int { return a.At.Compare(b.At) })
	return out
}

func clock(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05") }
