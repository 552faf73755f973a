package cli

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"charm.land/lipgloss/v2"

	"github.com/mayfly-ca/mayfly/client/internal/api"
	"github.com/mayfly-ca/mayfly/client/wire"
)

type certsCommands struct {
	List   certsListCommand   `cmd:"" default:"withargs" help:"List certificates, newest first."`
	Show   certsShowCommand   `cmd:"" help:"Show everything recorded of one certificate."`
	Revoke certsRevokeCommand `cmd:"" help:"Revoke certificates and refuse new ones to their runs."`
}

// pointInTime is a time on the command line: RFC 3339, a date, or how long ago.
type pointInTime struct{ time.Time }

// UnmarshalText implements encoding.TextUnmarshaler.
func (p *pointInTime) UnmarshalText(b []byte) error {
	s := string(b)
	for _, layout := range []string{time.RFC3339, time.DateOnly} {
		if at, err := time.Parse(layout, s); err == nil {
			p.Time = at.UTC()
			return nil
		}
	}
	d, err := time.ParseDuration(s)
	if err != nil || d < 0 {
		return fmt.Errorf("%q is neither RFC 3339 (2026-01-02T15:04:05Z), nor a date, nor how long ago (90m, 24h)", s)
	}
	p.Time = time.Now().Add(-d).UTC()
	return nil
}

// matchFlags select certificates. They have the names of the query's parameters.
type matchFlags struct {
	Repository   string      `help:"OWNER/NAME, as the token said." placeholder:"OWNER/NAME" group:"match"`
	RepositoryID string      `help:"Numeric id of the repository." name:"repository-id" placeholder:"ID" group:"match"`
	RunID        string      `help:"Id of the workflow run." name:"run-id" placeholder:"ID" group:"match"`
	Actor        string      `help:"Who started the run." placeholder:"NAME" group:"match"`
	Identity     string      `help:"SPIFFE ID." placeholder:"SPIFFE-ID" group:"match"`
	Profile      string      `help:"client or server." enum:",client,server" default:"" placeholder:"PROFILE" group:"match"`
	Since        pointInTime `help:"Issued at or after: RFC 3339, a date, or how long ago (24h)." placeholder:"TIME" group:"match"`
	Until        pointInTime `help:"Issued before." placeholder:"TIME" group:"match"`
}

type certsListCommand struct {
	matchFlags
	Serial string `help:"Serial, or the beginning of one." placeholder:"HEX" group:"match"`
	Status string `help:"valid, expired or revoked." enum:",valid,expired,revoked" default:"" placeholder:"STATUS" group:"match"`
	Limit  int    `help:"How many at most." default:"100"`
	Cursor string `help:"Go on where an earlier list ended." placeholder:"CURSOR"`
}

func (certsListCommand) Help() string {
	return `Needs the role viewer: ` + "`mayfly login`" + `, or MAYFLY_ADMIN_TOKEN.

Examples:

	mayfly certs list --repository acme/app --status valid
	mayfly certs list --run-id 32291736541 --json | jq -r '.items[].serial'`
}

func (c *certsListCommand) filter() api.CertificateFilter {
	return api.CertificateFilter{
		Serial: strings.ToLower(c.Serial), Repository: c.Repository, RepositoryID: c.RepositoryID,
		RunID: c.RunID, Actor: c.Actor, Identity: c.Identity, Profile: c.Profile, Status: c.Status,
		Since: c.Since.Time, Until: c.Until.Time, Cursor: c.Cursor,
	}
}

// Run lists certificates.
func (c *certsListCommand) Run(ctx context.Context, p *program) error {
	ctx, stop := interruptible(ctx)
	defer stop()
	calls, err := p.admin()
	if err != nil {
		return err
	}
	f := c.filter()
	items, next, err := pages(ctx, p, c.Limit, f.Cursor, func(ctx context.Context, limit int, cursor string) (*api.Answer[wire.List[wire.Certificate]], error) {
		f.Limit, f.Cursor = limit, cursor
		return calls.Certificates(ctx, f)
	})
	if err != nil || p.JSON {
		return err
	}
	if len(items) == 0 {
		p.note("no certificate matches")
		return nil
	}
	var rows [][]cell
	for _, it := range items {
		rows = append(rows, []cell{
			plain(it.Serial), {Text: it.Status, Style: statusStyle(it.Status)}, plain(owner(it)),
			plain(it.RunID), plain(it.Actor), plain(it.Rule), plain(strings.Join(it.Engines, ",")), plain(p.moment(it.NotAfter)),
		})
	}
	p.table(certColumns, rows)
	p.more(next)
	return nil
}

// certColumns are the columns of certs list.
var certColumns = []column{
	{Head: "SERIAL", Min: 10, Early: true}, {Head: "STATUS"}, {Head: "REPOSITORY", Min: 20}, {Head: "RUN"}, {Head: "ACTOR", Min: 8, Drop: 1}, {Head: "RULE", Min: 8, Drop: 2}, {Head: "ENGINES", Min: 8, Drop: 3}, {Head: "EXPIRES"},
}

// pages reads pages until it has limit items. With --json it prints each body. It
// returns the items and the cursor of the next page.
func pages[T any](ctx context.Context, p *program, limit int, cursor string,
	get func(ctx context.Context, limit int, cursor string) (*api.Answer[wire.List[T]], error)) ([]T, string, error) {
	if limit < 1 {
		return nil, "", usagef("give --limit 1 or more", "--limit is %d, which lists nothing", limit)
	}
	var all []T
	for {
		a, err := get(ctx, min(limit-len(all), wire.MaxListLimit), cursor)
		if err != nil {
			return nil, "", err
		}
		if p.JSON {
			p.body(a.Body)
		}
		all = append(all, a.Value.Items...)
		next := a.Value.NextCursor
		if next == "" || len(all) >= limit || len(a.Value.Items) == 0 || next == cursor {
			return all, next, nil
		}
		cursor = next
	}
}

// more prints a note if the list continues.
func (p *program) more(cursor string) {
	if cursor != "" {
		p.note("there are more: raise --limit, or go on with --cursor %s", strconv.Quote(cursor))
	}
}

// owner returns a readable name of a certificate's owner.
func owner(c wire.Certificate) string {
	if c.Repository != "" {
		return c.Repository
	}
	return c.Identity
}

func statusStyle(status string) *lipgloss.Style {
	switch status {
	case wire.StatusValid:
		return &styleGood
	case wire.StatusRevoked:
		return &styleBad
	}
	return &styleFaint
}

type certsShowCommand struct {
	Serial string `arg:"" help:"Serial, or a beginning of it that no other has."`
	PEM    bool   `help:"Print only the certificate and its chain, if the record holds its signature." name:"pem"`
}

func (certsShowCommand) Help() string {
	return `Shows who it was issued to and by which rule, the claims of the token as they were verified, its connections, and whether it was revoked.

Needs the role viewer.`
}

// Run shows the certificate.
func (c *certsShowCommand) Run(ctx context.Context, p *program) error {
	ctx, stop := interruptible(ctx)
	defer stop()
	calls, err := p.admin()
	if err != nil {
		return err
	}
	serial, err := wholeSerial(ctx, calls, c.Serial)
	if err != nil {
		return err
	}
	a, err := calls.Certificate(ctx, serial)
	if err != nil {
		return err
	}
	switch {
	case p.JSON:
		p.body(a.Body)
	case c.PEM && a.Value.PEM == "":
		return failf(exitFailed, "--json shows what was signed, as tbs", "certificate %s is recorded without its signature, so there is no PEM of it", serial)
	case c.PEM:
		p.printf("%s", visiblePEM(a.Value.PEM, a.Value.Chain))
	default:
		p.showCertificate(&a.Value)
	}
	return nil
}

// serialPrefix parses a serial or its beginning. It accepts colons, as OpenSSL
// prints them, and a serial that mayfly's own tables have cut.
func serialPrefix(given string) (string, error) {
	prefix := strings.TrimSuffix(strings.ToLower(strings.ReplaceAll(given, ":", "")), "…")
	if prefix == "" || len(prefix) > 32 || strings.Trim(prefix, "0123456789abcdef") != "" {
		return "", usagef("a serial is 32 hex digits; `mayfly certs list` shows them", "%q is not a serial", given)
	}
	return prefix, nil
}

// wholeSerial completes the beginning of a serial if only one certificate has it.
func wholeSerial(ctx context.Context, calls *api.Client, given string) (string, error) {
	prefix, err := serialPrefix(given)
	if err != nil {
		return "", err
	}
	if len(prefix) == 32 {
		return prefix, nil
	}
	a, err := calls.Certificates(ctx, api.CertificateFilter{Serial: prefix, Limit: 5})
	if err != nil {
		return "", err
	}
	switch items := a.Value.Items; len(items) {
	case 1:
		return items[0].Serial, nil
	case 0:
		return "", failf(exitFailed, "`mayfly certs list` shows what there is", "no certificate's serial begins with %s", prefix)
	default:
		var s []string
		for _, it := range items {
			s = append(s, it.Serial)
		}
		return "", failf(exitFailed, "give more digits", "several serials begin with %s: %s", prefix, strings.Join(s, ", "))
	}
}
