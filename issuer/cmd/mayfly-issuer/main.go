// Command mayfly-issuer is the certificate authority service. It makes a CA, serves
// it, and maintains its keys, store and policy.
package main

import (
	"context"
	"os"

	"github.com/mayfly-ca/mayfly/issuer/internal/cli"
)

func main() { os.Exit(cli.Run(context.Background(), os.Args[1:], cli.OS())) }
