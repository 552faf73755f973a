package wire

import "time"

// Application protocols (ALPN, RFC 7301) of the sidecar's listener.
const (
	// ALPNRelay carries engine bytes after one line of Verdict.
	ALPNRelay = "mayfly/1"
	// ALPNControl carries Control lines after one line of Verdict.
	ALPNControl = "mayfly-control/1"
)

// VerdictOK is the line that admits a connection. VerdictErr, a reason and a line
// feed are the line that refuses it. The line comes before any engine byte.
const (
	VerdictOK  = "OK\n"
	VerdictErr = "ERR "
	// MaxVerdictBytes bounds the line, its line feed included.
	MaxVerdictBytes = 64
)

// Reasons of a refusal or of a cut.
const (
	ReasonRevoked     = "revoked"
	ReasonExpired     = "expired"
	ReasonWrongEngine = "wrong_engine"
	ReasonFeedStale   = "feed_stale"
	ReasonLimit       = "limit"
	ReasonDraining    = "draining"
	// ReasonEngineExited: the engine's process ended by itself. Control.Detail
	// has its exit code or signal.
	ReasonEngineExited = "engine_exited"
	// ReasonEngineUnavailable: the engine's socket accepts no connection.
	ReasonEngineUnavailable = "engine_unavailable"
)

// Retryable reports whether a refusal for this reason may pass. It returns true
// for unknown reasons, which later versions may add.
func Retryable(reason string) bool {
	switch reason {
	case ReasonRevoked, ReasonExpired, ReasonWrongEngine:
		return false
	}
	return true
}

// ExporterLabel and ExporterLength define a relay's name: the lower-case hex of
// its TLS exporter value (RFC 8446 section 7.5, empty context), which only its
// two ends know.
const (
	ExporterLabel  = "EXPORTER-mayfly-relay"
	ExporterLength = 32
)

// Times of the control connection.
const (
	ControlPingEvery = 5 * time.Second
	ControlSilence   = 20 * time.Second
	// MaxControlLine bounds one JSON line, its line feed included.
	MaxControlLine = 64 << 10
	// MaxControlDetail bounds Control.Detail.
	MaxControlDetail = 100
)

// Control is one JSON line on a control connection. Exactly one of Hold, Held,
// Ping, Pong and Cut is set. Reason is set only with Cut. Detail, which is optional,
// is set only with Reason.
type Control struct {
	Hold   []string `json:"hold,omitzero"`
	Held   []string `json:"held,omitzero"`
	Ping   uint64   `json:"ping,omitempty"` // starts at 1
	Pong   uint64   `json:"pong,omitempty"`
	Cut    string   `json:"cut,omitempty"`
	Reason string   `json:"reason,omitempty"`
	Detail string   `json:"detail,omitempty"` // at most MaxControlDetail bytes of ASCII text
}
