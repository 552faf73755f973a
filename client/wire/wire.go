// Package wire defines mayfly's protocol: the JSON bodies, paths, limits and
// problem types of the issuer's HTTP API, and the lines on a control connection.
//
// Client, sidecar and issuer import it, so it contains only data and its encoding.
// It imports only the standard library.
package wire

import (
	"encoding/json"
	"time"
)

// Paths of the issuer's HTTP API.
const (
	PathCertificates  = "/v1/certificates"
	PathRevocations   = "/v1/revocations"
	PathBlocks        = "/v1/blocks"
	PathCRL           = "/v1/crl"
	PathCRLWait       = "/v1/crl/wait"
	PathTrustBundle   = "/v1/trust-bundle"
	PathSessions      = "/v1/sessions"
	PathEngines       = "/v1/engines"
	PathEvents        = "/v1/events"
	PathInfo          = "/v1/info"
	PathPolicyExplain = "/v1/policy/explain"
	PathWhoami        = "/v1/whoami"
	PathOpenAPI       = "/openapi.json"
	PathHealth        = "/healthz"
	PathReady         = "/readyz"
)

// Limits that both ends apply.
const (
	// MaxTokenBytes bounds a compact JWS. It is checked before the JWS is split.
	MaxTokenBytes = 16 << 10
	// MaxBodyBytes bounds a request body.
	MaxBodyBytes = 64 << 10
	// MaxHeaderBytes bounds the header of a request or an answer.
	MaxHeaderBytes = 32 << 10
	// MaxResponseBytes bounds each answer of the issuer that a client reads into
	// memory, CRLs included.
	MaxResponseBytes = 16 << 20
	// MaxListLimit bounds the limit parameter of every list.
	MaxListLimit = 500
	// DefaultListLimit is the limit of a list request that sets none.
	DefaultListLimit = 100
	// CRLWait is how long GET /v1/crl/wait holds a request before it answers 204.
	CRLWait = 30 * time.Second
)

// Certificate statuses.
const (
	StatusValid   = "valid"
	StatusExpired = "expired"
	StatusRevoked = "revoked"
)

// IssueRequest is the body of POST /v1/certificates.
type IssueRequest struct {
	// CSR is a PKCS #10 request in PEM (RFC 7468). Only its public key and
	// its proof of possession are used.
	CSR string `json:"csr"`
	// Engine names the one engine that the certificate is for. Empty means all
	// engines of the rule that admits the token.
	Engine string `json:"engine,omitempty"`
	// OneEngine asks for a certificate for one engine without naming it. If the rule
	// grants several engines, the answer is the problem several-engines.
	OneEngine bool `json:"one_engine,omitempty"`
}

// IssueResponse is the body of a 201 to POST /v1/certificates.
type IssueResponse struct {
	Serial      string    `json:"serial"`
	Certificate string    `json:"certificate"`  // PEM chain, leaf first, without the root
	TrustBundle string    `json:"trust_bundle"` // PEM, the roots
	CRL         string    `json:"crl"`          // the PEM of GET /v1/crl/wait
	NotBefore   time.Time `json:"not_before"`
	NotAfter    time.Time `json:"not_after"`
	RenewAfter  time.Time `json:"renew_after"` // half of the lifetime
	Identity    string    `json:"identity"`    // SPIFFE ID
	Rule        string    `json:"rule"`
	Engines     []Engine  `json:"engines"`
}

// Engine is an engine's address and the server name that its certificate proves.
type Engine struct {
	Name       string `json:"name"`
	Endpoint   string `json:"endpoint"` // tcp://host:port or edge://host:port
	ServerName string `json:"server_name"`
	// Version is the engine program's, as its sidecar last reported it: a version,
	// or an image's name and tag. Empty if unknown.
	Version string `json:"version,omitempty"`
}

// Info is the body of GET /v1/info.
type Info struct {
	TrustDomain string  `json:"trust_domain"`
	Audience    string  `json:"audience"`
	CRLURL      string  `json:"crl_url"`
	Login       []Login `json:"login"`
}

// Login is a provider of type people that mayfly login can use.
type Login struct {
	Provider string `json:"provider"`
	Issuer   string `json:"issuer"`
	ClientID string `json:"client_id"`
}

// Whoami is the body of GET /v1/whoami: the person whose token the request had.
type Whoami struct {
	Name     string    `json:"name"` // as in events: provider/email or provider/sub
	Provider string    `json:"provider"`
	Subject  string    `json:"subject"`
	Role     string    `json:"role"`
	Rule     string    `json:"rule"`  // the rule that grants the role
	Until    time.Time `json:"until"` // when this token stops being accepted for admin calls
}

// Certificate is an item of GET /v1/certificates.
type Certificate struct {
	Serial       string    `json:"serial"`
	Status       string    `json:"status"`
	NotBefore    time.Time `json:"not_before"`
	NotAfter     time.Time `json:"not_after"`
	Repository   string    `json:"repository"`
	RepositoryID string    `json:"repository_id"`
	RunID        string    `json:"run_id"`
	Actor        string    `json:"actor"`
	Identity     string    `json:"identity"`
	Profile      string    `json:"profile"`
	Rule         string    `json:"rule"`
	Engines      []string  `json:"engines"`
}

// CertificateDetail is the body of GET /v1/certificates/{serial}.
type CertificateDetail struct {
	Certificate
	IssuedAt    time.Time       `json:"issued_at"`
	Provider    string          `json:"provider"`
	TokenIssuer string          `json:"token_issuer"`
	TokenID     string          `json:"token_id"`
	Run         string          `json:"run"`
	SPKI        string          `json:"spki_sha256"` // hex
	Issuer      string          `json:"authority_key_id"`
	Claims      json.RawMessage `json:"claims"` // as verified
	RevokedAt   *time.Time      `json:"revoked_at,omitempty"`
	RevokedBy   string          `json:"revoked_by,omitempty"`
	Reason      string          `json:"reason,omitempty"`
	TBS         []byte          `json:"tbs"`   // DER of the TBSCertificate that was signed
	PEM         string          `json:"pem"`   // empty except for records that contain their signature
	Chain       string          `json:"chain"` // as PEM; leaf first
	Sessions    []Session       `json:"sessions"`
}

// List is the form of every list. NextCursor is empty on the last page.
type List[T any] struct {
	Items      []T    `json:"items"`
	NextCursor string `json:"next_cursor"`
}

// Match selects certificates by their recorded values. All keys that are set must
// be equal. An empty Match selects nothing.
type Match struct {
	Repository   string     `json:"repository,omitempty"`
	RepositoryID string     `json:"repository_id,omitempty"`
	RunID        string     `json:"run_id,omitempty"`
	Actor        string     `json:"actor,omitempty"`
	Identity     string     `json:"identity,omitempty"`
	Profile      string     `json:"profile,omitempty"`
	Since        *time.Time `json:"since,omitempty"` // issued at or after
	Until        *time.Time `json:"until,omitempty"` // issued before
}

// RevokeRequest is the body of POST /v1/revocations. Exactly one of Serial, Match
// and All is set.
type RevokeRequest struct {
	Serial string `json:"serial,omitempty"`
	Match  *Match `json:"match,omitempty"`
	All    bool   `json:"all,omitempty"`
	// Block is how long the issuer refuses new certificates for the revoked match, as
	// a Go duration, or "none". Empty means 24h.
	Block  string `json:"block,omitempty"`
	Reason string `json:"reason,omitempty"`
	// DryRun counts the certificates to revoke and changes nothing.
	DryRun bool `json:"dry_run,omitempty"`
}

// BlockNone, as RevokeRequest.Block, revokes without a block.
const BlockNone = "none"

// RevokeResponse is the body of a 200 to POST /v1/revocations.
type RevokeResponse struct {
	Revoked   []string   `json:"revoked"`
	CRLNumber int64      `json:"crl_number"`
	BlockIDs  []string   `json:"block_ids"`
	Floor     *time.Time `json:"floor,omitempty"`    // set by all
	Sessions  int        `json:"sessions,omitempty"` // live sessions of the revoked certificates, as last reported
	// Machines are the SPIFFE IDs of the engines' machines whose own certificates
	// are revoked. Each machine cuts its connections and requests another certificate.
	Machines []string `json:"machines,omitempty"`
	// MachinesUntil is the time until which the machines get no certificate and
	// admit no connection. Absent if they get one at once.
	MachinesUntil *time.Time `json:"machines_until,omitempty"`
}

// Block is an item of GET /v1/blocks.
type Block struct {
	ID          string    `json:"id"`
	CreatedAt   time.Time `json:"created_at"`
	Until       time.Time `json:"until"`
	TokenIssuer string    `json:"token_issuer,omitempty"`
	Match       Match     `json:"match"`
	Reason      string    `json:"reason"`
	By          string    `json:"by"`
}

// Session is one relayed TLS connection, as its engine reported it.
type Session struct {
	ID         string     `json:"id"`
	Engine     string     `json:"engine"`
	Machine    string     `json:"machine"` // SPIFFE ID of the reporting sidecar
	Serial     string     `json:"serial"`
	Run        string     `json:"run"`
	Repository string     `json:"repository"`
	Identity   string     `json:"identity"`
	RemoteAddr string     `json:"remote_addr,omitempty"`
	OpenedAt   time.Time  `json:"opened_at"`
	SeenAt     time.Time  `json:"seen_at"`
	ClosedAt   *time.Time `json:"closed_at,omitempty"`
	BytesIn    int64      `json:"bytes_in"`  // client to engine
	BytesOut   int64      `json:"bytes_out"` // engine to client
	Reason     string     `json:"reason,omitempty"`
}

// Session report kinds.
const (
	SessionOpen     = "open"
	SessionProgress = "progress"
	SessionClose    = "close"
	// SessionFeedStale is not about a session: since At, the engine's revocation
	// list is too old and the engine admits no connection. Serial is empty.
	SessionFeedStale = "feed_stale"
)

// SessionReport is one line of POST /v1/sessions.
type SessionReport struct {
	Kind       string    `json:"kind"`
	ID         string    `json:"id"` // 32 hex digits, chosen by the sidecar
	Serial     string    `json:"serial"`
	Run        string    `json:"run,omitempty"`
	RemoteAddr string    `json:"remote_addr,omitempty"`
	At         time.Time `json:"at"`
	BytesIn    int64     `json:"bytes_in"`
	BytesOut   int64     `json:"bytes_out"`
	Reason     string    `json:"reason,omitempty"`
}

// SessionsRequest is the body of POST /v1/sessions: at most MaxSessionReports
// reports, a status, or both. Issuers of v0.1 refuse a body with a status, so a
// sidecar sends its status in a separate request.
type SessionsRequest struct {
	Reports []SessionReport `json:"reports,omitempty"`
	Status  *SidecarStatus  `json:"status,omitempty"`
}

// SidecarStatus is a sidecar's report about itself. The sidecar sends it when it
// begins to listen, every StatusEvery, and when it stops.
type SidecarStatus struct {
	State   string `json:"state"`
	Version string `json:"version"`
	// EngineVersion is the engine program's: a version, or an image's name and tag.
	// Empty if the sidecar does not know it.
	EngineVersion       string    `json:"engine_version,omitempty"`
	EngineSocket        string    `json:"engine_socket"`
	CertificateNotAfter time.Time `json:"certificate_not_after"` // the sidecar's own
	FeedAgeSeconds      int64     `json:"feed_age_seconds"`      // of its revocation feed
}

// StatusEvery is how often a sidecar reports its status.
const StatusEvery = time.Minute

// States of a sidecar.
const (
	SidecarListening = "listening"
	// SidecarPaused: the sidecar's own certificate is revoked. It admits no
	// connection until it has another one.
	SidecarPaused  = "paused"
	SidecarStopped = "stopped"
)

// States of the engine's socket.
const (
	SocketOK          = "ok"
	SocketUnreachable = "unreachable"
)

// EngineStatus is an item of GET /v1/engines: an engine of the policy, with the
// machines that reported for it.
type EngineStatus struct {
	Name         string          `json:"name"`
	Endpoint     string          `json:"endpoint"`
	ServerName   string          `json:"server_name"`
	State        string          `json:"state"` // awake if any machine is, else the state of the machine seen last
	LiveSessions int             `json:"live_sessions"`
	Machines     []MachineStatus `json:"machines"` // the machine seen last comes first
}

// MachineStatus is the last status that the sidecar of one machine reported.
type MachineStatus struct {
	Machine             string    `json:"machine"` // SPIFFE ID
	State               string    `json:"state"`   // awake, asleep or silent
	Sidecar             string    `json:"sidecar"` // listening, paused or stopped
	SeenAt              time.Time `json:"seen_at"`
	Version             string    `json:"version"`
	EngineVersion       string    `json:"engine_version,omitempty"`
	EngineSocket        string    `json:"engine_socket"`
	CertificateNotAfter time.Time `json:"certificate_not_after"`
	FeedAt              time.Time `json:"feed_at"` // when its revocation feed was made
	LiveSessions        int       `json:"live_sessions"`
}

// States of an engine and of its machines.
const (
	EngineAwake  = "awake"  // its sidecar runs
	EngineAsleep = "asleep" // its sidecar has reported that it stopped
	EngineSilent = "silent" // its sidecar has stopped reporting without saying that it stops
	// EngineUnknown: no sidecar of this engine has ever reported its status.
	EngineUnknown = "unknown"
)

// MaxSessionReports bounds one POST /v1/sessions.
const MaxSessionReports = 100

// SessionsResponse is the body of a 200 to POST /v1/sessions. Refused lists the
// reports that will never be accepted; all others are stored. StatusRefused is why
// the status was not stored. It does not affect the reports.
type SessionsResponse struct {
	Accepted      int              `json:"accepted"`
	Refused       []SessionRefusal `json:"refused,omitempty"`
	StatusRefused string           `json:"status_refused,omitempty"`
}

// SessionRefusal is the reason why one report was refused.
type SessionRefusal struct {
	ID     string `json:"id"`
	Reason string `json:"reason"`
}

// Event is an item of GET /v1/events.
type Event struct {
	Seq        int64             `json:"seq"`
	Time       time.Time         `json:"time"`
	Type       string            `json:"type"`
	By         string            `json:"by,omitempty"` // the actor: an admin, or the identity
	Serial     string            `json:"serial,omitempty"`
	Identity   string            `json:"identity,omitempty"`
	Repository string            `json:"repository,omitempty"`
	RunID      string            `json:"run_id,omitempty"`
	Rule       string            `json:"rule,omitempty"`
	Reason     string            `json:"reason,omitempty"`
	Count      int64             `json:"count,omitempty"` // of summed denials
	Detail     map[string]string `json:"detail,omitempty"`
}

// ExplainRequest is the body of POST /v1/policy/explain.
type ExplainRequest struct {
	Provider string          `json:"provider"`
	Claims   json.RawMessage `json:"claims"`
	Engine   string          `json:"engine,omitempty"`
	// Want is certificate or role. Empty means a certificate, and also a role for a
	// person whom no rule grants a certificate.
	Want string `json:"want,omitempty"`
}

// ExplainResponse says which rule matches, or for each rule the first claim that
// does not match.
type ExplainResponse struct {
	Allowed bool          `json:"allowed"`
	Rule    string        `json:"rule,omitempty"`
	Role    string        `json:"role,omitempty"`
	Profile string        `json:"profile,omitempty"`
	Engines []string      `json:"engines,omitempty"`
	Rules   []ExplainRule `json:"rules"`
}

// ExplainRule is one rule of an ExplainResponse, in file order.
type ExplainRule struct {
	Rule    string `json:"rule"`
	Matched bool   `json:"matched"`
	Claim   string `json:"claim,omitempty"` // the first that did not match
	Got     string `json:"got,omitempty"`   // the caller's own value, as JSON; empty when missing
	Want    string `json:"want,omitempty"`  // the rule's values; viewers may see them
}
