package sidecar

import (
	"container/list"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"strings"
	"sync"
	"time"

	"github.com/mayfly-ca/mayfly/client/wire"
)

// Times and bounds of session reports.
const (
	// reportDelay collects what happens together into one request.
	reportDelay = 250 * time.Millisecond
	// reportProgress is how often the bytes of a live session are told.
	reportProgress = 30 * time.Second
	// reportSilent is how often a live session is told that moves no bytes: the
	// issuer counts one as gone that it has not heard of for two minutes.
	reportSilent = 45 * time.Second
	// reportRetryMax bounds the wait after an error.
	reportRetryMax = time.Minute
	// maxStale bounds the notes of stale feeds that wait to be told.
	maxStale = 32
	// maxEnded bounds the ended sessions that wait to be told. The oldest go
	// first, untold.
	maxEnded = 20000
	// tokenMargin is the life that a token must have left to be used again.
	tokenMargin = 30 * time.Second
)

// byteCounter is a relay, to its session.
type byteCounter interface{ Bytes() (in, out int64) }

// session is one relay as the issuer is to know it.
type session struct {
	of       *reporter
	id       string
	serial   string
	run      string
	remote   string
	openedAt time.Time
	bytes    byteCounter

	// Owned by of.mu.
	told     bool // the issuer has the opening
	closedAt time.Time
	reason   string
	toldAt   time.Time
	toldIn   int64 // as last told
	toldOut  int64
	dirty    *list.Element // in reporter.news; nil when there is nothing to tell
}

// reporter tells the issuer of sessions. Relays never wait for it: it holds
// what it could not tell yet, within bounds.
type reporter struct {
	s    *sidecar
	wake chan struct{}

	mu       sync.Mutex
	live     map[*session]struct{}
	news     list.List            // of *session, oldest first
	ended    int                  // sessions in news that are closed
	stale    []wire.SessionReport // of kind feed_stale
	token    string
	tokenEnd time.Time
}

func newReporter(s *sidecar) *reporter {
	return &reporter{s: s, wake: make(chan struct{}, 1), live: map[*session]struct{}{}}
}

// open notes a new relay.
func (r *reporter) open(p party, bytes byteCounter) *session {
	var id [16]byte
	rand.Read(id[:])
	s := &session{
		of: r, id: hex.EncodeToString(id[:]), serial: p.serial, run: p.run,
		remote: p.remote, openedAt: time.Now().UTC(), bytes: bytes,
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.live[s] = struct{}{}
	r.tell(s)
	return s
}

// end notes that the relay is over.
func (s *session) end(reason string) {
	r := s.of
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.live, s)
	s.closedAt, s.reason = time.Now().UTC(), reason
	r.ended++
	r.tell(s)
	if r.ended > maxEnded {
		r.dropOldest()
	}
}

// feedStale notes that the feed is stale from now on.
func (r *reporter) feedStale(why string) {
	var id [16]byte
	rand.Read(id[:])
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.stale) == maxStale {
		return
	}
	r.stale = append(r.stale, wire.SessionReport{Kind: wire.SessionFeedStale, ID: hex.EncodeToString(id[:]), At: time.Now().UTC(), Reason: why})
	nudge(r.wake)
}

// tell puts s among the news. The caller holds mu.
func (r *reporter) tell(s *session) {
	if s.dirty == nil {
		s.dirty = r.news.PushBack(s)
	}
	nudge(r.wake)
}

// dropOldest forgets the oldest ended session. The caller holds mu.
func (r *reporter) dropOldest() {
	for e := r.news.Front(); e != nil; e = e.Next() {
		s := e.Value.(*session)
		if !s.closedAt.IsZero() {
			r.forget(s)
			r.s.metrics.reports.WithLabelValues("dropped").Inc()
			return
		}
	}
}

// forget takes s from the news. The caller holds mu.
func (r *reporter) forget(s *session) {
	if s.dirty == nil {
		return
	}
	r.news.Remove(s.dirty)
	s.dirty = nil
	if !s.closedAt.IsZero() {
		r.ended--
	}
}

// waiting is how many sessions have something to tell.
func (r *reporter) waiting() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.news.Len()
}

// run tells until ctx ends.
func (r *reporter) run(ctx context.Context) {
	progress := time.NewTicker(reportProgress)
	defer progress.Stop()
	retry := reportDelay
	failing := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.wake:
		case <-progress.C:
			r.progress()
		}
		if !sleep(ctx, reportDelay) {
			return
		}
		if err := r.flush(ctx); err == nil {
			retry, failing = reportDelay, false
			continue
		} else if !failing && ctx.Err() == nil {
			r.s.log.Warn("sessions are not reported", "error", err, "waiting", r.waiting())
			failing = true
		}
		if !sleep(ctx, retry/2+mathrand.N(retry)) {
			return
		}
		retry = min(2*retry, reportRetryMax)
		nudge(r.wake)
	}
}

// progress puts the live sessions among the news whose bytes have moved, or of
// which nothing was told for long.
func (r *reporter) progress() {
	now := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	for s := range r.live {
		if in, out := s.bytes.Bytes(); in != s.toldIn || out != s.toldOut || now.Sub(s.toldAt) >= reportSilent {
			r.tell(s)
		}
	}
}

// flush tells all news, a batch at a time.
func (r *reporter) flush(ctx context.Context) error {
	for {
		batch := r.batch()
		if len(batch.reports) == 0 {
			return nil
		}
		token, err := r.machineToken(ctx)
		if err != nil {
			return err
		}
		answer, err := r.s.issuer.Report(ctx, token, wire.SessionsRequest{Reports: batch.reports})
		if malformed(err) {
			// It would be no better the next time, and hold up all others.
			r.s.log.Error("session reports dropped: the issuer does not understand them", "error", err, "reports", len(batch.reports))
			r.s.metrics.reports.WithLabelValues("refused").Add(float64(len(batch.reports)))
			r.settle(batch, wire.SessionsResponse{})
			continue
		}
		if err != nil {
			r.distrust(err)
			return fmt.Errorf("report sessions: %w", err)
		}
		r.settle(batch, answer)
	}
}

// batch is one request, and whom it is about.
type batch struct {
	reports  []wire.SessionReport
	sessions []*session
	closed   []bool // whether the session's end is in reports
	stale    int    // how many of the first reports are of the feed
}

func (r *reporter) batch() batch {
	now := time.Now().UTC()
	r.mu.Lock()
	defer r.mu.Unlock()
	b := batch{stale: len(r.stale), reports: append([]wire.SessionReport(nil), r.stale...)}
	for e := r.news.Front(); e != nil && len(b.reports)+2 <= wire.MaxSessionReports; e = e.Next() {
		s := e.Value.(*session)
		s.toldIn, s.toldOut = s.bytes.Bytes()
		s.toldAt = now
		report := wire.SessionReport{
			ID: s.id, Serial: s.serial, Run: s.run, RemoteAddr: s.remote,
			BytesIn: s.toldIn, BytesOut: s.toldOut,
		}
		if !s.told {
			report.Kind, report.At = wire.SessionOpen, s.openedAt
			b.reports = append(b.reports, report)
		}
		closed := !s.closedAt.IsZero()
		switch {
		case closed:
			report.Kind, report.At, report.Reason = wire.SessionClose, s.closedAt, s.reason
			b.reports = append(b.reports, report)
		case s.told:
			report.Kind, report.At = wire.SessionProgress, now
			b.reports = append(b.reports, report)
		}
		b.sessions = append(b.sessions, s)
		b.closed = append(b.closed, closed)
	}
	return b
}

// settle notes what the issuer has, or will never take.
func (r *reporter) settle(b batch, answer wire.SessionsResponse) {
	for _, refused := range answer.Refused {
		r.s.log.Warn("session report refused", "session", refused.ID, "reason", refused.Reason)
	}
	r.s.metrics.reports.WithLabelValues("refused").Add(float64(len(answer.Refused)))
	r.s.metrics.reports.WithLabelValues("sent").Add(float64(answer.Accepted))
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stale = r.stale[b.stale:]
	for i, s := range b.sessions {
		s.told = true
		if b.closed[i] == !s.closedAt.IsZero() {
			r.forget(s)
		}
	}
}

// machineToken is a token for reports: the last one while it lives.
func (r *reporter) machineToken(ctx context.Context) (string, error) {
	r.mu.Lock()
	token, end := r.token, r.tokenEnd
	r.mu.Unlock()
	if token != "" && time.Until(end) > tokenMargin {
		return token, nil
	}
	audience, err := r.s.audience(ctx)
	if err != nil {
		return "", err
	}
	if token, err = r.s.source.Token(ctx, sessionsAudience(audience)); err != nil {
		return "", err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.token, r.tokenEnd = token, expiry(token)
	return token, nil
}

// distrust drops the token when the issuer did not take it.
func (r *reporter) distrust(err error) {
	var p *wire.Problem
	if errors.As(err, &p) && (p.Status == 401 || p.Status == 403) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.token = ""
	}
}

// malformed tells whether the issuer refused the request as such.
func malformed(err error) bool {
	var p *wire.Problem
	return errors.As(err, &p) && (p.Status == 400 || p.Status == 413)
}

// expiry reads when a token ends, which only the issuer verifies; zero when it
// does not say.
func expiry(token string) time.Time {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return time.Time{}
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return time.Time{}
	}
	var claims struct {
		Exp float64 `json:"exp"`
	}
	if json.Unmarshal(payload, &claims) != nil || claims.Exp <= 0 || claims.Exp > 1<<40 {
		return time.Time{}
	}
	return time.Unix(int64(claims.Exp), 0)
}
