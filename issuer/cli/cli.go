// Package cli is the command line of mayfly-issuer: it makes a CA, serves it,
// checks policies, rotates keys, and looks after the store.
//
// It is for operators on the issuer's own machine; what admins do from afar is
// in the program mayfly. It imports the house package issuer, issuer/policy and
// ca, and prints what a person needs to act: secrets never.
package cli

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/mayfly-ca/mayfly/issuer"
)

// Exit codes of mayfly-issuer.
const (
	exitOK     = 0
	exitFailed = 1
	exitUsage  = 2
	exitDenied = 3 // policy explain: no rule admits the claims
)

// Stdio is what a command reads and writes.
type Stdio struct {
	In       io.Reader
	Out, Err io.Writer
}

// OS is the process's own Stdio.
func OS() Stdio { return Stdio{In: os.Stdin, Out: os.Stdout, Err: os.Stderr} }

// usageError is a mistake on the command line: exit 2.
type usageError struct{ text string }

func (e *usageError) Error() string { return e.text }

func usagef(format string, args ...any) error { return &usageError{fmt.Sprintf(format, args...)} }

// exitError ends the program with a code, saying nothing more.
type exitError struct{ code int }

func (e *exitError) Error() string { return fmt.Sprintf("exit %d", e.code) }

// command is one entry of the command line.
type command struct {
	name    string // "policy check"
	args    string
	summary string
	run     func(context.Context, *invocation) error
}

func commands() []command {
	return []command{
		{"init", "--dir DIR --trust-domain TD --engine-dns NAME... [--issuer-url URL]", "make a CA: root, intermediate, store and a first issuer.yaml", runInit},
		{"serve", "--config issuer.yaml", "serve the API", runServe},
		{"policy check", "FILE", "lint a policy file (0 good, 1 bad)", runPolicyCheck},
		{"policy explain", "FILE --claims FILE|- or --token-file FILE|-", "say which rule matches, or why none does (0 allowed, 3 denied)", runPolicyExplain},
		{"policy test", "FILE", "run the tests that the policy file carries", runPolicyTest},
		{"rotate request", "--config issuer.yaml", "make the next intermediate's key and its request", runRotateRequest},
		{"rotate sign", "--root DIR --root-password-file FILE --request FILE --out DIR", "sign it with the root's key, offline", runRotateSign},
		{"rotate install", "--config issuer.yaml --signed DIR", "put the new intermediate into use", runRotateInstall},
		{"store create", "--config issuer.yaml", "make the store that the config names", runStoreCreate},
		{"revoke", "--config issuer.yaml SERIAL|--all", "revoke on the host, when nobody can log in", runRevoke},
		{"backup", "--config issuer.yaml --out FILE|-", "copy the store while it is in use", runBackup},
		{"restore", "--config issuer.yaml --from FILE, or --in-place", "put a backup back and raise the floor", runRestore},
		{"verify", "--config issuer.yaml", "check every stored certificate and the chain of events", runVerify},
		{"version", "", "print the version", runVersion},
	}
}

// Run runs one command and returns the exit code.
func Run(ctx context.Context, args []string, stdio Stdio) int {
	cmd, rest, err := find(args)
	if err == nil {
		err = cmd.run(ctx, &invocation{command: cmd, args: rest, Stdio: stdio})
	}
	var (
		usage *usageError
		exit  *exitError
	)
	switch {
	case err == nil:
		return exitOK
	case errors.Is(err, flag.ErrHelp):
		printUsage(stdio.Out, cmd)
		return exitOK
	case errors.As(err, &exit):
		return exit.code
	case errors.As(err, &usage):
		fmt.Fprintf(stdio.Err, "mayfly-issuer: %v\n", err)
		printUsage(stdio.Err, cmd)
		return exitUsage
	}
	fmt.Fprintf(stdio.Err, "mayfly-issuer %s: %v\n", cmd.name, err)
	return exitFailed
}

// find picks the command that args begin with, of one word or two.
func find(args []string) (command, []string, error) {
	if len(args) == 0 {
		return command{}, nil, usagef("no command")
	}
	if a := args[0]; a == "help" || a == "--help" || a == "-h" {
		return command{}, nil, flag.ErrHelp
	}
	if args[0] == "--version" {
		args = []string{"version"}
	}
	for _, c := range commands() {
		words := strings.Fields(c.name)
		if len(args) < len(words) || strings.Join(args[:len(words)], " ") != c.name {
			continue
		}
		return c, args[len(words):], nil
	}
	return command{}, nil, usagef("no command %q", strings.Join(args[:min(len(args), 2)], " "))
}

func printUsage(w io.Writer, one command) {
	if one.name != "" {
		fmt.Fprintf(w, "usage: mayfly-issuer %s %s\n  %s\n", one.name, one.args, one.summary)
		return
	}
	fmt.Fprintln(w, "usage: mayfly-issuer COMMAND")
	for _, c := range commands() {
		fmt.Fprintf(w, "  %-16s %s\n", c.name, c.summary)
	}
	fmt.Fprintln(w, "mayfly-issuer COMMAND --help tells a command's flags.")
}

// invocation is one run of a command.
type invocation struct {
	command command
	args    []string
	Stdio
}

// flags makes the command's flag set, silent: Run prints.
func (i *invocation) flags() *flag.FlagSet {
	fs := flag.NewFlagSet(i.command.name, flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	return fs
}

// parse reads flags and positional arguments in any order, wanting between lo
// and hi of the latter.
func (i *invocation) parse(fs *flag.FlagSet, lo, hi int) ([]string, error) {
	var positional []string
	rest := i.args
	for {
		if err := fs.Parse(rest); err != nil {
			if errors.Is(err, flag.ErrHelp) {
				fs.SetOutput(i.Out)
				printUsage(i.Out, i.command)
				fs.PrintDefaults()
				return nil, &exitError{exitOK}
			}
			return nil, usagef("%v", err)
		}
		rest = fs.Args()
		if len(rest) == 0 {
			break
		}
		positional = append(positional, rest[0])
		rest = rest[1:]
	}
	if len(positional) < lo {
		return nil, usagef("too few arguments")
	}
	if len(positional) > hi {
		return nil, usagef("unexpected argument %q", positional[hi])
	}
	return positional, nil
}

// config reads the file that --config names.
func (i *invocation) config(path string) (issuer.Config, error) {
	if path == "" {
		return issuer.Config{}, usagef("--config is missing")
	}
	return issuer.LoadConfig(path)
}

// list is a flag that may be given often, or once with commas.
type list []string

func (l *list) String() string { return strings.Join(*l, ",") }

func (l *list) Set(s string) error {
	for v := range strings.SplitSeq(s, ",") {
		if v = strings.TrimSpace(v); v == "" {
			return errors.New("an empty name")
		}
		*l = append(*l, v)
	}
	return nil
}

func runVersion(_ context.Context, i *invocation) error {
	if _, err := i.parse(i.flags(), 0, 0); err != nil {
		return err
	}
	_, err := fmt.Fprintf(i.Out, "mayfly-issuer %s\n", issuer.Version())
	return err
}
