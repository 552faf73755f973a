// Command mayfly-sidecar runs in front of a build engine and admits the
// clients whose certificates are for this engine.
package main

import (
	"context"
	"os"

	"github.com/mayfly-ca/mayfly/engine-sidecar/internal/cli"
)

func main() {
	os.Exit(cli.Run(context.Background(), os.Args[1:], cli.Stdio{In: os.Stdin, Out: os.Stdout, Err: os.Stderr}))
}
