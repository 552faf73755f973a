package cli

import (
	"context"
	"fmt"

	"github.com/mayfly-ca/mayfly/issuer"
	"github.com/mayfly-ca/mayfly/issuer/internal/policy"
)

type adminLinkCommand struct {
	configFlag
	Role string `help:"What the person may do: admin, or viewer to look only." required:"" enum:"admin,viewer" placeholder:"admin|viewer"`
}

// Run makes a link that logs in one person when no login provider is configured or
// none answers. Only the link goes to stdout, for scripts.
func (c *adminLinkCommand) Run(ctx context.Context, i *invocation) error {
	cfg, err := c.load()
	if err != nil {
		return err
	}
	link, err := issuer.AdminLink(ctx, cfg, policy.Role(c.Role), "host/"+hostUser())
	if err != nil {
		return err
	}
	fmt.Fprintln(i.Err, "Open this link in a browser. It logs in one person, once, within 10 minutes; the login ends after 8 hours.")
	_, err = fmt.Fprintln(i.Out, link)
	return err
}
