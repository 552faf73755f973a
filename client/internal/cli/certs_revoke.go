package cli

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/mayfly-ca/mayfly/client/internal/api"
	"github.com/mayfly-ca/mayfly/client/wire"
)

type certsRevokeCommand struct {
	Serial string `arg:"" optional:"" help:"Serial, or a beginning of it that no other has."`
	matchFlags
	All    bool   `help:"Every certificate ever issued, engines' too: everyone needs a new one." group:"match"`
	Block  string `help:"How long to refuse new certificates to what was revoked, or none." default:"24h" placeholder:"24h|none"`
	Reason string `help:"Why. Recorded, and shown to admins." placeholder:"TEXT"`
	DryRun bool   `help:"Only say what would be revoked."`
	Yes    bool   `help:"Do not ask." short:"y"`

	whose    string // the owner of Serial, once known
	machines string // what happens to engines, once known; if not empty, begins with a space
}

func (certsRevokeCommand) Help() string {
	return `Returns when the revocation list that holds the serials is published; engines cut live connections within a second of that.

A job could buy another certificate at once, so what is revoked is also blocked for 24 hours: the serial's run, or whatever the flags match. With --block none only the certificates named are revoked.

An engine that loses its own certificate cuts every connection. With a block it gets no other, and admits no build until the block ends.

Flags that match are combined: every one must be equal. Needs the role admin.

Examples:

	mayfly certs revoke 5f3a90 --reason "leaked in a log"
	mayfly certs revoke --run-id 32291736541 --reason "compromised action"
	mayfly certs revoke --all --reason "issuer key exposed"`
}

// Run revokes.
func (c *certsRevokeCommand) Run(ctx context.Context, p *program) error {
	ctx, stop := interruptible(ctx)
	defer stop()
	if err := c.check(); err != nil {
		return err
	}
	if !c.Yes && !c.DryRun && !p.inTTY {
		return usagef("add --yes, or look first with --dry-run", "there is no terminal to confirm the revocation on")
	}
	calls, err := p.admin()
	if err != nil {
		return err
	}
	req, err := c.request(ctx, calls)
	if err != nil {
		return err
	}
	if c.DryRun || !c.Yes {
		touched, err := c.look(ctx, p, calls, req)
		if err != nil || c.DryRun {
			return err
		}
		if !p.confirm(fmt.Sprintf("Revoke %s%s%s?%s", touched, c.ofWhom(req), c.blockWords(), c.machines)) {
			return failf(exitFailed, "type yes in full to revoke", "not confirmed: nothing was changed")
		}
		if req.Reason == "" {
			req.Reason = p.ask("Why? It is recorded, for the next admin to read: ")
		}
	}
	a, err := calls.Revoke(ctx, req)
	if err != nil {
		return err
	}
	if p.JSON {
		p.body(a.Body)
		return nil
	}
	p.showRevoked(&a.Value)
	return nil
}

// check returns an error unless exactly one of serial, match and all is given.
func (c *certsRevokeCommand) check() error {
	ways := 0
	for _, on := range []bool{c.Serial != "", c.match() != wire.Match{}, c.All} {
		if on {
			ways++
		}
	}
	const hint = "give a SERIAL, or flags such as --run-id, or --all"
	switch {
	case ways == 0:
		return usagef(hint, "the command does not say what to revoke")
	case ways > 1:
		return usagef(hint, "a serial, flags that match, and --all exclude each other")
	}
	if c.Serial != "" {
		if _, err := serialPrefix(c.Serial); err != nil {
			return err
		}
	}
	if c.Block == wire.BlockNone {
		return nil
	}
	if d, err := time.ParseDuration(c.Block); err != nil || d <= 0 {
		return usagef("give --block a duration such as 24h, or none", "--block is %q, which is not a duration", c.Block)
	}
	return nil
}

func (c *certsRevokeCommand) match() wire.Match {
	m := wire.Match{Repository: c.Repository, RepositoryID: c.RepositoryID, RunID: c.RunID,
		Actor: c.Actor, Identity: c.Identity, Profile: c.Profile}
	if !c.Since.IsZero() {
		m.Since = &c.Since.Time
	}
	if !c.Until.IsZero() {
		m.Until = &c.Until.Time
	}
	return m
}

func (c *certsRevokeCommand) request(ctx context.Context, calls *api.Client) (wire.RevokeRequest, error) {
	r := wire.RevokeRequest{All: c.All, Block: c.Block, Reason: c.Reason}
	switch {
	case c.Serial != "":
		serial, err := wholeSerial(ctx, calls, c.Serial)
		if err != nil {
			return r, err
		}
		r.Serial = serial
		if c.Yes || c.DryRun {
			break // there will be no question
		}
		if c.whose, err = whoseSerial(ctx, calls, serial); err != nil {
			return r, err
		}
	case !c.All:
		m := c.match()
		r.Match = &m
	}
	return r, nil
}

// whoseSerial returns the owner of a certificate, in words.
func whoseSerial(ctx context.Context, calls *api.Client, serial string) (string, error) {
	a, err := calls.Certificates(ctx, api.CertificateFilter{Serial: serial, Limit: 1})
	if err != nil {
		return "", err
	}
	if len(a.Value.Items) == 0 {
		return "", failf(exitFailed, "`mayfly certs list` shows what there is", "no certificate has the serial %s", serial)
	}
	it := a.Value.Items[0]
	s := owner(it)
	if it.RunID != "" {
		s += ", run " + it.RunID
	}
	if it.Actor != "" {
		s += ", started by " + it.Actor
	}
	return s, nil
}

// look says what the revocation would affect.
func (c *certsRevokeCommand) look(ctx context.Context, p *program, calls *api.Client, r wire.RevokeRequest) (string, error) {
	r.DryRun = true
	a, err := calls.Revoke(ctx, r)
	if err != nil {
		return "", err
	}
	if words := p.machineWords(&a.Value); words != "" {
		c.machines = " " + words
	}
	touched := plural(len(a.Value.Revoked), "certificate")
	if n := a.Value.Sessions; n > 0 {
		touched += " and cut " + plural(n, "live connection")
	}
	if c.All {
		touched = fmt.Sprintf("every certificate issued until now, engines' too (%s on record, %s)",
			plural(len(a.Value.Revoked), "certificate"), plural(a.Value.Sessions, "live connection"))
	}
	if !c.DryRun {
		return touched, nil
	}
	if p.JSON {
		p.body(a.Body)
		return touched, nil
	}
	for _, s := range a.Value.Revoked {
		p.printf("would revoke %s\n", escapeText(s))
	}
	p.note("would revoke %s%s.%s", touched, c.blockWords(), c.machines)
	return touched, nil
}

// machineWords says what happens to engines whose own certificates are revoked.
func (p *program) machineWords(r *wire.RevokeResponse) string {
	switch {
	case len(r.Machines) == 0:
		return ""
	case r.MachinesUntil == nil:
		return "Engines lose their own certificates, cut every connection and get other certificates at once: " + strings.Join(r.Machines, ", ") + "."
	}
	return "Engines lose their own certificates and admit no build until " + p.instant(*r.MachinesUntil) + ": " + strings.Join(r.Machines, ", ") + "."
}

// ofWhom describes the certificates to revoke, as the issuer reads the request.
func (c *certsRevokeCommand) ofWhom(r wire.RevokeRequest) string {
	switch {
	case r.Serial != "":
		return " of " + c.whose + " (" + r.Serial + ")"
	case r.Match != nil:
		return " of " + matchWords(wire.Block{Match: *r.Match})
	}
	return ""
}

func (c *certsRevokeCommand) blockWords() string {
	if c.Block == wire.BlockNone {
		return ", without a block: their runs can get new ones"
	}
	return ", and refuse new ones for " + c.Block
}

func (p *program) showRevoked(r *wire.RevokeResponse) {
	for _, s := range r.Revoked {
		p.printf("revoked %s\n", escapeText(s))
	}
	if len(r.Revoked) == 0 {
		p.note("no certificate matched")
	}
	if r.Floor != nil {
		p.printf("floor %s\n", r.Floor.UTC().Format(time.RFC3339))
	}
	if words := p.machineWords(r); words != "" {
		p.warn("%s", words)
		if r.MachinesUntil != nil {
			p.note("`mayfly blocks list` shows the block, and `mayfly blocks remove` ends it")
		}
	}
	if len(r.BlockIDs) > 0 {
		p.printf("blocked %s\n", escapeText(strings.Join(r.BlockIDs, " ")))
	}
	p.printf("crl_number %d\n", r.CRLNumber)
}
