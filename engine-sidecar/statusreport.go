package sidecar

import (
	"context"
	"strings"
	"sync/atomic"
	"time"

	"github.com/mayfly-ca/mayfly/client/wire"
	"github.com/mayfly-ca/mayfly/engine-sidecar/internal/revocation"
)

// statusPause is how long no status is sent after the issuer found one
// malformed. Such an issuer has an earlier version, and may be upgraded.
const statusPause = time.Hour

// statusReports is the part of reporter that reports the sidecar's own status.
// A status has its own request, after the session reports, so its failure does
// not affect them.
type statusReports struct {
	changed  chan struct{} // see announce
	listened atomic.Bool   // announce was called
	// send is reporter.sendStatus, except in tests.
	send func(ctx context.Context, stopped bool) (refused string, err error)

	// Owned by reporter.run.
	due     bool
	sent    bool // at least one
	stopped bool
	failing bool      // the last one was not accepted
	paused  time.Time // no status is sent before this time
}

// announce schedules a status report: the sidecar has started or stopped
// listening.
func (r *reporter) announce() {
	r.status.listened.Store(true)
	wake(r.status.changed)
}

// reportStatus sends the status when it is due. It logs only the first failure
// in a row, and the next report follows a minute later.
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

// ownStatus returns the sidecar's status. first marks the first report,
// stopped the last one, when the engine has already stopped.
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
		status.EngineSocket = wire.SocketOK // it has just answered; otherwise the sidecar would not listen
		return status
	case s.checker.Revoked(revocation.CertificateOf(own.Chain())):
		status.State = wire.SidecarPaused
	}
	if s.socket.ask() == nil {
		status.EngineSocket = wire.SocketOK
	}
	return status
}

// maxEngineVersion bounds the length of engine_version.
const maxEngineVersion = 512

// maxReportedVersion bounds the length of the reported version. The issuer
// accepts no more.
const maxReportedVersion = 128

// validVersion reports whether s is a valid engine_version.
func validVersion(s string) bool {
	return len(s) <= maxEngineVersion && len(reportedVersion(s)) <= maxReportedVersion &&
		strings.IndexFunc(s, func(r rune) bool { return r <= ' ' || r > '~' }) < 0
}

// reportedVersion returns the part of engine_version that is reported. Of an
// image reference, REGISTRY/PATH/NAME:TAG@DIGEST, that is the name with the
// tag, or with the beginning of the digest if there is no tag.
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
