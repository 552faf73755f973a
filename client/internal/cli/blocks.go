package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"charm.land/lipgloss/v2"

	"github.com/mayfly-ca/mayfly/client/wire"
)

type blocksCommands struct {
	List   blocksListCommand   `cmd:"" default:"1" help:"List who is refused new certificates."`
	Remove blocksRemoveCommand `cmd:"" help:"End a block before its time."`
}

type blocksListCommand struct{}

func (blocksListCommand) Help() string {
	return `A revocation blocks what it revoked for 24 hours, or for as long as --block said. Needs the role admin.`
}

// Run lists the blocks.
func (c *blocksListCommand) Run(ctx context.Context, p *program) error {
	ctx, stop := interruptible(ctx)
	defer stop()
	calls, err := p.admin()
	if err != nil {
		return err
	}
	a, err := calls.Blocks(ctx)
	if err != nil {
		return err
	}
	if p.JSON {
		p.body(a.Body)
		return nil
	}
	if len(a.Value.Items) == 0 {
		p.note("nothing is blocked")
		return nil
	}
	var rows [][]cell
	for _, b := range a.Value.Items {
		rows = append(rows, []cell{plain(b.ID), plain(p.moment(b.Until)), plain(b.By), plain(b.Reason), plain(matchWords(b))})
	}
	p.table(blockColumns, rows)
	return nil
}

// The ID is never cut, because `mayfly blocks remove` takes it.
var blockColumns = []column{{Head: "ID"}, {Head: "UNTIL"}, {Head: "BY", Min: 10, Drop: 1}, {Head: "REASON", Min: 10, Drop: 2}, {Head: "WHO", Wrap: true}}

// matchWords describes whom a block covers.
func matchWords(b wire.Block) string {
	m := b.Match
	var s []string
	for _, kv := range [][2]string{
		{"repository", m.Repository}, {"repository_id", m.RepositoryID}, {"run_id", m.RunID},
		{"actor", m.Actor}, {"identity", m.Identity}, {"profile", m.Profile}, {"token issuer", b.TokenIssuer},
	} {
		if kv[1] != "" {
			s = append(s, kv[0]+" "+kv[1])
		}
	}
	if m.Since != nil {
		s = append(s, "since "+m.Since.UTC().Format(time.RFC3339))
	}
	if m.Until != nil {
		s = append(s, "until "+m.Until.UTC().Format(time.RFC3339))
	}
	return strings.Join(s, ", ")
}

type blocksRemoveCommand struct {
	ID []string `arg:"" help:"Id of the block; mayfly blocks list shows it."`
}

func (blocksRemoveCommand) Help() string {
	return `What was revoked stays revoked; its run may get new certificates. Needs the role admin.`
}

// Run removes the blocks.
func (c *blocksRemoveCommand) Run(ctx context.Context, p *program) error {
	ctx, stop := interruptible(ctx)
	defer stop()
	calls, err := p.admin()
	if err != nil {
		return err
	}
	for _, id := range c.ID {
		if len(id) != 32 || strings.Trim(id, "0123456789abcdef") != "" {
			return usagef("`mayfly blocks list` shows the ids", "%q is not the id of a block", id)
		}
	}
	for _, id := range c.ID {
		if err := calls.RemoveBlock(ctx, id); err != nil {
			var p *wire.Problem
			if errors.As(err, &p) && p.Name() == wire.ProblemNotFound {
				return failf(exitFailed, "`mayfly blocks list` shows those that there are", "there is no block %s", id)
			}
			return fmt.Errorf("block %s: %w", id, err)
		}
		if p.JSON {
			p.json(map[string]string{"removed": id})
			continue
		}
		p.printf("removed %s\n", id)
	}
	return nil
}

func eventStyle(kind string) *lipgloss.Style {
	switch kind {
	case "issued", "connected":
		return &styleGood
	case "denied", "replay", "revoked", "blocked", "forbidden":
		return &styleBad
	case "feed_stale", "rotation", "restored", "admin_link":
		return &styleWarn
	}
	return &styleFaint
}
