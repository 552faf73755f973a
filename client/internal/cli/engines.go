package cli

import (
	"context"
	"strconv"

	"charm.land/lipgloss/v2"

	"github.com/mayfly-ca/mayfly/client/wire"
)

type enginesCommand struct{}

func (enginesCommand) Help() string {
	return `Each machine of an engine, as its sidecar last reported it, once a minute. Awake: it runs. Asleep: it said that it stops. Silent: it has said nothing for more than three minutes. SOCKET is whether the engine answers there, LIST how old the machine's revocation list is.

Needs the role viewer.`
}

// Run lists the engines.
func (c *enginesCommand) Run(ctx context.Context, p *program) error {
	ctx, stop := interruptible(ctx)
	defer stop()
	calls, err := p.admin()
	if err != nil {
		return err
	}
	a, err := calls.Engines(ctx)
	if err != nil {
		return err
	}
	if p.JSON {
		p.body(a.Body)
		return nil
	}
	if len(a.Value.Items) == 0 {
		p.note("the policy names no engine")
		return nil
	}
	p.table(engineColumns, p.engineRows(a.Value.Items))
	return nil
}

var engineColumns = []column{
	{Head: "ENGINE", Min: 7}, {Head: "STATE"}, {Head: "MACHINE", Wrap: true}, {Head: "SEEN"}, {Head: "CERTIFICATE ENDS", Drop: 2},
	{Head: "VERSION", Min: 8, Drop: 4}, {Head: "SOCKET", Drop: 5}, {Head: "LIST", Drop: 3}, {Head: "SIDECAR", Min: 6, Drop: 1}, {Head: "SESSIONS", Drop: 6},
}

func (p *program) engineRows(items []wire.EngineStatus) [][]cell {
	styles := map[string]*lipgloss.Style{wire.EngineAwake: &styleGood, wire.EngineSilent: &styleBad, wire.EngineAsleep: &styleFaint}
	var rows [][]cell
	for _, e := range items {
		if len(e.Machines) == 0 {
			rows = append(rows, []cell{plain(e.Name), plain("no report"), plain(""), plain(""), plain(""), plain(""), plain(""), plain(""), plain(""), plain("")})
		}
		for _, m := range e.Machines {
			socket, list := m.EngineSocket, shortDuration(m.SeenAt.Sub(m.FeedAt))
			if m.State != wire.EngineAwake {
				socket, list = "", "" // they are from the last report, not current
			}
			rows = append(rows, []cell{
				plain(e.Name), {Text: m.State, Style: styles[m.State]}, plain(m.Machine), plain(p.moment(m.SeenAt)), plain(p.moment(m.CertificateNotAfter)),
				plain(m.EngineVersion), plain(socket), plain(list), plain(m.Version), plain(strconv.Itoa(m.LiveSessions)),
			})
		}
	}
	return rows
}
