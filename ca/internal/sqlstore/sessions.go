package sqlstore

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/mayfly-ca/mayfly/ca/store"
)

// liveWindow is how long an open session counts as live after its last report.
const liveWindow = 2 * time.Minute

// Reasons of a SessionRefusal.
const (
	refusedForm    = "malformed report"
	refusedSerial  = "unknown serial"
	refusedEngine  = "serial is not granted to this engine"
	refusedMachine = "session of another machine"
	refusedUnknown = "unknown session"
	refusedClosed  = "session is closed"
)

const sessionColumns = `id, engine, machine, serial, run, repository, identity, remote_addr, reason, opened_at, seen_at, closed_at, bytes_in, bytes_out`

func scanSession(r row) (s store.Session, err error) {
	var opened, seen, closed int64
	err = r.Scan(&s.ID, &s.Engine, &s.Machine, &s.Serial, &s.Run, &s.Repository, &s.Identity, &s.RemoteAddr, &s.Reason,
		&opened, &seen, &closed, &s.BytesIn, &s.BytesOut)
	s.OpenedAt, s.SeenAt = fromMicro(opened), fromMicro(seen)
	if closed != 0 {
		at := fromMicro(closed)
		s.ClosedAt = &at
	}
	return s, err
}

// ReportSessions implements store.Store. A repeated report is accepted and changes
// nothing: sidecars repeat a report after a lost answer.
func (l *ledger) ReportSessions(ctx context.Context, by store.SessionReporter, reports []store.SessionReport) (int, []store.SessionRefusal, error) {
	accepted := 0
	var refused []store.SessionRefusal
	if by.Machine == "" || by.Engine == "" {
		return 0, nil, fmt.Errorf("report sessions: no machine or engine")
	}
	err := l.update(ctx, "report sessions", func(tx transaction, _ *chainHead) ([]store.Event, error) {
		var events []store.Event
		accepted, refused = 0, nil
		now := time.Now()
		for _, rep := range reports {
			ev, why, err := report(ctx, tx, by, rep, now)
			switch {
			case err != nil:
				return nil, err
			case why != "":
				refused = append(refused, store.SessionRefusal{ID: sanitize(rep.ID), Reason: why})
			default:
				accepted++
			}
			if ev != nil {
				events = append(events, *ev)
			}
		}
		return events, nil
	})
	if err != nil {
		return 0, nil, err
	}
	return accepted, refused, nil
}

// report applies one report. why says why the report is refused permanently.
func report(ctx context.Context, tx transaction, by store.SessionReporter, rep store.SessionReport, now time.Time) (ev *store.Event, why string, err error) {
	if len(rep.ID) == 0 || len(rep.ID) > 64 || strings.Trim(rep.ID, "0123456789abcdef") != "" || rep.BytesIn < 0 || rep.BytesOut < 0 {
		return nil, refusedForm, nil
	}
	rep.Reason, rep.RemoteAddr = sanitize(rep.Reason), sanitize(rep.RemoteAddr)
	if rep.Kind == store.EventFeedStale {
		ev, err := feedStale(ctx, tx, by, rep, now)
		return ev, "", err
	}
	if rep.At.IsZero() || rep.At.After(now) || rep.At.Before(now.Add(-7*24*time.Hour)) {
		rep.At = now // a wrong clock, or a report that is too old
	}
	known, err := collect(ctx, tx, scanSession, `SELECT `+sessionColumns+` FROM sessions WHERE id = $1`, rep.ID)
	if err != nil {
		return nil, "", err
	}
	if len(known) > 0 && (known[0].Machine != by.Machine || known[0].Engine != by.Engine) {
		return nil, refusedMachine, nil
	}
	switch {
	case rep.Kind == "open" && len(known) > 0:
		if known[0].Serial != rep.Serial {
			return nil, refusedMachine, nil
		}
		return nil, "", nil
	case rep.Kind == "open":
		return openSession(ctx, tx, by, rep, now)
	case rep.Kind != "progress" && rep.Kind != "close":
		return nil, refusedForm, nil
	case len(known) == 0:
		return nil, refusedUnknown, nil
	case known[0].ClosedAt != nil && rep.Kind == "close":
		return nil, "", nil
	case known[0].ClosedAt != nil:
		return nil, refusedClosed, nil
	}
	return moveSession(ctx, tx, &known[0], rep, now)
}

// feedStale returns the event of an engine without a fresh revocation list, or nil
// for a repeated report.
func feedStale(ctx context.Context, tx transaction, by store.SessionReporter, rep store.SessionReport, now time.Time) (*store.Event, error) {
	if rep.At.IsZero() || rep.At.After(now) {
		rep.At = now
	}
	detail := map[string]string{"engine": by.Engine, "report": rep.ID}
	raw, err := json.Marshal(detail) // as newEventRow encodes it
	if err != nil {
		return nil, err
	}
	var seq int64
	if repeated, err := queryRow(ctx, tx, `SELECT seq FROM events WHERE type = $1 AND detail = $2 LIMIT 1`, []any{store.EventFeedStale, string(raw)}, &seq); err != nil || repeated {
		return nil, err
	}
	return &store.Event{Type: store.EventFeedStale, Time: rep.At, By: by.Machine, Identity: by.Machine, Reason: rep.Reason, Detail: detail}, nil
}

func openSession(ctx context.Context, tx transaction, by store.SessionReporter, rep store.SessionReport, now time.Time) (*store.Event, string, error) {
	raw, err := parseSerial(rep.Serial)
	if err != nil {
		return nil, refusedSerial, nil
	}
	c, err := certificateBySerial(ctx, tx, raw)
	switch {
	case err != nil:
		return nil, "", err
	case c == nil:
		return nil, refusedSerial, nil
	case !slices.Contains(c.Engines, by.Engine) || c.Profile != "client":
		return nil, refusedEngine, nil
	}
	err = tx.insert(ctx, tableSessions, [][]any{{rep.ID, by.Engine, by.Machine, c.Serial, c.Run, c.RunID, c.Repository, c.Identity,
		rep.RemoteAddr, "", micro(rep.At), micro(now), int64(0), rep.BytesIn, rep.BytesOut}})
	return &store.Event{
		Type: store.EventConnected, Time: rep.At, By: by.Machine, Serial: c.Serial, Identity: c.Identity, Repository: c.Repository, RunID: c.RunID, Rule: c.Rule,
		Detail: map[string]string{"session": rep.ID, "engine": by.Engine, "remote_addr": rep.RemoteAddr},
	}, "", err
}

// moveSession writes the progress or the end of a session. Byte counts never
// decrease.
func moveSession(ctx context.Context, tx transaction, s *store.Session, rep store.SessionReport, now time.Time) (*store.Event, string, error) {
	in, out := max(s.BytesIn, rep.BytesIn), max(s.BytesOut, rep.BytesOut)
	closed := int64(0)
	if rep.Kind == "close" {
		closed = max(micro(rep.At), micro(s.OpenedAt))
	}
	err := tx.do(ctx, `UPDATE sessions SET seen_at = $1, closed_at = $2, bytes_in = $3, bytes_out = $4, reason = $5 WHERE id = $6`,
		micro(now), closed, in, out, rep.Reason, s.ID)
	if err != nil || closed == 0 {
		return nil, "", err
	}
	runID := ""
	if raw, err := hex.DecodeString(s.Serial); err == nil {
		if c, err := certificateBySerial(ctx, tx, raw); err != nil {
			return nil, "", err
		} else if c != nil {
			runID = c.RunID
		}
	}
	return &store.Event{
		Type: store.EventDisconnected, Time: rep.At, By: s.Machine, Serial: s.Serial, Identity: s.Identity, Repository: s.Repository, RunID: runID, Reason: rep.Reason,
		Detail: map[string]string{"session": s.ID, "engine": s.Engine, "bytes_in": strconv.FormatInt(in, 10), "bytes_out": strconv.FormatInt(out, 10)},
	}, "", nil
}

// Sessions implements store.Store.
func (l *ledger) Sessions(ctx context.Context, f store.SessionFilter) ([]store.Session, string, error) {
	if f.Now.IsZero() {
		f.Now = time.Now()
	}
	return list[store.Session]{
		name:  "list sessions",
		scope: cursorScope("sessions", f.Engine, f.Serial, f.RunID, f.Repository, strconv.FormatBool(f.Live), strconv.FormatBool(f.Cut), timeText(f.Since), timeText(f.Until)),
		query: func(_ context.Context, _ reader, below *position, limit int) (*query, error) {
			return sessionQuery(f, below, limit, l.dialect), nil
		},
		scan: scanSession,
		end:  func(s store.Session) position { return position{micro(s.OpenedAt), s.ID} },
	}.page(ctx, l, f.Cursor, f.Limit)
}

// isCut selects the sessions that an engine cut, like the index sessions_cut. It
// excludes sessions that the client or the engine closed.
const isCut = "reason IN ('revoked', 'expired', 'feed_stale', 'max_age')"

// sessionQuery builds the query of a page. It finds live sessions by their last
// report, since sessions of lost machines stay open forever. Live sessions are few
// enough to sort.
func sessionQuery(f store.SessionFilter, below *position, limit int, d *dialect) *query {
	q := &query{}
	for _, c := range []equal{{"engine", f.Engine}, {"repository", f.Repository}, {"run_id", f.RunID}, {"serial", f.Serial}} {
		if c.value != "" {
			q.where(c.column + " = " + q.arg(c.value))
			q.index = "sessions_" + c.column // the last of these indexes has the fewest rows
		}
	}
	if f.Since != nil {
		q.where("opened_at >= " + q.arg(micro(*f.Since)))
	}
	if f.Until != nil {
		q.where("opened_at < " + q.arg(micro(*f.Until)))
	}
	if f.Cut {
		q.where(isCut)
		q.index = "sessions_cut" // these are few
	}
	from, end := "sessions", fmt.Sprintf(" ORDER BY opened_at DESC, id DESC LIMIT %d", limit)
	if f.Live {
		q.index = "sessions_live"
		q.where("closed_at = 0", "seen_at >= "+q.arg(micro(f.Now.Add(-liveWindow))))
		q.text = "WITH live AS MATERIALIZED (SELECT opened_at, id FROM sessions" + d.hint(q.index) + q.conditions() + ") "
		from, q.index, q.terms = "live", "", nil
	}
	if below != nil {
		q.where("(opened_at, id) < (" + q.arg(below.id) + ", " + q.arg(below.text) + ")")
	}
	if f.Live { // read only the page's rows whole
		ids := "(SELECT id FROM " + from + q.conditions() + end + ")"
		from, q.terms = "sessions", []string{"id IN " + ids}
	}
	q.text += "SELECT " + sessionColumns + " FROM " + from + d.hint(q.index) + q.conditions() + end
	return q
}
