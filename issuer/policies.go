package issuer

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/mayfly-ca/mayfly/issuer/internal/idtoken"
	"github.com/mayfly-ca/mayfly/issuer/internal/policy"
)

// loadedPolicy is one loaded policy file: its rules, and a verifier for its providers.
// It is immutable.
type loadedPolicy struct {
	set      *policy.Set
	verifier *idtoken.Verifier
	sum      string // hex SHA-256 of the file
	loadedAt time.Time
}

// Policies holds the current policy and follows its file. If the file does not parse,
// names another trust domain, or cannot be read, the current policy stays in force.
type Policies struct {
	path     string
	options  policy.Options
	verifier idtoken.Options

	reloading sync.Mutex
	current   atomic.Pointer[loadedPolicy]
	failed    atomic.Pointer[string] // why the last reload failed; nil when it did not
	lastBad   string                 // sum of the file that failed; guarded by reloading
}

// OpenPolicies loads the policy file at path. Its trust domain must be td.
// Close releases the verifier.
func OpenPolicies(path string, td spiffeid.TrustDomain, o policy.Options, v idtoken.Options) (*Policies, error) {
	o.File, o.TrustDomain = path, td.Name()
	p := &Policies{path: path, options: o, verifier: v}
	data, err := readBounded(path, policy.MaxFileBytes)
	if err != nil {
		return nil, fmt.Errorf("read policy: %w", err)
	}
	set, err := policy.Parse(data, p.options)
	if err != nil {
		return nil, err
	}
	verifier, err := idtoken.NewVerifier(set.Providers(), v)
	if err != nil {
		return nil, fmt.Errorf("policy %s: %w", path, err)
	}
	p.current.Store(&loadedPolicy{set: set, verifier: verifier, sum: sumOf(data), loadedAt: time.Now()})
	return p, nil
}

func sumOf(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

// load returns the current policy and its verifier.
func (p *Policies) load() *loadedPolicy { return p.current.Load() }

// Set returns the current policy.
func (p *Policies) Set() *policy.Set { return p.load().set }

// Reload reads the file again and returns whether the rules changed. On an error, the
// current policy stays in force. Reload returns the error of a bad file once for each
// content, or each time if force is set.
func (p *Policies) Reload(ctx context.Context, force bool) (bool, error) {
	p.reloading.Lock()
	defer p.reloading.Unlock()
	changed, err := p.reload(force)
	if err != nil {
		text := err.Error()
		p.failed.Store(&text)
		return false, err
	}
	return changed, ctx.Err()
}

func (p *Policies) reload(force bool) (bool, error) {
	data, err := readBounded(p.path, policy.MaxFileBytes)
	if err != nil {
		return p.recordFailure("unreadable", force, fmt.Errorf("read policy: %w", err))
	}
	old, sum := p.load(), sumOf(data)
	if sum == old.sum {
		p.lastBad = ""
		p.failed.Store(nil)
		return false, nil
	}
	set, err := policy.Parse(data, p.options)
	if err != nil {
		return p.recordFailure(sum, force, err)
	}
	verifier, err := old.verifier.With(set.Providers())
	if err != nil {
		return p.recordFailure(sum, force, fmt.Errorf("policy %s: %w", p.path, err))
	}
	p.current.Store(&loadedPolicy{set: set, verifier: verifier, sum: sum, loadedAt: time.Now()})
	p.lastBad = ""
	p.failed.Store(nil)
	return true, nil
}

// recordFailure records the content that failed, so that polling reports it once.
func (p *Policies) recordFailure(sum string, force bool, err error) (bool, error) {
	if p.lastBad == sum && !force {
		return false, nil
	}
	p.lastBad = sum
	return false, err
}

// Failed returns why the newest file is not in force, or "" when it is.
func (p *Policies) Failed() string {
	if text := p.failed.Load(); text != nil {
		return *text
	}
	return ""
}

// Close closes the verifier.
func (p *Policies) Close() { p.load().verifier.Close() }
