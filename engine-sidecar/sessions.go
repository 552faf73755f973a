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
	// lastReports bounds what is told at the end.
	lastReports = 3 * time.Second
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
	reported bool // the issuer has the opening
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
	s      *sidecar
	wake   chan struct{}
	status statusReports

	mu    sync.Mutex
	live  map[*session]struct{}
	queue list.List            // of *session, oldest first
	ended int                  // sessions in news that are closed
	stale []wire.SessionReport // of kind feed_stale

	// Owned by run.
	token    string
	tokenEnd time.Time
	most     int // of notes and sessions in the next batch
}

func newReporter(s *sidecar) *reporter {
	r := &reporter{s: s, wake: make(chan struct{}, 1), live: map[*session]struct{}{}, most: wire.MaxSessionReports}
	r.status.changed, r.status.send = make(chan struct{}, 1), r.sendStatus
	return r
}

// open notes a new relay.
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

// end notes that the relay is over.
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
	wake(r.wake)
}

// enqueue puts s among the news. The caller holds mu.
func (r *reporter) enqueue(s *session) {
	if s.dirty == nil {
		s.dirty = r.queue.PushBack(s)
	}
	wake(r.wake)
}

// dropOldest forgets the oldest ended session. The caller holds mu.
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

// forget takes s from the news. The caller holds mu.
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

// waiting is how many sessions have something to tell.
func (r *reporter) waiting() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.queue.Len()
}

// run tells until ctx ends, and then what is left, a last time.
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

// flushFinal tells what is left within lastReports: ctx has ended.
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

// progress puts the live sessions among the news whose bytes have moved, or of
// which nothing was told for long.
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

// flush tells all news, a batch at a time. A batch that the issuer does not
// understand is told again in parts, until what it stumbles over stands alone:
// that is dropped, since it would hold up all others for ever.
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

// batch is one request, and whom it is about.
type batch struct {
	reports  []wire.SessionReport
	size     int // of the request's body, in bytes
	sessions []*session
	closed   []bool // whether the session's end is in reports
	stale    int    // how many of the first reports are of the feed
}

// items are the parts that the batch can be told in.
func (b *batch) items() int { return b.stale + len(b.sessions) }

// add takes reports in that belong together. It returns false when they fit no
// more: by number, or by the size of the body. An empty batch takes any.
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

// encodedAtMost bounds the length of r in JSON, without the encoding, which every
// relay would pay for twice.
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

// batch is the oldest news, as much as one request takes.
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

// reports are what there is to tell of s. The caller holds of.mu.
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

// acknowledge notes what the issuer has, or will never take.
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

// machineToken is a token for reports: the last one while it lives.
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

// dropToken drops the token when the issuer did not take it.
func (r *reporter) dropToken(err error) {
	var p *wire.Problem
	if errors.As(err, &p) && (p.Status == 401 || p.Status == 403) {
		r.token = ""
	}
}

// malformed reports whether the issuer refused the request as such.
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
