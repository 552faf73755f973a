package client

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"
	"time"

	"github.com/mayfly-ca/mayfly/client/tokensource"
	"github.com/mayfly-ca/mayfly/client/wire"
)

// Reasons of a RejectedError and of a CutError, in addition to those that the
// sidecar sends (package wire).
const (
	// ReasonBadCertificate, ReasonUnknownCA and ReasonTLS come from the TLS alert
	// of an engine that refused the client in the handshake.
	ReasonBadCertificate = "bad_certificate"
	ReasonUnknownCA      = "unknown_ca"
	ReasonTLS            = "tls"
	// ReasonSilence: the engine's machine sent nothing for wire.ControlSilence.
	ReasonSilence = "silence"
	// ReasonLost: the connection broke and the engine gave no reason.
	ReasonLost = "connection_lost"
)

// reasonTexts is the text and the hint of each reason. The hint is the one thing
// to do. SERIAL in a hint is replaced by the certificate's serial. explainReason
// handles a reason that is not in the map.
var reasonTexts = map[string]struct{ what, hint string }{
	wire.ReasonRevoked: {"certificate revoked",
		"an admin revoked this run or its certificate: ask one for the reason, which `mayfly certs show SERIAL` shows"},
	wire.ReasonExpired: {"certificate expired",
		"set the clocks of this machine and of the engine's (NTP); if they are right, the lines above say why the certificate was not renewed"},
	wire.ReasonWrongEngine: {"certificate is not granted for this engine",
		"name an engine that the rule grants with --engine, or add this engine to the rule's engines in the issuer's policy"},
	wire.ReasonFeedStale: {"the engine has no fresh revocation list and admits no new connection (feed_stale)",
		"the engine's sidecar does not reach the issuer: its log says why"},
	wire.ReasonLimit: {"the engine has as many connections as it takes (limit)",
		"run it again when other jobs have finished, or raise limits.connections in the sidecar's configuration"},
	wire.ReasonDraining: {"the engine is about to stop (draining)",
		"run it again: the engine's next start takes the connection"},
	wire.ReasonEngineExited: {"the engine ended (engine_exited)",
		"run it again: the engine's machine starts again; the engine's own log says why it ended"},
	wire.ReasonEngineUnavailable: {"the engine takes no connections (engine_unavailable)",
		"look in the engine's own log, and in its sidecar's"},
	ReasonBadCertificate: {"certificate refused (bad_certificate)",
		"look in the sidecar's log for serial SERIAL: it has the reason"},
	ReasonUnknownCA: {"the engine trusts the root of another issuer",
		"give the job and the engine's sidecar the same issuer"},
	ReasonTLS: {"the engine refused the TLS handshake",
		"look in the sidecar's log for serial SERIAL: it has the reason"},
	ReasonSilence: {fmt.Sprintf("the engine's machine did not answer for %v", wire.ControlSilence),
		"check that the engine's machine runs; if it does, the network to it is interrupted"},
	ReasonLost: {"the connection broke, and the engine gave no reason",
		"look in the sidecar's log for serial SERIAL; if it has nothing, the network to the engine is interrupted"},
}

// retryable reports whether a connection that was refused or cut for reason may
// be admitted later. A TLS alert is final.
func retryable(reason string) bool {
	switch reason {
	case ReasonBadCertificate, ReasonUnknownCA, ReasonTLS:
		return false
	}
	return wire.Retryable(reason)
}

// explainReason returns a reason's text and hint. The text of an unknown reason,
// such as one of a later version, contains the reason itself.
func explainReason(reason, serial string) (what, hint string) {
	t, ok := reasonTexts[reason]
	if !ok {
		t = reasonTexts[ReasonBadCertificate]
		t.what = "the engine refused the connection (" + reason + ")"
	}
	return t.what, strings.ReplaceAll(t.hint, "SERIAL", serial)
}

// Hint returns the one thing to do about err, or "" if err has no hint. A hint
// names settings by their configuration keys: trust_anchor, ca_file,
// token_source.
func Hint(err error) string {
	if hint := wire.Hint(err); hint != "" {
		return hint
	}
	var t *tokensource.Error
	if errors.As(err, &t) {
		return t.Hint
	}
	return ""
}

func hinted(hint string, err error) error { return wire.WithHint(err, hint) }

// RejectedError is an engine's refusal of this client's certificate.
type RejectedError struct {
	Engine   string
	Endpoint string
	// Reason is one of package wire's reasons or of this package's.
	Reason string
	// Serial is the serial of the refused certificate.
	Serial string
	// Err is the TLS error of an alert; nil if the sidecar sent the reason.
	Err error
}

// Retryable reports whether the same certificate may be admitted later.
func (e *RejectedError) Retryable() bool { return retryable(e.Reason) }

// Error implements error.
func (e *RejectedError) Error() string {
	what, _ := explainReason(e.Reason, e.Serial)
	s := fmt.Sprintf("engine %s: %s, serial %s: %s refused it", e.Engine, what, e.Serial, e.Endpoint)
	if e.Err != nil {
		s += fmt.Sprintf(" (%v)", e.Err)
	}
	return s
}

// Hint returns what to do about the refusal.
func (e *RejectedError) Hint() string {
	_, hint := explainReason(e.Reason, e.Serial)
	return hint
}

// Unwrap returns the TLS error, if any.
func (e *RejectedError) Unwrap() error { return e.Err }

// CutError is the reason why an established relay ended. Reads and writes of the
// relay return it.
type CutError struct {
	Engine string
	Reason string
	// Serial is the serial of the certificate that held the relay last, and
	// NotAfter is the certificate's end.
	Serial   string
	NotAfter time.Time
	// Renewal is the error of the last renewal; nil if that renewal did not fail.
	Renewal error
	// Err is the connection's own error if the engine gave no reason. Otherwise it
	// is the detail that the engine sent with the reason, if any.
	Err error
}

// Final reports whether a new connection would be refused for the same reason.
func (e *CutError) Final() bool { return !retryable(e.Reason) }

// Error implements error.
func (e *CutError) Error() string {
	what, _ := explainReason(e.Reason, e.Serial)
	if e.Reason == wire.ReasonExpired && !e.NotAfter.IsZero() {
		what += " at " + stamp(e.NotAfter)
	}
	s := fmt.Sprintf("engine %s: %s, serial %s", e.Engine, what, e.Serial)
	if e.Reason != ReasonSilence && e.Reason != ReasonLost {
		s += ": it ended the connection"
	}
	if e.Renewal != nil {
		s += fmt.Sprintf("; renewing the certificate fails: %v", e.Renewal)
	}
	if e.Err != nil {
		s += fmt.Sprintf(" (%v)", e.Err)
	}
	return s
}

// Hint returns what to do about the cut. If the renewal failed, the hint is about that.
func (e *CutError) Hint() string {
	if hint := Hint(e.Renewal); hint != "" {
		return hint
	}
	_, hint := explainReason(e.Reason, e.Serial)
	return hint
}

// Unwrap returns the connection's own error, if any.
func (e *CutError) Unwrap() error { return e.Err }

// UntrustedEngineError is the client's refusal of an engine: the server at the
// endpoint is not the requested engine. It is final.
type UntrustedEngineError struct {
	Engine     string
	Endpoint   string
	ServerName string
	Err        error
}

// Error implements error.
func (e *UntrustedEngineError) Error() string {
	return fmt.Sprintf("what answers at %s is not engine %s (%s): %v", e.Endpoint, e.Engine, e.ServerName, e.Err)
}

// Hint returns the one setting to correct.
func (e *UntrustedEngineError) Hint() string {
	if hint := Hint(e.Err); hint != "" {
		return hint
	}
	var name x509.HostnameError
	if errors.As(e.Err, &name) {
		return fmt.Sprintf("correct server_name of engine %s in the issuer's policy: the certificate is for %s", e.Engine, strings.Join(name.Certificate.DNSNames, ", "))
	}
	return fmt.Sprintf("correct the endpoint of engine %s in the issuer's policy: it must lead to a sidecar of the same issuer", e.Engine)
}

// Unwrap returns the cause.
func (e *UntrustedEngineError) Unwrap() error { return e.Err }

// EngineUnreachableError is an engine that did not answer within the time of a
// dial, or that this machine cannot dial at all.
type EngineUnreachableError struct {
	Engine   string
	Endpoint string
	Waited   time.Duration
	Attempts int
	// Final is set if waiting does not help: a host that does not exist, a firewall
	// on this machine, too many open files.
	Final bool
	// Err is the last attempt's error.
	Err error
}

// Error implements error.
func (e *EngineUnreachableError) Error() string {
	if e.Final {
		return fmt.Sprintf("engine %s at %s cannot be reached: %v", e.Engine, e.Endpoint, e.Err)
	}
	attempts := "attempts"
	if e.Attempts == 1 {
		attempts = "attempt"
	}
	s := fmt.Sprintf("engine %s at %s did not answer within %v (%d %s)", e.Engine, e.Endpoint, e.Waited.Round(time.Second), e.Attempts, attempts)
	var silent noAnswerError
	if errors.As(e.Err, &silent) {
		return s
	}
	return s + ": " + e.Err.Error()
}

// Hint returns what to do about the last attempt's error.
func (e *EngineUnreachableError) Hint() string {
	if hint := dialHint(e.Err); hint != "" {
		return hint
	}
	var dns *net.DNSError
	switch {
	case errors.As(e.Err, &dns) && dns.IsNotFound:
		return fmt.Sprintf("correct the endpoint of engine %s in the issuer's policy: its host does not exist", e.Engine)
	case errors.As(e.Err, &dns):
		return "this machine cannot resolve names now: check its DNS"
	case errors.Is(e.Err, syscall.ECONNREFUSED):
		return fmt.Sprintf("nothing listens at %s: start the engine's sidecar, or correct the port of engine %s in the issuer's policy", e.Endpoint, e.Engine)
	case Asleep(e.Err):
		return fmt.Sprintf("check that the engine's machine runs, and that this network may reach %s; wake_timeout waits longer", e.Endpoint)
	}
	return fmt.Sprintf("correct the endpoint of engine %s in the issuer's policy", e.Engine)
}

// Unwrap returns the cause.
func (e *EngineUnreachableError) Unwrap() error { return e.Err }

// dialHint returns what to do about a dial error that this machine causes, and ""
// for any other error.
func dialHint(err error) string {
	switch {
	case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE):
		return "this process has as many files open as it may: raise the limit (ulimit -n)"
	case errors.Is(err, syscall.EPERM), errors.Is(err, syscall.EACCES):
		return "a firewall or sandbox of this machine forbids the connection: allow it there"
	case errors.Is(err, syscall.ENETUNREACH):
		return "this machine has no route to that address: check its network"
	}
	return ""
}

// Asleep reports whether err is typical of a dial to a sleeping machine or its
// proxy: no listener, a connection that ends before TLS, or no answer.
func Asleep(err error) bool {
	for _, e := range []error{
		io.EOF, io.ErrUnexpectedEOF, io.ErrClosedPipe,
		syscall.ECONNREFUSED, syscall.ECONNRESET, syscall.ECONNABORTED, syscall.EPIPE,
		syscall.ETIMEDOUT, syscall.EHOSTUNREACH,
	} {
		if errors.Is(err, e) {
			return true
		}
	}
	var dns *net.DNSError
	if errors.As(err, &dns) {
		return false
	}
	var issuer *IssuerUnreachableError
	if errors.As(err, &issuer) {
		return false
	}
	var timeout interface{ Timeout() bool }
	return errors.As(err, &timeout) && timeout.Timeout()
}

// timeoutError returns a readable error for a context's error, which it wraps.
func timeoutError(err error) error {
	if errors.Is(err, context.DeadlineExceeded) {
		return noAnswerError{err}
	}
	return fmt.Errorf("no answer: %w", err)
}

type noAnswerError struct{ error }

func (noAnswerError) Error() string { return "no answer in time" }

func (e noAnswerError) Unwrap() error { return e.error }

// IssuerUnreachableError is an issuer that gave no answer of its own. A refusal
// by the issuer is a *wire.Problem.
type IssuerUnreachableError struct {
	URL string
	Err error
	// Final is set if another attempt does not help: a redirect, a certificate that
	// does not verify, a name that does not exist.
	Final bool
}

// Error implements error.
func (e *IssuerUnreachableError) Error() string {
	return fmt.Sprintf("issuer %s: %v", e.URL, e.Err)
}

// Hint returns the one thing to change.
func (e *IssuerUnreachableError) Hint() string {
	if hint := Hint(e.Err); hint != "" {
		return hint
	}
	if hint := dialHint(e.Err); hint != "" {
		return hint
	}
	var (
		verify *tls.CertificateVerificationError
		dns    *net.DNSError
		plain  tls.RecordHeaderError
	)
	switch {
	case errors.As(e.Err, &verify): // from the admin API, which returns the transport's own error
		return certificateHint(verify)
	case errors.As(e.Err, &dns) && dns.IsNotFound:
		return "correct the issuer's URL: its host does not exist"
	case errors.As(e.Err, &dns):
		return "this machine cannot resolve names now: check its DNS"
	case errors.As(e.Err, &plain), errors.Is(e.Err, http.ErrSchemeMismatch):
		return "correct the port in the issuer's URL: what listens there does not speak TLS"
	case errors.Is(e.Err, syscall.ECONNREFUSED):
		return "nothing listens there: correct the port in the issuer's URL, or start the issuer"
	}
	return "check the issuer's URL, and that this machine's network reaches it"
}

// certificateHint returns what to do about an issuer's TLS certificate that does
// not verify.
func certificateHint(err *tls.CertificateVerificationError) string {
	var unknown x509.UnknownAuthorityError
	var name x509.HostnameError
	switch {
	case errors.As(err.Err, &unknown) && sendsRoot(err.UnverifiedCertificates):
		return "set trust_anchor to the fingerprint of the root (sha256:...) that mayfly-issuer init printed"
	case errors.As(err.Err, &unknown):
		return "set ca_file to the PEM file of the CA that the issuer's TLS certificate comes from"
	case errors.As(err.Err, &name):
		return "correct the host in the issuer's URL: its TLS certificate is for another name"
	}
	return "renew the issuer's TLS certificate, or set this machine's clock: it is not valid now"
}

// sendsRoot reports whether a server sent its own root with its certificate. An
// issuer that uses a certificate of mayfly's own CA does so.
func sendsRoot(chain []*x509.Certificate) bool {
	if len(chain) < 2 {
		return false
	}
	last := chain[len(chain)-1]
	return last.CheckSignatureFrom(last) == nil
}

// Unwrap returns the cause.
func (e *IssuerUnreachableError) Unwrap() error { return e.Err }

// alertText returns the text of a TLS alert that the peer sent.
func alertText(err error) (string, bool) {
	var op *net.OpError
	if !errors.As(err, &op) || op.Op != "remote error" {
		return "", false
	}
	return op.Err.Error(), true
}

// internalAlert is the end of the text of an alert that does not judge the client
// (RFC 8446 section 6.2). A sidecar sends it when unauthenticated clients start
// too many handshakes.
const internalAlert = "internal error"

// alertReason returns the reason of a TLS alert that refuses the client. In TLS
// 1.3 the alert that refuses a client's certificate arrives at the first read,
// after a handshake that seemed to succeed.
func alertReason(err error) (string, bool) {
	text, ok := alertText(err)
	if !ok {
		return "", false
	}
	// crypto/tls exports no alert numbers, so these are its texts.
	switch {
	case strings.HasSuffix(text, internalAlert):
		return "", false
	case strings.HasSuffix(text, "expired certificate"):
		return wire.ReasonExpired, true
	case strings.HasSuffix(text, "revoked certificate"):
		return wire.ReasonRevoked, true
	case strings.HasSuffix(text, "unknown certificate authority"):
		return ReasonUnknownCA, true
	case strings.HasSuffix(text, "bad certificate"):
		return ReasonBadCertificate, true
	}
	return ReasonTLS, true
}

// lostHTTP2 is the end of the text of net/http's error for an HTTP/2 connection
// that answers no ping. net/http exports no such error.
const lostHTTP2 = "client connection lost"

// isTransient reports whether an error on the way to an engine or an issuer may
// pass: a machine that wakes up or is overloaded, or its proxy, shows such errors.
func isTransient(err error) bool {
	if text, alert := alertText(err); alert {
		return strings.HasSuffix(text, internalAlert)
	}
	var dns *net.DNSError
	if errors.As(err, &dns) {
		return !dns.IsNotFound
	}
	return Asleep(err) || errors.Is(err, syscall.ENETUNREACH) || strings.HasSuffix(err.Error(), lostHTTP2)
}
