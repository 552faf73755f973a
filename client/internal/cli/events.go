package cli

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/mayfly-ca/mayfly/client/internal/api"
	"github.com/mayfly-ca/mayfly/client/wire"
)

type eventsCommand struct {
	Type       string      `help:"issued, denied, replay, revoked, blocked, connected, disconnected, policy_loaded, and so on." placeholder:"TYPE" group:"match"`
	Serial     string      `help:"Serial of the certificate." placeholder:"HEX" group:"match"`
	Repository string      `help:"OWNER/NAME, as the token said." placeholder:"OWNER/NAME" group:"match"`
	RunID      string      `help:"Id of the workflow run." name:"run-id" placeholder:"ID" group:"match"`
	Since      pointInTime `help:"At or after: RFC 3339, a date, or how long ago (24h)." placeholder:"TIME" group:"match"`
	Until      pointInTime `help:"Before." placeholder:"TIME" group:"match"`
	Follow     bool        `help:"Go on printing what happens." short:"f"`
	After      int64       `help:"Only events after this number, in order." placeholder:"SEQ"`
	Export     bool        `help:"Print all that match, oldest first, as JSON lines, and end."`
	Limit      int         `help:"How many at most, before following." default:"50"`
	Cursor     string      `help:"Go on where an earlier list ended." placeholder:"CURSOR"`
}

func (eventsCommand) Help() string {
	return `Newest first; with --follow or --after in the order in which they happened. Denials of one minute that are alike are one event with a count.

Needs the role viewer.

Examples:

	mayfly events --type denied --since 1h
	mayfly events --export --after 4711 >> audit.jsonl
	mayfly events --follow --json >> audit.jsonl`
}

// followEvery is how often --follow asks for new events.
const followEvery = time.Second

func (c *eventsCommand) filter() api.EventFilter {
	return api.EventFilter{Type: c.Type, Serial: c.Serial, Repository: c.Repository, RunID: c.RunID,
		Since: c.Since.Time, Until: c.Until.Time, After: c.After}
}

// Run prints events, and with --follow also later ones.
func (c *eventsCommand) Run(ctx context.Context, p *program) error {
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
	switch {
	case c.Export && (c.Follow || c.Cursor != ""):
		return usagef("leave one out", "--export goes on by --after alone, and ends")
	case c.Export:
		return c.export(ctx, p, calls)
	case c.Follow:
		return c.follow(ctx, p, calls)
	}
	f := c.filter()
	items, next, err := pages(ctx, p, c.Limit, c.Cursor, func(ctx context.Context, limit int, cursor string) (*api.Answer[wire.List[wire.Event]], error) {
		f.Limit, f.Cursor = limit, cursor
		return calls.Events(ctx, f)
	})
	if err != nil || p.JSON {
		return err
	}
	if len(items) == 0 {
		p.note("no event matches")
		return nil
	}
	var rows [][]cell
	for _, e := range items {
		rows = append(rows, []cell{
			plain(fmt.Sprint(e.Seq)), plain(p.moment(e.Time)), {Text: e.Type, Style: eventStyle(e.Type)}, plain(e.Serial), plain(e.Text()),
		})
	}
	p.table(eventColumns, rows)
	p.more(next)
	return nil
}

// eventColumns are the columns of events.
var eventColumns = []column{{Head: "SEQ"}, {Head: "TIME"}, {Head: "TYPE"}, {Head: "SERIAL", Min: 10, Early: true}, {Head: "WHAT", Wrap: true}}

// export prints all matching events in order, one JSON document on each line.
func (c *eventsCommand) export(ctx context.Context, p *program, calls *api.Client) error {
	f := c.filter()
	f.Forward, f.Limit = true, wire.MaxListLimit
	for {
		a, err := calls.Events(ctx, f)
		if err != nil {
			return err
		}
		for _, e := range a.Value.Items {
			p.json(e)
			f.After = e.Seq
		}
		if len(a.Value.Items) < f.Limit {
			return nil
		}
	}
}

// follow prints the newest events in order, then each new event. It ends when the
// user interrupts it.
func (c *eventsCommand) follow(ctx context.Context, p *program, calls *api.Client) error {
	f := c.filter()
	f.Limit = min(max(c.Limit, 1), wire.MaxListLimit)
	return p.poll(ctx, followEvery, func() (more bool, err error) {
		a, err := calls.Events(ctx, f)
		if err != nil {
			return false, err
		}
		items := a.Value.Items
		slices.SortFunc(items, func(a, b wire.Event) int { return cmp.Compare(a.Seq, b.Seq) })
		for _, e := range items {
			p.event(e)
			f.After = max(f.After, e.Seq)
		}
		return f.After > 0 && len(items) == f.Limit, nil
	})
}

// event prints one event as one line.
func (p *program) event(e wire.Event) {
	if p.JSON {
		p.json(e)
		return
	}
	line := []string{e.Time.UTC().Format(time.RFC3339), p.paint(*eventStyle(e.Type), escapeText(fmt.Sprintf("%-13s", e.Type))), escapeText(e.Text())}
	if e.Serial != "" {
		line = append(line, "serial="+escapeText(e.Serial))
	}
	p.printf("%s\n", strings.Join(line, "  "))
}
