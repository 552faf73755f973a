package cli

import (
	"context"
	"fmt"

	"github.com/mayfly-ca/mayfly/ca"
	"github.com/mayfly-ca/mayfly/ca/store"
	"github.com/mayfly-ca/mayfly/issuer"
)

type verifyCommand struct{ configFlag }

// Run checks every stored certificate against its intermediate and its record, and
// checks the chain of events.
func (c *verifyCommand) Run(ctx context.Context, i *invocation) error {
	h, err := openHost(ctx, c.configFlag)
	if err != nil {
		return err
	}
	defer h.Close()
	v, err := h.authority.Verify(ctx)
	if v != nil {
		fmt.Fprintf(i.Out, "%d certificates and %d events checked\n", v.Certificates, v.Events)
		if v.Unknown > 0 {
			fmt.Fprintf(i.Out, "%d are of intermediates that are not configured any more: only their records were checked\n", v.Unknown)
		}
	}
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(i.Out, "ok")
	return err
}

// host is an authority opened on the host, with or without a serving issuer.
type host struct {
	config    issuer.Config
	store     store.Store
	authority *ca.Authority
}

func openHost(ctx context.Context, f configFlag) (*host, error) {
	cfg, err := f.load()
	if err != nil {
		return nil, err
	}
	cfg.Logger = quiet
	h := &host{config: cfg}
	if h.store, err = issuer.OpenStore(ctx, cfg); err != nil {
		return nil, err
	}
	if h.authority, err = issuer.OpenAuthority(ctx, cfg, h.store); err != nil {
		_ = h.store.Close()
		return nil, err
	}
	return h, nil
}

// Close closes the authority and the store.
func (h *host) Close() {
	_ = h.authority.Close()
	_ = h.store.Close()
}
