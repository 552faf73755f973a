package cli

import (
	"github.com/alecthomas/kong"

	"github.com/mayfly-ca/mayfly/client/command"
)

type versionCommand struct{}

// Run prints the version. --json is a flag of every command.
func (versionCommand) Run(k *kong.Context, p *program) error {
	return command.Version{JSON: p.JSON}.Run(k, mayfly)
}
