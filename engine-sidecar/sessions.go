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
	// reportDelay is how long reports are collected before one request.
	reportDelay = 250 * time.Millisecond
	// reportProgress is the interval between byte counts of a live session.
	reportProgress = 30 * time.Second
	// reportSilent is the interval between reports of a live session that
	// moves no bytes. The issuer counts a session as gone after two minutes
	// without a report.
	reportSilent = 45 * time.Second
	// reportRetryMax bounds the wait after an error.
	reportRetryMax = time.Minute
	// maxStale bounds the stale-feed notes that wait to be sent.
	maxStale = 32
	// maxEnded bounds the ended sessions that wait to be sent. Beyond it the
	// oldest are dropped unsent.
	maxEnded = 20000
	// tokenMargin is the remaining lifetime that a token needs to be reused.
	tokenMargin = 30 * time.Second
	// lastReports bounds the final flush.
	lastReports = 3 * time.Second
)

// byteCounter is the part of a relay that its session reads.
type byteCounter interface{ Bytes() (in, out int64) }

// session is one relay, as it is reported to the issuer.
type session struct {
	of       *reporter
	id       string
	serial   string
	run      string
	remote   string
	openedAt time.Time
	bytes    byteCounter

	// Owned by of.mu.
	reported bool // the issuer has the opening report
	closedAt time.Time
	reason   string
	toldAt   time.Time
	toldIn   int64 // as last reported
	toldOut  int64
	dirty    *list.Element // in reporter.queue; nil when there is nothing to report
}

// reporter reports sessions to the issuer. Relays never wait for it: it holds
// unsent reports, within bounds.
type reporter struct {
	s      *sidecar
	wake   chan struct{}
	status statusReports

	mu    sync.Mutex
	live  map[*session]struct{}
	queue list.List            // of *session, oldest first
	ended int                  // sessions in queue that are closed
	stale []wire.SessionReport // of kind feed_stale

	// Owned by run.
	token    string
	tokenEnd time.Time
	most     int // notes and sessions in the next batch, at most
}

func newReporter(s *sidecar) *reporter {
	r := &reporter{s: s, wake: make(chan struct{}, 1), live: map[*session]struct{}{}, most: wire.MaxSessionReports}
	r.status.changed, r.status.send = make(chan struct{}, 1), r.sendStatus
	return r
}

// open records a new relay.
func (r *reporter) open(p peerInfo, bytes byteCounter) *session {
	var id [16]byte
	rand.Read(id[:])
	s := &session{
		of: r, id: hex.EncodeToString(id[:]), serial: p.serial, run: p.run,
		remote: p.remote, openedAt: time.Now().UTC(), bytes: bytes,
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.live[s] = struct{}{}
	r.enqueue(s)
	return s
}

// end records that the relay has ended.
func (s *session) end(reason string) {
	r := s.of
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.live, s)
	s.closedAt, s.reason = time.Now().UTC(), reason
	r.ended++
	r.enqueue(s)
	if r.ended > maxEnded {
		r.dropOldest()
	}
}

// feedStale records that the feed has become stale.
func (r *reporter) feedStale(why string) {
	var id [16]byte
	rand.Read(id[:])
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.stale) == maxStale {
		return
	}
	r.stale = append(r.stale, wire.SessionReport{Kind: wire.SessionFeedStale, ID: hex.EncodeToString(id[:]), At: time.Now().UTC(), Reason: why})
	wake(r.wake)
}

// enqueue adds s to the queue. The caller holds mu.
func (r *reporter) enqueue(s *session) {
	if s.dirty == nil {
		s.dirty = r.queue.PushBack(s)
	}
	wake(r.wake)
}

// dropOldest drops the oldest ended session. The caller holds mu.
func (r *reporter) dropOldest() {
	for e := r.queue.Front(); e != nil; e = e.Next() {
		s := e.Value.(*session)
		if !s.closedAt.IsZero() {
			r.forget(s)
			r.s.metrics.reports.WithLabelValues("dropped").Inc()
			return
		}
	}
}

// forget removes s from the queue. The caller holds mu.
func (r *reporter) forget(s *session) {
	if s.dirty == nil {
		return
	}
	r.queue.Remove(s.dirty)
	s.dirty = nil
	if !s.closedAt.IsZero() {
		r.ended--
	}
}

// waiting returns the number of sessions in the queue.
func (r *reporter) waiting() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.queue.Len()
}

// run sends reports until ctx ends, and then flushes the rest once.
func (r *reporter) run(ctx context.Context) {
	defer r.flushFinal(ctx)
	progress, status := time.NewTicker(reportProgress), time.NewTicker(wire.StatusEvery)
	defer progress.Stop()
	defer status.Stop()
	retry := reportDelay
	failing := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.wake:
		case <-progress.C:
			r.progress()
		case <-r.status.changed:
			r.status.due = true
		case <-status.C:
			r.status.due = r.status.listened.Load()
		}
		if !sleep(ctx, reportDelay) {
			return
		}
		if err := r.flush(ctx); err == nil {
			retry, failing = reportDelay, false
			r.reportStatus(ctx)
			continue
		} else if !failing && ctx.Err() == nil {
			r.s.log.Warn("sessions are not reported", "error", err, "waiting", r.waiting())
			failing = true
		}
		if !sleep(ctx, retry/2+mathrand.N(retry)) {
			return
		}
		retry = min(2*retry, reportRetryMax)
		wake(r.wake)
	}
}

// flushFinal sends the rest within lastReports, although ctx has ended.
func (r *reporter) flushFinal(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastReports)
	defer cancel()
	if err := r.flush(ctx); err != nil {
		r.s.log.Warn("last sessions are not reported", "error", err, "waiting", r.waiting())
		return
	}
	r.status.stopped, r.status.due = true, r.status.listened.Load()
	r.reportStatus(ctx)
}

// progress enqueues the live sessions whose byte counts changed, or whose last
// report is reportSilent old.
func (r *reporter) progress() {
	now := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	for s := range r.live {
		if in, out := s.bytes.Bytes(); in != s.toldIn || out != s.toldOut || now.Sub(s.toldAt) >= reportSilent {
			r.enqueue(s)
		}
	}
}

// flush sends all reports, one batch at a time. A batch that the issuer finds
// malformed is halved until the faulty item is alone. That item is dropped,
// since it would block all others.
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
		switch {
		case err == nil:
			r.most = min(2*r.most, wire.MaxSessionReports)
			r.acknowledge(batch, answer)
		case malformed(err) && batch.items() > 1:
			r.most = batch.items() / 2
		case malformed(err):
			r.s.log.Error("session report dropped: the issuer does not understand it", "error", err, "session", batch.reports[0].ID)
			r.s.metrics.reports.WithLabelValues("refused").Add(float64(len(batch.reports)))
			r.acknowledge(batch, wire.SessionsResponse{})
		default:
			r.dropToken(err)
			return fmt.Errorf("report sessions: %w", err)
		}
	}
}

// batch is one request and the sessions that it reports.
type batch struct {
	reports  []wire.SessionReport
	size     int // of the request's body, in bytes
	sessions []*session
	closed   []bool // whether the session's end is in reports
	stale    int    // how many of the first reports are stale-feed notes
}

// items is the number of parts that the batch can be split into.
func (b *batch) items() int { return b.stale + len(b.sessions) }

// add appends reports that belong together. It returns false when they do not
// fit, by number or by size of the body. An empty batch accepts any.
func (b *batch) add(reports ...wire.SessionReport) bool {
	size := max(b.size, len(`{"reports":[]}`))
	for _, report := range reports {
		size += encodedAtMost(&report) + len(",")
	}
	if len(b.reports) > 0 && (len(b.reports)+len(reports) > wire.MaxSessionReports || size > wire.MaxBodyBytes) {
		return false
	}
	b.reports, b.size = append(b.reports, reports...), size
	return true
}

// encodedAtMost returns an upper bound for the length of r in JSON. It does
// not encode r, which would cost each relay a second encoding.
func encodedAtMost(r *wire.SessionReport) int {
	n := 220 // the members' names, a time, two numbers
	for _, s := range []string{r.Kind, r.ID, r.Serial, r.Run, r.RemoteAddr, r.Reason} {
		n += len(s)
		for i := range len(s) {
			if c := s[i]; c < ' ' || c > '~' || strings.IndexByte(`"\<>&`, c) >= 0 {
				n += len(`\u0000`) - 1
			}
		}
	}
	return n
}

// batch returns the oldest reports, as many as one request may hold.
func (r *reporter) batch() batch {
	now := time.Now().UTC()
	r.mu.Lock()
	defer r.mu.Unlock()
	var b batch
	for _, note := range r.stale {
		if b.items() == r.most || !b.add(note) {
			return b
		}
		b.stale++
	}
	for e := r.queue.Front(); e != nil && b.items() < r.most; e = e.Next() {
		s := e.Value.(*session)
		in, out := s.bytes.Bytes()
		if !b.add(s.reports(in, out, now)...) {
			break
		}
		s.toldIn, s.toldOut, s.toldAt = in, out, now
		b.sessions = append(b.sessions, s)
		b.closed = append(b.closed, !s.closedAt.IsZero())
	}
	return b
}

// reports returns the reports that are due for s. The caller holds of.mu.
func (s *session) reports(in, out int64, now time.Time) []wire.SessionReport {
	report := wire.SessionReport{
		ID: s.id, Serial: s.serial, Run: s.run, RemoteAddr: s.remote, BytesIn: in, BytesOut: out,
	}
	var all []wire.SessionReport
	if !s.reported {
		report.Kind, report.At = wire.SessionOpen, s.openedAt
		all = append(all, report)
	}
	switch {
	case !s.closedAt.IsZero():
		report.Kind, report.At, report.Reason = wire.SessionClose, s.closedAt, s.reason
		all = append(all, report)
	case s.reported:
		report.Kind, report.At = wire.SessionProgress, now
		all = append(all, report)
	}
	return all
}

// acknowledge records which reports the issuer has accepted or refused.
func (r *reporter) acknowledge(b batch, answer wire.SessionsResponse) {
	for _, refused := range answer.Refused {
		r.s.log.Warn("session report refused", "session", refused.ID, "reason", refused.Reason)
	}
	r.s.metrics.reports.WithLabelValues("refused").Add(float64(len(answer.Refused)))
	r.s.metrics.reports.WithLabelValues("sent").Add(float64(answer.Accepted))
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stale = r.stale[b.stale:]
	for i, s := range b.sessions {
		s.reported = true
		if b.closed[i] == !s.closedAt.IsZero() {
			r.forget(s)
		}
	}
}

// machineToken returns a token for reports. It reuses the last one while that
// is valid.
func (r *reporter) machineToken(ctx context.Context) (string, error) {
	if r.token != "" && time.Until(r.tokenEnd) > tokenMargin {
		return r.token, nil
	}
	audience, err := r.s.audience(ctx)
	if err != nil {
		return "", err
	}
	token, err := r.s.source.Token(ctx, sessionsAudience(audience))
	if err != nil {
		return "", err
	}
	r.token, r.tokenEnd = token, expiry(token)
	return token, nil
}

// dropToken drops the token when err says that the issuer rejected it.
func (r *reporter) dropToken(err error) {
	var p *wire.Problem
	if errors.As(err, &p) && (p.Status == 401 || p.Status == 403) {
		r.token = ""
	}
}

// malformed reports whether the issuer rejected the request as malformed or
// too large.
func malformed(err error) bool {
	var p *wire.Problem
	return errors.As(err, &p) && (p.Status == 400 || p.Status == 413)
}

// expiry returns the expiry in an unverified token, or zero if there is none.
// Only the issuer verifies it.
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
