package cli

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/mayfly-ca/mayfly/client/internal/api"
	"github.com/mayfly-ca/mayfly/client/wire"
)

type sessionsCommand struct {
	Engine     string        `help:"Name of the engine." placeholder:"NAME" group:"match"`
	Serial     string        `help:"Serial of the certificate." placeholder:"HEX" group:"match"`
	RunID      string        `help:"Id of the workflow run." name:"run-id" placeholder:"ID" group:"match"`
	Repository string        `help:"OWNER/NAME, as the token said." placeholder:"OWNER/NAME" group:"match"`
	Since      pointInTime   `help:"Opened at or after: RFC 3339, a date, or how long ago (24h)." placeholder:"TIME" group:"match"`
	Until      pointInTime   `help:"Opened before." placeholder:"TIME" group:"match"`
	Cut        bool          `help:"Only those that the engine cut."`
	All        bool          `help:"Also those that have ended."`
	Watch      bool          `help:"Go on showing changes." short:"w"`
	Interval   time.Duration `help:"How often --watch looks." default:"2s"`
	Limit      int           `help:"How many at most." default:"100"`
	Cursor     string        `help:"Go on where an earlier list ended." placeholder:"CURSOR"`
}

func (sessionsCommand) Help() string {
	return `A session is one TLS connection through an engine's sidecar, as that engine reported it: open ones, unless --all is given. A build holds several. An engine whose reports are missing is named on stderr.

Needs the role viewer. To end one, revoke its certificate: mayfly certs revoke SERIAL.`
}

// Run shows sessions. With --watch it repeats.
func (c *sessionsCommand) Run(ctx context.Context, p *program) error {
	ctx, stop := interruptible(ctx)
	defer stop()
	calls, err := p.admin()
	if err != nil {
		return err
	}
	if c.Serial != "" {
		if c.Serial, err = wholeSerial(ctx, calls, c.Serial); err != nil {
			return err
		}
	}
	if !c.Watch {
		items, next, err := c.get(ctx, p, calls)
		if err != nil {
			return err
		}
		missing, err := c.missing(ctx, p, calls)
		if err != nil {
			return err
		}
		p.warnMissing(missing)
		switch {
		case p.JSON: // get has printed it
		case len(items) > 0:
			p.table(sessionColumns, p.sessionRows(items))
			p.more(next)
		case c.Cut:
			p.note("no engine cut a session")
		case c.All:
			p.note("no session is recorded")
		case len(missing) > 0:
			p.note("no engine that reports has a connection")
		default:
			p.note("nobody is connected")
		}
		return nil
	}
	if c.Interval < 200*time.Millisecond {
		return usagef("give --interval 200ms or more", "--interval is %v, which is too often for the issuer", c.Interval)
	}
	return c.watch(ctx, p, calls)
}

func (c *sessionsCommand) get(ctx context.Context, p *program, calls *api.Client) ([]wire.Session, string, error) {
	f := api.SessionFilter{Engine: c.Engine, Serial: c.Serial, RunID: c.RunID, Repository: c.Repository, Live: !c.All && !c.Cut, Cut: c.Cut, Since: c.Since.Time, Until: c.Until.Time}
	return pages(ctx, p, c.Limit, c.Cursor, func(ctx context.Context, limit int, cursor string) (*api.Answer[wire.List[wire.Session]], error) {
		f.Limit, f.Cursor = limit, cursor
		return calls.Sessions(ctx, f)
	})
}

// missing returns a warning for each engine that may have connections and has
// stopped reporting, or has never reported.
func (c *sessionsCommand) missing(ctx context.Context, p *program, calls *api.Client) ([]string, error) {
	a, err := calls.Engines(ctx)
	var problem *wire.Problem
	if errors.As(err, &problem) && problem.Status == http.StatusNotFound {
		return nil, nil // an issuer of an older version
	}
	if err != nil {
		return nil, err
	}
	var out []string
	for _, e := range a.Value.Items {
		if c.Engine != "" && c.Engine != e.Name {
			continue
		}
		if e.State == wire.EngineUnknown {
			out = append(out, fmt.Sprintf("engine %s has never reported: who is connected there is not known", e.Name))
		}
		for _, m := range e.Machines {
			// Without a valid certificate, the machine admits no connection.
			if m.State == wire.EngineSilent && m.CertificateNotAfter.After(p.now()) {
				out = append(out, fmt.Sprintf("engine %s has not reported since %s: who is connected at %s is not known", e.Name, p.instant(m.SeenAt), m.Machine))
			}
		}
	}
	return out, nil
}

func (p *program) warnMissing(missing []string) {
	for _, m := range missing {
		p.warn("%s", m)
	}
	if len(missing) > 0 {
		p.note("the log of the engine's sidecar says why; with a token from a file it cannot report, as that is for one audience")
	}
}

// watch redraws the table on a terminal. Without one, it prints a line for each
// change. It ends when the user interrupts it.
func (c *sessionsCommand) watch(ctx context.Context, p *program, calls *api.Client) error {
	w := sessionWatch{p: p, seen: map[string]bool{}}
	if p.outWidth == 0 {
		missing, err := c.missing(ctx, p, calls)
		if err != nil {
			return err
		}
		p.warnMissing(missing)
	}
	return p.poll(ctx, c.Interval, func() (more bool, err error) {
		items, _, err := c.get(ctx, p, calls)
		switch {
		case err != nil:
			return false, err
		case p.JSON: // get has printed it
		case p.outWidth > 0:
			missing, err := c.missing(ctx, p, calls)
			if err != nil {
				return false, err
			}
			w.redraw(items)
			p.warnMissing(missing)
		default:
			w.changes(items)
		}
		return false, nil
	})
}

// sessionWatch tracks the sessions that were shown.
type sessionWatch struct {
	p    *program
	seen map[string]bool // by id; open sessions only
}

func (w *sessionWatch) redraw(items []wire.Session) {
	// Move the cursor home and clear the screen, then draw the whole table again.
	w.p.printf("\x1b[H\x1b[2J%s  %s\n\n", w.p.paint(styleHead, plural(len(items), "session")),
		w.p.paint(styleFaint, w.p.now().Format(time.TimeOnly)))
	w.p.table(sessionColumns, w.p.sessionRows(items))
}

func (w *sessionWatch) changes(items []wire.Session) {
	now := map[string]bool{}
	for _, s := range items {
		if s.ClosedAt == nil {
			now[s.ID] = true
			if !w.seen[s.ID] {
				w.p.printf("%s opened %s serial=%s engine=%s repository=%s run=%s\n",
					s.OpenedAt.UTC().Format(time.RFC3339), escapeText(s.ID), escapeText(s.Serial), escapeText(s.Engine), escapeText(s.Repository), escapeText(s.Run))
			}
		}
	}
	for id := range w.seen {
		if !now[id] {
			w.p.printf("%s closed %s\n", w.p.now().UTC().Format(time.RFC3339), escapeText(id))
		}
	}
	w.seen = now
}

var sessionColumns = []column{
	{Head: "STATE"}, {Head: "ENGINE", Min: 7, Drop: 3}, {Head: "REPOSITORY", Min: 20}, {Head: "RUN"}, {Head: "SERIAL", Min: 10, Early: true}, {Head: "OPENED"}, {Head: "SENT", Drop: 2}, {Head: "RECEIVED", Drop: 1}, {Head: "REASON", Min: 8},
}

// runID returns the run ID in a job's run, which is RUN/ATTEMPT/CHECK-RUN. It
// returns the run of any other client unchanged.
func runID(run string) string {
	parts := strings.Split(run, "/")
	if len(parts) == 3 && strings.Trim(strings.Join(parts, ""), "0123456789") == "" {
		return parts[0]
	}
	return run
}

func (p *program) sessionRows(items []wire.Session) [][]cell {
	var rows [][]cell
	for _, s := range items {
		state := cell{Text: "open", Style: &styleGood}
		if s.ClosedAt != nil {
			state = cell{Text: "closed", Style: &styleFaint}
		}
		who := s.Repository
		if who == "" {
			who = s.Identity
		}
		rows = append(rows, []cell{
			state, plain(s.Engine), plain(who), plain(runID(s.Run)), plain(s.Serial),
			plain(p.moment(s.OpenedAt)), plain(wire.Size(s.BytesIn)), plain(wire.Size(s.BytesOut)), plain(s.Reason),
		})
	}
	return rows
}
