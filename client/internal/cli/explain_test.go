package cli

import (
	"context"
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/mayfly-ca/mayfly/client"
)

// noToken is a source that must not be called.
type noToken struct{}

func (noToken) Token(context.Context, string) (string, error) { return "", fmt.Errorf("asked") }
func (noToken) String() string                                { return "test" }

// A local dial error is an unreachable issuer (4), with the one thing to do. For an
// engine, package client reports it, and the code is 5.
func TestDialErrors(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		err  error
		hint string
	}{
		{&net.DNSError{Err: "no such host", Name: "mayfly.invalid", IsNotFound: true}, "its host does not exist"},
		{os.NewSyscallError("connect", syscall.EPERM), "a firewall or sandbox of this machine"},
		{os.NewSyscallError("connect", syscall.EACCES), "a firewall or sandbox of this machine"},
		{os.NewSyscallError("socket", syscall.EMFILE), "ulimit -n"},
	} {
		_, err := client.New(t.Context(), client.Config{
			Issuer: "https://mayfly.invalid", Source: noToken{},
			Dial: func(context.Context, string, string) (net.Conn, error) {
				return nil, &net.OpError{Op: "dial", Net: "tcp", Err: tt.err}
			},
		})
		if f := explain(err); f.code != exitIssuer || len(f.hints) != 1 || !strings.Contains(f.hints[0], tt.hint) {
			t.Errorf("%v: code %d, %q", err, f.code, f.hints)
		}
		engine := &client.EngineUnreachableError{Engine: "default", Endpoint: "tcp://e:1", Attempts: 1, Final: true, Err: tt.err}
		if f := explain(engine); f.code != exitEngine || len(f.hints) != 1 || !strings.Contains(f.hints[0], tt.hint) {
			t.Errorf("%v: code %d, %q", engine, f.code, f.hints)
		}
	}
}
