// Package store defines the contract of mayfly's durable state.
//
// ca/internal/sqlstore implements it over SQLite and over PostgreSQL; storetest
// runs one conformance suite over both. A store does not sign: its caller gives it
// bytes.
package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"
)

// Meta identifies a store. It is written once, when the store is made.
type Meta struct {
	RootFingerprint string    // lower-case hex SHA-256 of the root's DER
	TrustDomain     string    // SPIFFE trust domain
	CreatedAt       time.Time // UTC, whole seconds: the first floor
}

// Sentinels. A store wraps them with the operation.
var (
	ErrNotFound = errors.New("not found")
	// ErrMissing: the file or the schema does not exist. serve never makes one.
	ErrMissing = errors.New("there is no store")
	// ErrExists: Create found a store there already.
	ErrExists = errors.New("there is a store already")
	// ErrOtherRoot: the store belongs to another root.
	ErrOtherRoot = errors.New("store belongs to another root")
	// ErrNewer: a later program has opened the store and changed its shape.
	ErrNewer = errors.New("a later version of mayfly-issuer has changed the store")
	// ErrBeforeFloor: the token or the issuing time is before the floor.
	ErrBeforeFloor = errors.New("before the revocation floor")
	// ErrForged: no state key verifies the MAC of a row. The row was written or
	// changed by hand, or its key is no longer in the list.
	ErrForged = errors.New("row is not authenticated by the state key")
	// ErrBadCursor: this store did not make the cursor.
	ErrBadCursor = errors.New("bad cursor")
)

// BlockedError refuses a record that a block covers.
type BlockedError struct{ Block Block }

func (e *BlockedError) Error() string {
	return fmt.Sprintf("blocked until %s: %s", e.Block.Until.UTC().Format(time.RFC3339), e.Block.Reason)
}

// ReplayError refuses a single-use token that was used before, for a certificate
// that is not issued again.
type ReplayError struct {
	Serial string // of the certificate that the token was used for
	// Why is "another key", "expired", "revoked" or "another grant". The last one
	// means that the current grant or intermediate gives another certificate.
	Why string
}

func (e *ReplayError) Error() string { return "token was used before: " + e.Why }

// Certificate is the record of one issued leaf, written before the leaf is signed.
// Times are in UTC and whole seconds, except IssuedAt (microseconds). NotAfter is
// at most 25 hours after IssuedAt. Texts are UTF-8 without NUL, at most 4 KiB each.
// Claims and TBS are at most 64 KiB each.
type Certificate struct {
	Serial       string // 32 lower-case hex digits
	Profile      string
	Provider     string
	Identity     string // SPIFFE ID
	Rule         string
	Run          string // from the grant extension
	Engines      []string
	Repository   string
	RepositoryID string
	RunID        string
	Actor        string
	TokenIssuer  string
	TokenID      string // "" if the provider has none
	SingleUse    bool
	TokenIAT     time.Time
	SPKI         []byte // SHA-256 of the SubjectPublicKeyInfo, 32 bytes
	AKI          string // lower-case hex authority key id of the signing intermediate
	Claims       json.RawMessage
	TBS          []byte // the signed TBSCertificate in DER
	Signature    []byte // read only: set in some records of earlier versions, else empty
	NotBefore    time.Time
	NotAfter     time.Time
	IssuedAt     time.Time

	RevokedAt *time.Time // read only: from the revocations
	RevokedBy string
	Reason    string
}

// Match selects certificates. Every field that is set must be equal. Since and
// Until bound IssuedAt as [Since, Until) and select what is revoked; a Block has
// neither. TokenIssuer is for blocks made from a serial and is not part of the HTTP
// API.
type Match struct {
	TokenIssuer  string     `json:"token_issuer,omitempty"`
	Repository   string     `json:"repository,omitempty"`
	RepositoryID string     `json:"repository_id,omitempty"`
	RunID        string     `json:"run_id,omitempty"`
	Actor        string     `json:"actor,omitempty"`
	Identity     string     `json:"identity,omitempty"`
	Profile      string     `json:"profile,omitempty"`
	Since        *time.Time `json:"since,omitempty"`
	Until        *time.Time `json:"until,omitempty"`
}

// IsZero reports whether m has no field set.
func (m Match) IsZero() bool { return m == Match{} }

// CertificateFilter selects a page of certificates, newest first. A revoked
// certificate has the status "revoked", expired or not. "expired" begins after
// NotAfter.
type CertificateFilter struct {
	Match
	SerialPrefix string
	Status       string // "", "valid", "expired", "revoked"
	Limit        int    // 1..500
	Cursor       string
	Now          time.Time // the time for Status; zero means time.Now
}

// Block refuses to issue certificates that Match selects, until a time.
type Block struct {
	ID        string // 32 hex digits
	CreatedAt time.Time
	Until     time.Time
	Match     Match
	Reason    string
	By        string
}

// Revocation is one order to revoke. Exactly one of Serial, Match and All must be
// set.
//
// Serial may name an expired certificate, since a relay may outlive its
// certificate. Match and All revoke unexpired certificates. With a Block, mayfly
// then refuses:
//
//   - for Serial of a client with a repository and a run: that run of its
//     token issuer; for any other certificate: its SPIFFE ID;
//   - for Match: the match without Since and Until; if it has no other fields,
//     every client with a certificate that it selects;
//   - for All: every client with an unexpired certificate.
//
// Every unexpired certificate that a block covers is also revoked.
type Revocation struct {
	Serial string
	Match  Match
	All    bool
	// Block is how long to refuse further certificates; 0 means no block.
	Block  time.Duration
	Reason string
	By     string
	DryRun bool
}

// RevocationResult is the effect of a Revocation.
type RevocationResult struct {
	Serials  []string // revoked by this call, or named by it and revoked before
	BlockIDs []string
	Floor    time.Time // zero unless All
	Sessions int       // live sessions that end: those of Serials, and all at Machines
	// Machines are the SPIFFE IDs of the engines' machines whose own
	// certificates are among Serials, sorted.
	Machines []string
	// MachinesUntil is the time until which Machines get no other certificate. It
	// is zero if they get one at once.
	MachinesUntil time.Time
}

// RevokedEntry is one entry of a CRL.
type RevokedEntry struct {
	Serial    string
	RevokedAt time.Time
	NotAfter  time.Time
}

// CRLState is the content of a set of CRLs, read under the CRL row lock.
type CRLState struct {
	Number  int64     // the number that this set must carry
	Floor   time.Time // whole seconds
	Now     time.Time
	Entries map[string][]RevokedEntry // by AKI; only NotAfter + 24h > Now
}

// SignedCRL is the CRL of one intermediate in a set.
type SignedCRL struct {
	AKI string
	DER []byte
}

// CRLSet is a committed set: one CRL per intermediate, all with one number.
type CRLSet struct {
	Number   int64
	SignedAt time.Time
	CRLs     []SignedCRL
}

// Event is one entry of the append-only, hash-chained record.
type Event struct {
	Seq        int64
	Time       time.Time
	Type       string
	By         string
	Serial     string
	Identity   string
	Repository string
	RunID      string
	Rule       string
	Reason     string
	Count      int64 // > 1 for summed denials
	Detail     map[string]string
}

// Event types.
const (
	EventIssued       = "issued"
	EventDenied       = "denied"
	EventReplay       = "replay"
	EventRevoked      = "revoked"
	EventBlocked      = "blocked"
	EventUnblocked    = "unblocked"
	EventConnected    = "connected"
	EventDisconnected = "disconnected"
	EventAdminRead    = "admin_read"
	EventForbidden    = "forbidden"
	EventLogin        = "login"
	EventLogout       = "logout"
	EventAdminLink    = "admin_link"
	EventPolicyLoaded = "policy_loaded"
	EventRotation     = "rotation"
	EventFeedStale    = "feed_stale"
	EventRestored     = "restored"
	EventPruned       = "pruned"
)

// EventFilter selects a page of events: newest first, or from After in order.
type EventFilter struct {
	Type       string
	Serial     string
	Repository string
	RunID      string
	Since      *time.Time
	Until      *time.Time
	After      int64 // not 0: ascending, from Seq > After, for following; -1 begins with the first event
	Limit      int
	Cursor     string
}

// Session is one relayed connection, as sidecars reported it.
type Session struct {
	ID, Engine, Machine, Serial, Run, Repository, Identity, RemoteAddr, Reason string
	OpenedAt, SeenAt                                                           time.Time
	ClosedAt                                                                   *time.Time
	BytesIn, BytesOut                                                          int64
}

// SessionReport is one report about a session from the machine that relays it.
type SessionReport struct {
	Kind, ID, Serial, RemoteAddr, Reason string
	At                                   time.Time
	BytesIn, BytesOut                    int64
}

// SessionReporter is the reporting machine, from its verified token and rule.
type SessionReporter struct {
	Machine string // SPIFFE ID
	Engine  string
}

// SessionRefusal says why a report was refused permanently.
type SessionRefusal struct{ ID, Reason string }

// SessionFilter selects a page of sessions, newest first. Since and Until bound
// OpenedAt as [Since, Until).
type SessionFilter struct {
	Engine, Serial, RunID, Repository string
	Live                              bool // not closed, and reported within 2 min of Now
	Cut                               bool // ended by the engine: revoked, expired, feed_stale or max_age
	Since, Until                      *time.Time
	Now                               time.Time
	Limit                             int
	Cursor                            string
}

// MachineStatus is the last status that a machine's sidecar reported.
type MachineStatus struct {
	Engine, Machine     string // Machine is a SPIFFE ID
	State               string // of package wire: listening, paused or stopped
	Version             string // of the sidecar
	EngineVersion       string // "" if the sidecar does not know it
	EngineSocket        string // of package wire: ok or unreachable
	CertificateNotAfter time.Time
	FeedAt              time.Time // when the sidecar's revocation feed was made
	SeenAt              time.Time // when the report came
	LiveSessions        int       // read only: see SessionFilter.Live
}

// Counts holds the numbers of the overview.
type Counts struct {
	// Valid is the number of certificates that are neither expired nor revoked. It
	// counts at most MaxCount of clients and MaxCount of servers.
	Valid int
	Live  int // live sessions: see SessionFilter.Live
	Cut   int // sessions that an engine cut in the last 24 hours
}

// MaxCount is where Counts stops counting certificates.
const MaxCount = 10000

// Login is one login to the admin page. ID is the SHA-256 (hex) of the cookie's
// secret, which the store never gets. The row has a MAC over all its fields.
type Login struct {
	ID        string
	Provider  string
	Subject   string
	Claims    json.RawMessage // of the verified ID token; each use decides the role from them
	CreatedAt time.Time
	ExpiresAt time.Time
}

// HourCount is one bar of the chart in the overview.
type HourCount struct {
	Hour           time.Time
	Issued, Denied int64
}

// Store is the durable state of one certificate authority. All methods are safe for
// concurrent use. Each returns only after a durable commit, or with an error after
// which nothing of the call is visible.
type Store interface {
	Meta() Meta

	// Record writes c, uses up its token and appends ev. It does so in one
	// transaction under the lock that revocations also take, so that no certificate
	// escapes a revocation. Concurrent records may share one commit.
	//
	// If a single-use token was used before with the same SPKI, Record returns the
	// recorded certificate and writes nothing (not even ev). That certificate must
	// not be expired, revoked or before the floor. Otherwise it returns c.
	//
	// Errors: *BlockedError, *ReplayError, ErrBeforeFloor (the token's iat or
	// IssuedAt is before the floor), or the driver's.
	Record(ctx context.Context, c *Certificate, ev Event) (*Certificate, error)

	Certificate(ctx context.Context, serial string) (*Certificate, error)
	// Certificates leaves Claims, TBS and Signature empty. A cursor is valid only
	// with the filters that it came from; otherwise the error is ErrBadCursor.
	Certificates(ctx context.Context, f CertificateFilter) ([]Certificate, string, error)

	// Revoke revokes, blocks or raises the floor, as Revocation says.
	Revoke(ctx context.Context, r Revocation) (*RevocationResult, error)
	Blocks(ctx context.Context, now time.Time) ([]Block, error)
	// Unblock removes a block before its end. ErrNotFound.
	Unblock(ctx context.Context, id, by string) error
	// Floor returns the highest floor ever set. The first is Meta().CreatedAt.
	Floor(ctx context.Context) (time.Time, error)
	// RaiseFloor sets the floor to the next whole second after the later of now and
	// the newest recorded issuance, as restore does. It revokes all unexpired
	// certificates.
	RaiseFloor(ctx context.Context, ev Event) (time.Time, error)

	// PublishCRLs reads the state, takes the number max(previous+1, Unix ms), and
	// calls sign. It stores the result under the CRL row's lock if that row is
	// unchanged; otherwise it begins again. So a set includes all entries of sets
	// with lower numbers. It may call sign more than once; sign must not call
	// PublishCRLs. If the newest set is younger than maxAge and nothing was revoked
	// since, PublishCRLs returns that set and does not call sign. maxAge 0 always
	// signs.
	PublishCRLs(ctx context.Context, maxAge time.Duration, sign func(CRLState) ([]SignedCRL, error)) (*CRLSet, error)
	// CRLs returns the newest committed set, or ErrNotFound before the first.
	CRLs(ctx context.Context) (*CRLSet, error)
	// CRLChanged returns a channel that is closed when any replica commits a set
	// with a number other than known (within 250 ms).
	CRLChanged(known int64) <-chan struct{}

	// Append adds events as one link of the chain.
	Append(ctx context.Context, ev ...Event) error
	// Denied adds a denial. Equal denials (identity, reason) of one minute are
	// summed and written once. The number of distinct ones per minute is capped, so
	// that strangers cannot fill the disk. Denied is the only method that returns
	// before it has written; Events, Backup and Close write pending denials first.
	Denied(ctx context.Context, ev Event) error
	Events(ctx context.Context, f EventFilter) ([]Event, string, error)
	// VerifyEvents checks the chain from its checkpoint on. It returns the number
	// of events, or an error that names the first broken link.
	VerifyEvents(ctx context.Context) (int64, error)

	ReportSessions(ctx context.Context, by SessionReporter, reports []SessionReport) (accepted int, refused []SessionRefusal, err error)
	Sessions(ctx context.Context, f SessionFilter) ([]Session, string, error)

	// PutStatus replaces the machine's last status. SeenAt is the time of the call.
	PutStatus(ctx context.Context, by SessionReporter, s MachineStatus) error
	// Statuses returns the status of every machine, by engine, the last seen first.
	// If there are more than 1000, it returns the last seen.
	Statuses(ctx context.Context) ([]MachineStatus, error)
	// Counts returns the numbers of the overview.
	Counts(ctx context.Context, now time.Time) (Counts, error)

	PutLogin(ctx context.Context, l Login) error
	// Login returns a login that has not expired. ErrNotFound, ErrForged.
	Login(ctx context.Context, id string, now time.Time) (*Login, error)
	// TakeLogin returns a login and deletes it. Only one of several callers gets
	// it.
	TakeLogin(ctx context.Context, id string, now time.Time) (*Login, error)
	DeleteLogin(ctx context.Context, id string) error

	// Hours returns issuances and denials per hour, for the overview.
	Hours(ctx context.Context, since time.Time) ([]HourCount, error)

	// Prune deletes expired certificates, their tokens and revocations, closed
	// sessions, statuses, blocks, logins and events that ended before a time. It
	// works in small batches and leaves a checkpoint in the chain. Certificates
	// stay for at least 26 hours after NotAfter.
	Prune(ctx context.Context, before time.Time) (int64, error)
	// Each calls f for every stored certificate in serial order.
	Each(ctx context.Context, f func(*Certificate) error) error
	// Backup writes a consistent copy while the store is in use. Every driver's
	// Restore reads this form. Logins and statuses are left out.
	Backup(ctx context.Context, w io.Writer) error
	// Ping returns an error if the store does not answer or cannot be written.
	Ping(ctx context.Context) error
	Close() error
}
