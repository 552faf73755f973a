package cli

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/mayfly-ca/mayfly/client/admin"
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
	Limit      int         `help:"How many at most, before following." default:"50"`
	Cursor     string      `help:"Go on where an earlier list ended." placeholder:"CURSOR"`
}

func (eventsCommand) Help() string {
	return `Newest first; with --follow or --after in the order in which they happened. Denials of one minute that are alike are one event with a count.

Needs the role viewer.

Examples:

	mayfly events --type denied --since 1h
	mayfly events --follow --json >> audit.jsonl`
}

// followEvery is how often --follow asks for what is new.
const followEvery = time.Second

func (c *eventsCommand) filter() admin.EventFilter {
	return admin.EventFilter{Type: c.Type, Serial: c.Serial, Repository: c.Repository, RunID: c.RunID,
		Since: c.Since.Time, Until: c.Until.Time, After: c.After}
}

// Run prints events, and those to come under --follow.
func (c *eventsCommand) Run(ctx context.Context, p *program) error {
	ctx, stop := interruptible(ctx)
	defer stop()
	api, err := p.admin()
	if err != nil {
		return err
	}
	if c.Serial != "" {
		if c.Serial, err = wholeSerial(ctx, api, c.Serial); err != nil {
			return err
		}
	}
	if c.Follow {
		return c.follow(ctx, p, api)
	}
	f := c.filter()
	items, next, err := pages(ctx, p, c.Limit, c.Cursor, func(ctx context.Context, limit int, cursor string) (*admin.Answer[wire.List[wire.Event]], error) {
		f.Limit, f.Cursor = limit, cursor
		return api.Events(ctx, f)
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
			plain(fmt.Sprint(e.Seq)), plain(p.moment(e.Time)), {Text: e.Type, Style: eventStyle(e.Type)},
			plain(subject(e)), plain(e.RunID), plain(e.Serial), plain(remarks(e)),
		})
	}
	p.table(eventColumns, rows)
	p.more(next)
	return nil
}

// eventColumns are those of events.
var eventColumns = []column{
	{Head: "SEQ"}, {Head: "TIME"}, {Head: "TYPE"}, {Head: "WHO", Min: 14}, {Head: "RUN", Min: 8},
	{Head: "SERIAL", Min: 10, Early: true}, {Head: "WHAT", Min: 16},
}

// follow prints the newest events in order, then each new one as it comes.
// The person ends it.
func (c *eventsCommand) follow(ctx context.Context, p *program, api *admin.Client) error {
	f := c.filter()
	f.Limit = min(max(c.Limit, 1), wire.MaxListLimit)
	return p.again(ctx, followEvery, func() (more bool, err error) {
		a, err := api.Events(ctx, f)
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
	line := []string{e.Time.UTC().Format(time.RFC3339), p.paint(*eventStyle(e.Type), visible(fmt.Sprintf("%-12s", e.Type)))}
	for _, kv := range [][2]string{{"who", subject(e)}, {"run", e.RunID}, {"serial", e.Serial}} {
		if kv[1] != "" {
			line = append(line, kv[0]+"="+visible(kv[1]))
		}
	}
	if r := remarks(e); r != "" {
		line = append(line, visible(r))
	}
	p.printf("%s\n", strings.Join(line, "  "))
}

// subject names whom an event is about.
func subject(e wire.Event) string {
	for _, s := range []string{e.Repository, e.Identity, e.By} {
		if s != "" {
			return s
		}
	}
	return ""
}

// remarks is the rest of an event in words.
func remarks(e wire.Event) string {
	var s []string
	if e.Reason != "" {
		s = append(s, e.Reason)
	}
	if e.Rule != "" {
		s = append(s, "rule "+e.Rule)
	}
	if e.Count > 1 {
		s = append(s, fmt.Sprintf("%d times", e.Count))
	}
	if e.By != "" && e.By != subject(e) && e.By != e.Identity {
		s = append(s, "by "+e.By)
	}
	for _, k := range slices.Sorted(maps.Keys(e.Detail)) {
		s = append(s, k+"="+e.Detail[k])
	}
	return strings.Join(s, ", ")
}
