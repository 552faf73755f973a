// Command mayfly reaches remote build engines with short-lived certificates.
package main

import (
	"context"
	"os"

	"github.com/mayfly-ca/mayfly/client/internal/cli"
)

func main() {
	os.Exit(cli.Run(context.Background(), os.Args[1:], cli.Stdio{In: os.Stdin, Out: os.Stdout, Err: os.Stderr}))
}
