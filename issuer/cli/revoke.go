package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os/user"
	"time"

	"github.com/mayfly-ca/mayfly/ca"
	"github.com/mayfly-ca/mayfly/client/wire"
	"github.com/mayfly-ca/mayfly/issuer"
)

// quiet is the logger of commands that speak for themselves.
var quiet = slog.New(slog.DiscardHandler)

// runRevoke revokes on the host, when the login provider is down. A serving
// issuer over the same store publishes the new CRL within 250 ms.
func runRevoke(ctx context.Context, i *invocation) error {
	fs := i.flags()
	path := fs.String("config", "", "issuer.yaml")
	all := fs.Bool("all", false, "revoke every certificate, listed or not: raises the floor")
	block := fs.String("block", "", `how long to refuse re-issue: a duration, default 24h, or "none"`)
	reason := fs.String("reason", "", "why; goes into the record")
	positional, err := i.parse(fs, 0, 1)
	if err != nil {
		return err
	}
	if (len(positional) == 1) == *all {
		return usagef("want a serial or --all")
	}
	req := wire.RevokeRequest{All: *all, Block: *block, Reason: *reason}
	if !*all {
		req.Serial = positional[0]
	}
	order, err := issuer.RevocationOf(req)
	if err != nil {
		return usagef("%v", err)
	}
	order.By = "host/" + hostUser()
	h, err := openHost(ctx, i, *path)
	if err != nil {
		return err
	}
	defer h.Close()
	res, number, err := h.authority.Revoke(ctx, order)
	if errors.Is(err, ca.ErrNotFound) {
		return fmt.Errorf("no certificate %s was issued here; mayfly-issuer verify reads them all", req.Serial)
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

// hostUser names who is at the keyboard, for the record.
func hostUser() string {
	u, err := user.Current()
	if err != nil {
		return "unknown"
	}
	return u.Username
}
