package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"
	"time"

	"github.com/mayfly-ca/mayfly/client/wire"
)

// Reasons of a RejectedError and of a CutError beside those that the sidecar
// speaks (package wire).
const (
	// ReasonBadCertificate, ReasonUnknownCA and ReasonTLS are read from the TLS
	// alert of an engine that refused us in the handshake.
	ReasonBadCertificate = "bad_certificate"
	ReasonUnknownCA      = "unknown_ca"
	ReasonTLS            = "tls"
	// ReasonSilence: the engine's machine said nothing for wire.ControlSilence.
	ReasonSilence = "silence"
	// ReasonLost: the connection broke and nobody said why.
	ReasonLost = "connection_lost"
)

// RejectedError is an engine's refusal of this client's certificate.
type RejectedError struct {
	Engine   string
	Endpoint string
	// Reason is one of wire's reasons or of this package's.
	Reason string
	// Serial is that of the certificate that was refused.
	Serial string
	// Err is the TLS error of an alert; nil when the sidecar said the reason.
	Err error
}

// Retryable tells whether the same certificate may be admitted later.
func (e *RejectedError) Retryable() bool { return wire.Retryable(e.Reason) }

// Error implements error.
func (e *RejectedError) Error() string {
	s := fmt.Sprintf("engine %s at %s refused certificate %s: %s", e.Engine, e.Endpoint, e.Serial, explainReason(e.Reason))
	if e.Err != nil {
		s += fmt.Sprintf(" (%v)", e.Err)
	}
	return s
}

// Unwrap returns the TLS error, if any.
func (e *RejectedError) Unwrap() error { return e.Err }

// explainReason says what a reason means and what to do about it.
func explainReason(reason string) string {
	switch reason {
	case wire.ReasonRevoked:
		return "revoked: an admin revoked it, its run, or everything issued until then; ask whoever runs the issuer (mayfly certs show SERIAL says who)"
	case wire.ReasonExpired:
		return "expired: its lifetime is over and no newer one was issued; if it is fresh, compare the clocks of this machine and of the engine"
	case wire.ReasonWrongEngine:
		return "wrong_engine: it is not granted for this engine; name another with --engine, or add the engine to the rule in the policy"
	case wire.ReasonFeedStale:
		return "feed_stale: the engine has no fresh revocation list, so it admits nobody; its sidecar does not reach the issuer"
	case wire.ReasonLimit:
		return "limit: the engine has as many connections as it takes; try again when others have finished"
	case wire.ReasonDraining:
		return "draining: the engine is about to stop; the next start will take the connection"
	case ReasonBadCertificate:
		return "bad_certificate: the engine's log names the reason (revoked, wrong engine, limit)"
	case ReasonUnknownCA:
		return "unknown_ca: the engine trusts another issuer's root; engine and job must use the same MAYFLY_ISSUER"
	case ReasonTLS:
		return "tls: the handshake was refused"
	case ReasonSilence:
		return fmt.Sprintf("silence: the engine's machine did not answer for %v; it stopped, or the network in between is gone", wire.ControlSilence)
	case ReasonLost:
		return "connection_lost: the connection broke without a reason being told; the engine stopped, or the network in between is gone"
	}
	return reason
}

// CutError is why an established relay ended. Reads and writes of the relay
// return it.
type CutError struct {
	Engine string
	Reason string
	// Serial is that of the certificate that held the relay last, and NotAfter
	// its end.
	Serial   string
	NotAfter time.Time
	// Renewal is why no newer certificate held the relay; nil unless renewing
	// fails.
	Renewal error
	// Err is the connection's own error, if the reason was not told.
	Err error
}

// Final tells whether a new connection would be refused for the same reason.
func (e *CutError) Final() bool {
	switch e.Reason {
	case ReasonSilence, ReasonLost:
		return false
	}
	return !wire.Retryable(e.Reason)
}

// Error implements error.
func (e *CutError) Error() string {
	var s strings.Builder
	fmt.Fprintf(&s, "engine %s ended the connection: ", e.Engine)
	if e.Reason == wire.ReasonExpired {
		fmt.Fprintf(&s, "expired: certificate %s ended at %s", e.Serial, e.NotAfter.UTC().Format(time.RFC3339))
	} else {
		fmt.Fprintf(&s, "%s (certificate %s)", explainReason(e.Reason), e.Serial)
	}
	if e.Renewal != nil {
		fmt.Fprintf(&s, "; renewing it fails: %v", e.Renewal)
	}
	if e.Err != nil {
		fmt.Fprintf(&s, ": %v", e.Err)
	}
	return s.String()
}

// Unwrap returns the connection's own error, if any.
func (e *CutError) Unwrap() error { return e.Err }

// UntrustedEngineError is our refusal of an engine: what answers there is not
// the engine that was asked for. It is final.
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

// Unwrap returns the cause.
func (e *UntrustedEngineError) Unwrap() error { return e.Err }

// EngineUnreachableError is an engine that did not answer for as long as a dial
// may wait.
type EngineUnreachableError struct {
	Engine   string
	Endpoint string
	Waited   time.Duration
	Attempts int
	// Err is the last attempt's.
	Err error
}

// Error implements error.
func (e *EngineUnreachableError) Error() string {
	attempts := "attempts"
	if e.Attempts == 1 {
		attempts = "attempt"
	}
	return fmt.Sprintf("engine %s at %s did not answer within %v (%d %s): %v",
		e.Engine, e.Endpoint, e.Waited.Round(time.Second), e.Attempts, attempts, e.Err)
}

// Unwrap returns the cause.
func (e *EngineUnreachableError) Unwrap() error { return e.Err }

// noAnswer says a context's end for people. It unwraps to what it was.
func noAnswer(err error) error {
	if errors.Is(err, context.DeadlineExceeded) {
		return silence{err}
	}
	return fmt.Errorf("no answer: %w", err)
}

type silence struct{ error }

func (silence) Error() string { return "no answer in time" }

func (e silence) Unwrap() error { return e.error }

// IssuerUnreachableError is an issuer that gave no answer of its own. An answer
// that is a refusal is a *wire.Problem.
type IssuerUnreachableError struct {
	URL string
	Err error
	// Final tells that trying again will not help: a redirect, a certificate
	// that does not verify, a name that does not exist.
	Final bool
}

// Error implements error.
func (e *IssuerUnreachableError) Error() string {
	return fmt.Sprintf("issuer %s: %v", e.URL, e.Err)
}

// Unwrap returns the cause.
func (e *IssuerUnreachableError) Unwrap() error { return e.Err }

// alertText is the text of a TLS alert that the peer has sent.
func alertText(err error) (string, bool) {
	var op *net.OpError
	if !errors.As(err, &op) || op.Op != "remote error" {
		return "", false
	}
	return op.Err.Error(), true
}

// internalAlert ends the text of an alert that judges nothing of ours (RFC 8446
// section 6.2): a sidecar sends it while strangers shake hands too often.
const internalAlert = "internal error"

// alertReason reads the reason out of a TLS alert that refuses us. In TLS 1.3
// the alert that refuses a client's certificate arrives at the first read,
// after a handshake that seemed to succeed.
func alertReason(err error) (string, bool) {
	text, ok := alertText(err)
	if !ok {
		return "", false
	}
	// crypto/tls exports no alert numbers; these texts are its own.
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

// lostHTTP2 ends the text of net/http's error for an HTTP/2 connection that
// answers no ping. net/http exports no such error.
const lostHTTP2 = "client connection lost"

// passing tells whether an error on the way to an engine or an issuer is what a
// machine that wakes up or is overrun, or a proxy in front of it, shows for a
// while.
func passing(err error) bool {
	if text, alert := alertText(err); alert {
		return strings.HasSuffix(text, internalAlert)
	}
	for _, e := range []error{
		io.EOF, io.ErrUnexpectedEOF, io.ErrClosedPipe,
		syscall.ECONNREFUSED, syscall.ECONNRESET, syscall.ECONNABORTED, syscall.EPIPE,
		syscall.ETIMEDOUT, syscall.EHOSTUNREACH, syscall.ENETUNREACH,
	} {
		if errors.Is(err, e) {
			return true
		}
	}
	var dns *net.DNSError
	if errors.As(err, &dns) {
		return !dns.IsNotFound
	}
	if strings.HasSuffix(err.Error(), lostHTTP2) {
		return true
	}
	var timeout interface{ Timeout() bool }
	return errors.As(err, &timeout) && timeout.Timeout()
}
