package sidecar

import (
	"context"
	"strings"
	"sync/atomic"
	"time"

	"github.com/mayfly-ca/mayfly/client/wire"
	"github.com/mayfly-ca/mayfly/engine-sidecar/internal/revocation"
)

// statusPause is how long no status is sent after the issuer did not understand
// one: it is of an earlier version, and may be replaced.
const statusPause = time.Hour

// statusReports is the reporter's part that reports the sidecar itself. A status
// goes in a request of its own, after the session reports: whatever becomes of
// it, they are with the issuer.
type statusReports struct {
	changed  chan struct{} // see announce
	listened atomic.Bool   // announce was called
	// send is reporter.sendStatus, but in tests of when it is called.
	send func(ctx context.Context, stopped bool) (refused string, err error)

	// Owned by reporter.run.
	due     bool
	sent    bool // one or more
	stopped bool
	failing bool      // the last one was not taken
	paused  time.Time // until when none is sent
}

// announce has the status reported soon: the sidecar began or ceased to listen.
func (r *reporter) announce() {
	r.status.listened.Store(true)
	wake(r.status.changed)
}

// reportStatus sends the status when it is due. That it fails is logged, the
// first time, and changes nothing else: a minute later there is another.
func (r *reporter) reportStatus(ctx context.Context) {
	st := &r.status
	due := st.due && !time.Now().Before(st.paused)
	if st.due = false; !due {
		return
	}
	why, err := st.send(ctx, st.stopped)
	if err != nil {
		why = err.Error()
		r.dropToken(err)
	}
	if malformed(err) {
		st.paused = time.Now().Add(statusPause)
	}
	if why != "" && !st.failing && ctx.Err() == nil {
		r.s.log.Warn("status is not reported", "error", why)
	}
	st.failing = why != ""
}

// sendStatus sends the status and returns why the issuer does not store it.
func (r *reporter) sendStatus(ctx context.Context, stopped bool) (refused string, err error) {
	token, err := r.machineToken(ctx)
	if err != nil {
		return "", err
	}
	status := r.s.ownStatus(!r.status.sent, stopped)
	r.status.sent = true
	answer, err := r.s.issuer.Report(ctx, token, wire.SessionsRequest{Status: &status})
	return answer.StatusRefused, err
}

// ownStatus is what the sidecar reports of itself: the first time, when it stops,
// or in between. One that stops has stopped its engine before.
func (s *sidecar) ownStatus(first, stopped bool) wire.SidecarStatus {
	own := s.own.now.Load()
	status := wire.SidecarStatus{
		State: wire.SidecarListening, Version: s.cfg.Program.Version, EngineVersion: reportedVersion(s.cfg.EngineVersion),
		EngineSocket: wire.SocketUnreachable, CertificateNotAfter: own.Response.NotAfter, FeedAgeSeconds: int64(max(0, s.checker.Age()) / time.Second),
	}
	if status.Version == "" {
		status.Version = "unknown"
	}
	switch {
	case stopped:
		status.State = wire.SidecarStopped
		return status
	case first:
		status.EngineSocket = wire.SocketOK // it has just answered, or nothing would listen
		return status
	case s.checker.Revoked(revocation.CertificateOf(own.Chain())):
		status.State = wire.SidecarPaused
	}
	if s.socket.ask() == nil {
		status.EngineSocket = wire.SocketOK
	}
	return status
}

// maxEngineVersion bounds engine_version, before it is cut to what is reported.
const maxEngineVersion = 512

// maxReportedVersion bounds what is reported of it: the issuer takes no more.
const maxReportedVersion = 128

// validVersion reports whether engine_version may be s.
func validVersion(s string) bool {
	return len(s) <= maxEngineVersion && len(reportedVersion(s)) <= maxReportedVersion &&
		strings.IndexFunc(s, func(r rune) bool { return r <= ' ' || r > '~' }) < 0
}

// reportedVersion is what the issuer gets of engine_version: of an image's
// reference, REGISTRY/PATH/NAME:TAG@DIGEST, the name and the tag, or the beginning
// of the digest where there is no tag.
func reportedVersion(s string) string {
	s = s[strings.LastIndexByte(s, '/')+1:]
	name, digest, pinned := strings.Cut(s, "@")
	switch {
	case !pinned, strings.Contains(name, ":"):
		return name
	}
	algorithm, hex, _ := strings.Cut(digest, ":")
	return name + "@" + algorithm + ":" + hex[:min(len(hex), 12)]
}
