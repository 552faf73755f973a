package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os/user"
	"strings"
	"time"

	"github.com/mayfly-ca/mayfly/ca/store"
	"github.com/mayfly-ca/mayfly/client/command"
	"github.com/mayfly-ca/mayfly/client/wire"
	"github.com/mayfly-ca/mayfly/issuer"
)

// quiet discards the logs of commands that print their own output.
var quiet = slog.New(slog.DiscardHandler)

type revokeCommand struct {
	configFlag
	Serial string `arg:"" optional:"" help:"Serial of the certificate, whole."`
	All    bool   `help:"Revoke every certificate, listed or not: raises the floor."`
	Block  string `help:"How long to refuse re-issue: a duration, default 24h, or \"none\"." placeholder:"DURATION"`
	Reason string `help:"Why; goes into the record." placeholder:"TEXT"`
	Yes    bool   `help:"Do not ask before an engine is blocked." short:"y"`
}

func (revokeCommand) Help() string {
	return `An engine that loses its own certificate cuts every connection. With a block it gets no other, and admits no build until the block ends; revoke asks before that.`
}

// Run revokes on the host, for when the login provider is down. An issuer that serves
// the same store publishes the new CRL within 250 ms.
func (c *revokeCommand) Run(ctx context.Context, i *invocation) error {
	if (c.Serial != "") == c.All {
		return command.Usagef("give a serial, or --all")
	}
	req := wire.RevokeRequest{Serial: c.Serial, All: c.All, Block: c.Block, Reason: c.Reason}
	order, err := issuer.ParseRevocation(req)
	if err != nil {
		var wrong *issuer.Error // its text without the name of the problem on the wire
		if errors.As(err, &wrong) && wrong.Detail != "" {
			return command.Usagef("%s", wrong.Detail)
		}
		return command.Usagef("%w", err)
	}
	order.By = "host/" + hostUser()
	h, err := openHost(ctx, c.configFlag)
	if err != nil {
		return err
	}
	defer h.Close()
	if err := c.confirm(ctx, i, h, order); err != nil {
		return err
	}
	res, number, err := h.authority.Revoke(ctx, order)
	if errors.Is(err, store.ErrNotFound) {
		return command.WithHint(fmt.Errorf("no certificate has the serial %s", req.Serial), "copy the serial from `mayfly certs list`, the page, or the sidecar's log")
	}
	if err != nil {
		return err
	}
	fmt.Fprintf(i.Out, "revoked %d, CRL number %d\n", len(res.Serials), number)
	for _, s := range res.Serials {
		fmt.Fprintf(i.Out, "  %s\n", s)
	}
	for _, b := range res.BlockIDs {
		fmt.Fprintf(i.Out, "  block %s\n", b)
	}
	if !res.Floor.IsZero() {
		fmt.Fprintf(i.Out, "  everything issued before %s is refused everywhere\n", res.Floor.UTC().Format(time.RFC3339))
	}
	return nil
}

// confirm asks before an engine is blocked. Without a terminal, --yes is required.
func (c *revokeCommand) confirm(ctx context.Context, i *invocation, h *host, order store.Revocation) error {
	order.DryRun = true
	res, _, err := h.authority.Revoke(ctx, order)
	if err != nil || res.MachinesUntil.IsZero() { // Revoke refuses an unknown serial later
		return nil
	}
	what := fmt.Sprintf("engines lose their own certificates, end %d live connections and admit no build until %s: %s",
		res.Sessions, res.MachinesUntil.UTC().Format(time.RFC3339), strings.Join(res.Machines, ", "))
	if c.Yes {
		fmt.Fprintln(i.Out, what)
		return nil
	}
	answered, yes := command.Confirm(i.Stdio, what+"\nRevoke?")
	switch {
	case !answered:
		return &command.UsageError{What: what, Hint: "add --yes to do that, or --block none: then the engines get other certificates at once"}
	case !yes:
		return command.WithHint(errors.New("not confirmed: nothing was changed"), "type yes in full to revoke")
	}
	return nil
}

// hostUser returns the name of the operator, for events.
func hostUser() string {
	u, err := user.Current()
	if err != nil {
		return "unknown"
	}
	return u.Username
}
