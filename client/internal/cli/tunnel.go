package cli

import (
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mayfly-ca/mayfly/client"
	"github.com/mayfly-ca/mayfly/client/tokensource"
	"github.com/mayfly-ca/mayfly/client/wire"
)

// tunnelFlags are the flags of each command that reaches an engine.
type tunnelFlags struct {
	Engine      string        `help:"Name of the engine. Default: the one that the job's rule grants." env:"MAYFLY_ENGINE" placeholder:"NAME"`
	WakeTimeout time.Duration `help:"How long to wait for an engine whose machine is asleep." default:"3m" placeholder:"3m"`
}

// tunnel is a client with its certificate, and the state of its messages.
type tunnel struct {
	p      *program
	client *client.Client
	// final receives the error that ended the proxy, if one did. After it, each
	// further dial would fail too.
	final chan error
	// renewed receives a value after each renewal.
	renewed chan struct{}
	source  *jobSource
	asked   string // the engine that --engine names, or ""

	mu      sync.Mutex
	waking  map[string]bool // by engine: the message about the wait was printed
	refused error           // the last refusal or unanswered dial
}

// open obtains the certificate.
func (p *program) open(ctx context.Context, f tunnelFlags) (*tunnel, error) {
	if _, err := p.issuer(); err != nil {
		return nil, err
	}
	if f.WakeTimeout <= 0 {
		return nil, usagef("give --wake-timeout a duration such as 3m", "--wake-timeout is %v, which leaves no time to reach the engine", f.WakeTimeout)
	}
	source, err := p.source()
	if err != nil {
		return nil, err
	}
	t := &tunnel{p: p, final: make(chan error, 1), renewed: make(chan struct{}, 1), waking: map[string]bool{},
		source: &jobSource{Source: source, p: p}, asked: f.Engine}
	if err := disableDumps(); err != nil {
		p.warn("other programs of this user may read the key from memory: %v", err)
	}
	p.progress("asking %s for a certificate with a token of %s", p.Issuer, source)
	t.client, err = client.New(ctx, client.Config{
		Issuer: p.Issuer, CAFile: p.CAFile, TrustAnchor: p.TrustAnchor, Audience: p.Audience,
		Source: t.source, Engine: f.Engine, OneEngine: true, WakeTimeout: f.WakeTimeout, Progress: t.onEvent,
		Logger: p.logger(),
	})
	p.settle()
	if err != nil {
		return nil, t.explain(err)
	}
	info := t.client.Info()
	p.note("certificate %s by rule %s for %s, until %s", info.Serial, info.Rule, engineNames(info.Engines), info.NotAfter.UTC().Format(time.RFC3339))
	return t, nil
}

// explain returns the failure for err. After a denial it includes the rule that
// would admit the job.
func (t *tunnel) explain(err error) *failure {
	return explain(err).admitting(t.source.claims(), t.asked)
}

// jobSource prints a note if a token takes long, because a source may try for a
// minute and a half. It also keeps the claims of the last token.
type jobSource struct {
	tokensource.Source
	p    *program
	last atomic.Pointer[claimSet]
}

// claims returns the claims of the last token, or none before the first token.
func (s *jobSource) claims() claimSet {
	if c := s.last.Load(); c != nil {
		return *c
	}
	return claimSet{}
}

// slowToken is how long a token may take before jobSource prints a note.
const slowToken = 10 * time.Second

// Token implements tokensource.Source.
func (s *jobSource) Token(ctx context.Context, audience string) (string, error) {
	t := time.AfterFunc(slowToken, func() {
		s.p.note("%s has given no ID token yet, still asking", s.Source)
	})
	defer t.Stop()
	token, err := s.Source.Token(ctx, audience)
	if c, cerr := readClaims(token); err == nil && cerr == nil {
		_, c.person = s.Source.(tokensource.LoginSource)
		s.last.Store(&c)
	}
	return token, err
}

// engine returns the engine that the tunnel leads to.
func (t *tunnel) engine() wire.Engine { return t.client.Info().Engines[0] }

func engineNames(engines []wire.Engine) string {
	s := ""
	for i, e := range engines {
		if i > 0 {
			s += ", "
		}
		s += e.Name
	}
	return s
}

// onEvent prints what the client does and records final errors.
func (t *tunnel) onEvent(e client.Event) {
	p := t.p
	switch e.Kind {
	case client.EventIssuerWaiting:
		wait := e.Elapsed.Round(100 * time.Millisecond)
		p.progress("no certificate yet, trying again in %v: %v", wait, e.Err)
		if !p.errTTY {
			p.note("no certificate yet, trying again in %v with a fresh token: %v", wait, e.Err)
		}
	case client.EventWaking:
		t.hearWaking(e)
	case client.EventRetrying:
		t.hearRetrying(e)
	case client.EventConnected:
		t.mu.Lock()
		t.refused = nil
		t.mu.Unlock()
		if t.wasWaking(e.Engine) {
			p.note("engine %s is awake after %v", e.Engine, e.Elapsed.Round(time.Millisecond))
		}
	case client.EventRenewed:
		p.note("renewed the certificate: %s, until %s", e.Serial, e.NotAfter.UTC().Format(time.RFC3339))
		select {
		case t.renewed <- struct{}{}:
		default:
		}
	case client.EventRenewFailed:
		p.warn("certificate %s could not be renewed and ends at %s; trying again: %v", e.Serial, e.NotAfter.UTC().Format(time.RFC3339), explain(e.Err).what)
	case client.EventFailed, client.EventCut:
		t.hearEnd(e)
	}
}

func (t *tunnel) hearWaking(e client.Event) {
	t.mu.Lock()
	said := t.waking[e.Engine]
	t.waking[e.Engine] = true
	t.mu.Unlock()
	t.p.progress("waiting for engine %s to wake up, %ds", e.Engine, int(e.Elapsed.Seconds()))
	if !said && !t.p.errTTY {
		t.p.note("waiting for engine %s at %s to wake up", e.Engine, e.Endpoint)
	}
}

// hearRetrying prints, once for each dial, why the dial is repeated.
func (t *tunnel) hearRetrying(e client.Event) {
	t.p.progress("no connection to engine %s yet, trying again, %ds: %v", e.Engine, int(e.Elapsed.Seconds()), explain(e.Err).what)
	if e.Attempt == 1 && !t.p.errTTY {
		t.p.note("no connection to engine %s yet, trying again: %v", e.Engine, explain(e.Err).what)
	}
}

func (t *tunnel) wasWaking(engine string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	was := t.waking[engine]
	delete(t.waking, engine)
	return was
}

// hearEnd records why a dial or a relay ended. It prints the reason, unless the
// reason also ends the proxy; then the proxy's error is printed.
func (t *tunnel) hearEnd(e client.Event) {
	if e.Err == nil || errors.Is(e.Err, context.Canceled) || errors.Is(e.Err, client.ErrClosed) || errors.Is(e.Err, net.ErrClosed) {
		return
	}
	var cut *client.CutError
	if errors.As(e.Err, &cut) && !cut.Final() {
		t.p.warn("%s", explain(e.Err).what)
		return
	}
	t.mu.Lock()
	t.refused = e.Err
	t.mu.Unlock()
	if cut == nil && t.client != nil && t.client.Stats().Open > 0 {
		t.p.warn("%s", explain(e.Err).what)
	}
}

// refusal returns the client's last refused dial or relay, which may be why a tool
// saw its connection break. The error is recorded before the tool can see anything.
func (t *tunnel) refusal() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.refused
}

// serve relays the connections that ln accepts until ctx ends or the client gives
// up. The returned function closes the tunnel and waits for serve's goroutine.
func (t *tunnel) serve(ctx context.Context, ln net.Listener) (end func() error) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := t.client.Proxy(ctx, ln); err != nil {
			t.final <- err
		}
	}()
	return func() error {
		cancel()
		<-done
		return t.client.Close()
	}
}
