package cli

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/mayfly-ca/mayfly/client"
	"github.com/mayfly-ca/mayfly/client/tokensource"
	"github.com/mayfly-ca/mayfly/client/wire"
)

type doctorCommand struct {
	Engine      string        `help:"Name of the engine. Default: the one that the job's rule grants." env:"MAYFLY_ENGINE" placeholder:"NAME"`
	WakeTimeout time.Duration `help:"How long to wait for an engine whose machine is asleep." default:"60s" placeholder:"60s"`
}

func (doctorCommand) Help() string {
	return `Checks what a build needs, one step after the other, and stops at the first that fails, with one thing to do: variables, issuer, clock, token, its claims (without the signature), the policy's decision, the CA's expiry, the engine's address, TLS and the engine's admission. It gets one certificate and wakes the engine, and says what it waits for after 2 s. Where dagger is in PATH it warns when the engine's version is another.

The exit code is that of the step that fails: see mayfly help exit-codes.`
}

// checkup is one run of doctor.
type checkup struct {
	p      *program
	flags  tunnelFlags
	issuer *client.Issuer
	info   wire.Info
	source tokensource.Source
	token  string
	client *client.Client
}

// checkupStep is the output of doctor --json for a step, one on each line.
type checkupStep struct {
	Step   string         `json:"step"`
	OK     bool           `json:"ok"`
	MS     int64          `json:"ms"`
	Detail string         `json:"detail,omitempty"`
	Claims map[string]any `json:"claims,omitempty"`
	Error  string         `json:"error,omitempty"`
	Hints  []string       `json:"hints,omitempty"`
	Rule   string         `json:"rule,omitempty"` // YAML that would admit the job, where it is denied
}

// clockLeeway is how far two clocks may differ. Tokens are accepted 30 s early,
// and certificates begin 60 s in the past.
const clockLeeway = 30 * time.Second

// caWarning is how long before the end of a CA certificate doctor warns.
const caWarning = 60 * 24 * time.Hour

// Run runs the steps.
func (c *doctorCommand) Run(ctx context.Context, p *program) error {
	ctx, stop := interruptible(ctx)
	defer stop()
	d := &checkup{p: p, flags: tunnelFlags{Engine: c.Engine, WakeTimeout: c.WakeTimeout}}
	defer func() {
		if d.client != nil {
			d.client.Close()
		}
	}()
	for _, s := range []doctorStep{
		{"variables", nil, d.variables},
		{"issuer", func() string { return "an answer of " + p.Issuer }, d.reachIssuer},
		{"clock", func() string { return "an answer of " + p.Issuer }, d.compareClocks},
		{"token", func() string { return "an ID token" }, d.getToken},
		{"claims", nil, d.checkClaims},
		{"policy", func() string { return "a certificate of " + p.Issuer }, d.decide},
		{"ca", nil, d.checkCA},
		{"engine", d.awaitedEngine, d.reachEngine},
		{"tls", d.awaitedEngine, d.admitted},
	} {
		if err := d.step(ctx, s); err != nil {
			return err
		}
	}
	return nil
}

// doctorStep is one step: its name, what it waits for (nil for a step that does
// not wait), and the check.
type doctorStep struct {
	name  string
	waits func() string
	do    func(context.Context) (string, error)
}

// quietStep is how long a step may take before doctor says what it waits for.
const quietStep = 2 * time.Second

// awaitedEngine names the engine and how long doctor waits for it.
func (d *checkup) awaitedEngine() string {
	e := d.client.Info().Engines[0]
	return fmt.Sprintf("engine %s at %s to answer, up to %v", e.Name, e.Endpoint, d.flags.WakeTimeout)
}

// step runs one step and prints its result.
func (d *checkup) step(ctx context.Context, s doctorStep) error {
	name := s.name
	d.p.progress("checking %s", name)
	start := time.Now()
	if s.waits != nil {
		note := time.AfterFunc(quietStep, func() { d.p.note("waiting for %s", s.waits()) })
		defer note.Stop()
	}
	detail, err := s.do(ctx)
	took := time.Since(start).Milliseconds()
	d.p.settle()
	said := checkupStep{Step: name, OK: err == nil, MS: took, Detail: detail}
	if err != nil {
		f := d.p.located(explain(err))
		said.Error, said.Hints, said.Rule = f.what, f.hints, f.rule
	}
	if d.p.JSON {
		if name == "claims" {
			said.Claims = d.claims()
		}
		d.p.json(said)
		return err
	}
	word, text := d.p.paint(styleGood, "ok  "), detail
	if err != nil {
		word, text = d.p.paint(styleBad, "fail"), "see below"
		if detail != "" {
			text = detail
		}
	}
	d.p.printf("%s  %-9s  %s\n", word, name, escapeText(text))
	if name == "claims" {
		if c, err := readClaims(d.token); err == nil {
			d.p.facts("        ", claimFacts(c.raw))
		}
	}
	return err
}

func (d *checkup) claims() map[string]any {
	c, err := readClaims(d.token)
	if err != nil {
		return nil
	}
	m := map[string]any{}
	for k, v := range c.values {
		m[k] = v
	}
	return m
}

func (d *checkup) variables(context.Context) (string, error) {
	var err error
	if d.issuer, err = d.p.issuer(); err != nil {
		return "", err
	}
	said := []string{"issuer " + d.p.Issuer}
	for _, kv := range [][2]string{{"ca file", d.p.CAFile}, {"trust anchor", d.p.TrustAnchor}, {"audience", d.p.Audience}, {"engine", d.flags.Engine}} {
		if kv[1] != "" {
			said = append(said, kv[0]+" "+kv[1])
		}
	}
	if os.Getenv("DAGGER_SESSION_PORT") != "" {
		d.p.warn("DAGGER_SESSION_PORT is set: a Dagger program uses that session and no tunnel")
	}
	return strings.Join(said, ", "), nil
}

func (d *checkup) reachIssuer(ctx context.Context) (string, error) {
	start := time.Now()
	info, err := d.issuer.Info(ctx)
	if err != nil {
		return "", err
	}
	if info.TrustDomain == "" {
		return "", failf(exitFailed, "correct --issuer (MAYFLY_ISSUER)", "what answers at %s is not a mayfly issuer: it names no trust domain at %s", d.issuer, wire.PathInfo)
	}
	d.info = info
	return fmt.Sprintf("answers in %d ms for trust domain %s", time.Since(start).Milliseconds(), info.TrustDomain), nil
}

// compareClocks compares the answer's Date (RFC 9110 6.6.1) with the local clock.
func (d *checkup) compareClocks(ctx context.Context) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimRight(d.issuer.String(), "/")+wire.PathHealth, nil)
	if err != nil {
		return "", err
	}
	sent := time.Now()
	resp, err := d.issuer.HTTPClient().Do(req)
	if err != nil {
		return "", &client.IssuerUnreachableError{URL: d.issuer.String(), Err: err}
	}
	resp.Body.Close()
	theirs, err := http.ParseTime(resp.Header.Get("Date"))
	if err != nil {
		return "the issuer's answer has no date to compare with", nil
	}
	// Date is in whole seconds and was set between sent and now.
	ahead := sent.Add(time.Since(sent) / 2).Sub(theirs.Add(500 * time.Millisecond)).Round(time.Second)
	if ahead.Abs() > clockLeeway {
		return "", failf(exitFailed, "set this machine's clock (NTP), or the issuer's: tokens and certificates are valid for minutes",
			"this machine's clock and the issuer's are %v apart: here it is %s, there %s", ahead.Abs(), sent.UTC().Format(time.RFC3339), theirs.UTC().Format(time.RFC3339))
	}
	return fmt.Sprintf("%v apart from the issuer's", ahead.Abs()), nil
}

func (d *checkup) audience() string {
	if d.p.Audience != "" {
		return d.p.Audience
	}
	return d.info.Audience
}

func (d *checkup) getToken(ctx context.Context) (string, error) {
	var err error
	if d.source, err = d.p.source(); err != nil {
		return "", err
	}
	if d.token, err = d.source.Token(ctx, d.audience()); err != nil {
		return "", err
	}
	return fmt.Sprintf("%d bytes from %s", len(d.token), d.source), nil
}

// checkClaims finds claims that the issuer refuses under any policy.
func (d *checkup) checkClaims(context.Context) (string, error) {
	c, err := readClaims(d.token)
	if err != nil {
		return "", failf(exitFailed, "name a source of ID tokens with --token-source", "what %s gave is no ID token: %w", d.source, err)
	}
	now := time.Now()
	_, person := d.source.(tokensource.LoginSource)
	detail := fmt.Sprintf("issuer %s, audience %s", c.text("iss"), c.audience())
	switch {
	case !c.at("exp").After(now):
		return detail, failf(exitFailed, "make the source give a fresh token, or run the job again", "the token expired at %s", c.at("exp").UTC().Format(time.RFC3339))
	case c.at("iat").After(now.Add(clockLeeway)):
		return detail, failf(exitFailed, "set this machine's clock (NTP)", "the token is of %s, which is in the future here", c.at("iat").UTC().Format(time.RFC3339))
	case c.audience() != d.audience() && !person:
		return detail, failf(exitFailed, "have the token made for "+d.audience(), "the token is made for audience %s, and the issuer takes %s", c.audience(), d.audience())
	}
	return detail, nil
}

// decide obtains a certificate with the same token whose claims were shown.
func (d *checkup) decide(ctx context.Context) (string, error) {
	c, err := client.New(ctx, client.Config{
		Issuer: d.p.Issuer, CAFile: d.p.CAFile, TrustAnchor: d.p.TrustAnchor, Audience: d.audience(),
		Source: &firstToken{Source: d.source, first: d.token}, Engine: d.flags.Engine, OneEngine: true, WakeTimeout: d.flags.WakeTimeout,
		Logger: d.p.logger(),
		Progress: func(e client.Event) {
			switch e.Kind {
			case client.EventWaking:
				d.p.progress("waiting for engine %s to wake up, %ds", e.Engine, int(e.Elapsed.Seconds()))
			case client.EventRetrying:
				d.p.progress("trying again, %ds: %v", int(e.Elapsed.Seconds()), explain(e.Err).what)
			}
		},
	})
	if err != nil {
		claims, _ := readClaims(d.token) // no error: checkClaims has parsed them
		_, claims.person = d.source.(tokensource.LoginSource)
		return "", explain(err).admitting(claims, d.flags.Engine)
	}
	d.client = c
	i := c.Info()
	return fmt.Sprintf("rule %s grants %s until %s, certificate %s", i.Rule, engineNames(i.Engines), i.NotAfter.UTC().Format(time.RFC3339), i.Serial), nil
}

// firstToken returns a given token first, then fresh tokens.
type firstToken struct {
	tokensource.Source
	mu    sync.Mutex
	first string
}

// Token implements tokensource.Source.
func (s *firstToken) Token(ctx context.Context, audience string) (string, error) {
	s.mu.Lock()
	first := s.first
	s.first = ""
	s.mu.Unlock()
	if first != "" {
		return first, nil
	}
	return s.Source.Token(ctx, audience)
}

// checkCA warns if the root or the intermediate ends soon.
func (d *checkup) checkCA(context.Context) (string, error) {
	cred := d.client.Credential()
	all := cred.RootCertificates()
	for rest := cred.ChainPEM(); ; {
		var blk *pem.Block
		if blk, rest = pem.Decode(rest); blk == nil {
			break
		}
		if c, err := x509.ParseCertificate(blk.Bytes); err == nil && c.IsCA {
			all = append(all, c)
		}
	}
	var first *x509.Certificate
	for _, c := range all {
		if first == nil || c.NotAfter.Before(first.NotAfter) {
			first = c
		}
	}
	if first == nil {
		return "no CA certificate came with the answer", nil
	}
	if time.Until(first.NotAfter) < caWarning {
		d.p.warn("%s ends at %s: the issuer's operator must rotate it (mayfly-issuer rotate request)", first.Subject.CommonName, first.NotAfter.UTC().Format(time.RFC3339))
	}
	return fmt.Sprintf("%s ends first, at %s", first.Subject.CommonName, first.NotAfter.UTC().Format(time.RFC3339)), nil
}

// reachEngine finds faults below TLS: a name, a route, a firewall.
func (d *checkup) reachEngine(ctx context.Context) (string, error) {
	e := d.client.Info().Engines[0]
	u, err := url.Parse(e.Endpoint)
	if err != nil || u.Host == "" {
		return "", failf(exitEngine, "correct the endpoint of engine "+e.Name+" in the issuer's policy", "endpoint %q is not an address", e.Endpoint)
	}
	start := time.Now()
	dialer := net.Dialer{Timeout: min(d.flags.WakeTimeout, 30*time.Second)}
	conn, err := dialer.DialContext(ctx, "tcp", u.Host)
	switch {
	case err != nil && !client.Asleep(err):
		return "", &client.EngineUnreachableError{Engine: e.Name, Endpoint: e.Endpoint, Attempts: 1, Final: true, Err: err}
	case err != nil:
		return fmt.Sprintf("%s does not answer yet (%v): it may be asleep", e.Endpoint, err), nil
	}
	conn.Close()
	return fmt.Sprintf("%s answers in %d ms", e.Endpoint, time.Since(start).Milliseconds()), nil
}

// admitted opens a relay and closes it before any byte passes.
func (d *checkup) admitted(ctx context.Context) (string, error) {
	start := time.Now()
	conn, err := d.client.DialContext(ctx, "tcp", "")
	if err != nil {
		return "", err
	}
	conn.Close()
	took := time.Since(start).Milliseconds()
	e := d.client.Info().Engines[0]
	runs := d.p.compareDagger(ctx, e.Name, e.Version)
	if runs != "" {
		runs += " and"
	}
	return fmt.Sprintf("engine %s%s proved its name and admits the certificate, in %d ms", e.Name, runs, took), nil
}
