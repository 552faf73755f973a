// Package cli is the command line of mayfly-issuer: it makes a CA, serves it, checks
// policies, rotates keys, and maintains the store.
//
// It is for operators on the issuer's own machine. Admins use the program mayfly over
// the network. It imports the package issuer, issuer/internal/policy and ca. It never
// prints a key.
package cli

import (
	"context"
	"os"
	"strings"

	"github.com/alecthomas/kong"

	"github.com/mayfly-ca/mayfly/client/command"
	"github.com/mayfly-ca/mayfly/issuer"
)

// Stdio is the input and output of a command.
type Stdio = command.Stdio

// OS returns the process's own Stdio.
func OS() Stdio { return Stdio{In: os.Stdin, Out: os.Stdout, Err: os.Stderr} }

// commands is the grammar of the command line.
type commands struct {
	Init      initCommand      `cmd:"" help:"Make a CA: root, intermediate, store and a first issuer.yaml." group:"ca"`
	Rotate    rotateCommands   `cmd:"" help:"Replace the intermediate, or say that one is compromised." group:"ca"`
	Policy    policyCommands   `cmd:"" help:"Check, explain and test a policy file." group:"policy"`
	Serve     serveCommand     `cmd:"" help:"Serve the API and the web page." group:"host"`
	Store     storeCommands    `cmd:"" help:"Make the store." group:"host"`
	Revoke    revokeCommand    `cmd:"" help:"Revoke on the host, as when the login provider is down." group:"host"`
	AdminLink adminLinkCommand `cmd:"" help:"Print a link that logs in one person to the admin page, once, within ten minutes." group:"host"`
	Backup    backupCommand    `cmd:"" help:"Copy the store while it is in use." group:"host"`
	Restore   restoreCommand   `cmd:"" help:"Put a backup back, and revoke what was issued before now." group:"host"`
	Verify    verifyCommand    `cmd:"" help:"Check every stored certificate and the chain of events." group:"host"`

	command.Common
	Version command.Version `cmd:"" help:"Print which mayfly-issuer this is." group:"about"`
}

// program describes mayfly-issuer for its help.
var program = command.Program{
	Name:    "mayfly-issuer",
	Summary: "the certificate authority of mayfly",
	Description: `mayfly-issuer is the certificate authority of mayfly: it makes a CA, serves it, and looks after its keys, store and policy.

	mayfly-issuer init --dir ca --trust-domain ci.example.com --engine-dns engine.example.com
	mayfly-issuer serve --config ca/issuer/issuer.yaml`,
	Groups: []kong.Group{
		{Key: "ca", Title: "On the operator's machine, and for keys:"},
		{Key: "policy", Title: "For the policy file:"},
		{Key: "host", Title: "On the issuer's host:"},
	},
}

// Run runs one command and returns the exit code.
func Run(ctx context.Context, args []string, stdio Stdio) int {
	var c commands
	k, err := program.Parse(&c, args, stdio)
	if err == nil && k != nil {
		k.BindTo(ctx, (*context.Context)(nil))
		err = k.Run(&invocation{Stdio: stdio, log: c.Log})
	}
	return program.End(stdio.Err, c.Log, err)
}

// invocation is one run of a command.
type invocation struct {
	Stdio
	log command.Log
}

// configFlag is the flag for the issuer's configuration.
type configFlag struct {
	Config string `help:"The issuer's configuration, issuer.yaml." required:"" placeholder:"FILE"`
}

func (f configFlag) load() (issuer.Config, error) { return issuer.LoadConfig(f.Config) }

// names returns the names in list, whose items may hold commas, and checks them.
func names(flag string, list []string) ([]string, error) {
	var out []string
	for _, item := range list {
		for name := range strings.SplitSeq(item, ",") {
			if name = strings.TrimSpace(name); name == "" {
				return nil, command.Usagef("--%s: an empty name", flag)
			}
			out = append(out, name)
		}
	}
	return out, nil
}
