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

// loadedPolicy is one loaded policy file: rules, and the verifier of the providers
// that they name. It is immutable.
type loadedPolicy struct {
	set      *policy.Set
	verifier *idtoken.Verifier
	sum      string // hex SHA-256 of the file
	loadedAt time.Time
}

// Policies holds the rules in force and follows the file they come from. A
// file that does not parse, names another trust domain, or cannot be read
// leaves the rules in force as they are.
type Policies struct {
	path     string
	options  policy.Options
	verifier idtoken.Options

	reloading sync.Mutex
	current   atomic.Pointer[loadedPolicy]
	failed    atomic.Pointer[string] // why the last reload failed; nil when it did not
	lastBad   string                 // sum of the file that failed; owned by reloading
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

// load returns the rules in force.
func (p *Policies) load() *loadedPolicy { return p.current.Load() }

// Set returns the rules in force.
func (p *Policies) Set() *policy.Set { return p.load().set }

// Reload reads the file again. It returns whether rules changed; on an error
// the old ones stay. A bad file is reported once for each content, unless
// forced.
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

// recordFailure remembers which content failed, so that the watch says so once.
func (p *Policies) recordFailure(sum string, force bool, err error) (bool, error) {
	if p.lastBad == sum && !force {
		return false, nil
	}
	p.lastBad = sum
	return false, err
}

// Failed says why the newest file is not in force, "" when it is.
func (p *Policies) Failed() string {
	if text := p.failed.Load(); text != nil {
		return *text
	}
	return ""
}

// Close ends the verifier's work.
func (p *Policies) Close() { p.load().verifier.Close() }
