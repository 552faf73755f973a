// Command mayfly-issuer is the certificate authority service: it makes a CA,
// serves it, and looks after its keys, store and policy.
package main

import (
	"context"
	"os"

	"github.com/mayfly-ca/mayfly/issuer/internal/cli"
)

func main() { os.Exit(cli.Run(context.Background(), os.Args[1:], cli.OS())) }
