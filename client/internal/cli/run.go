// Package cli is the program mayfly: its commands, their output and their exit
// codes. Run is the whole program except os.Exit.
//
// It is the only package that imports terminal libraries. It contains no protocol:
// package client has the tunnels, client/internal/api the admin API, and
// client/tokensource the tokens.
package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"reflect"
	"strings"
	"syscall"

	"github.com/alecthomas/kong"

	"github.com/mayfly-ca/mayfly/client/command"
)

// globals are the flags of every command.
type globals struct {
	Issuer      string `help:"URL of the mayfly issuer: https, or http on loopback." env:"MAYFLY_ISSUER" placeholder:"URL" group:"global"`
	CAFile      string `help:"PEM file that the issuer's TLS certificate is checked against, in place of the system's roots." name:"ca-file" env:"MAYFLY_CA_FILE" placeholder:"FILE" group:"global"`
	TrustAnchor string `help:"SHA-256 of the root's DER: the only root that an engine may be under." env:"MAYFLY_TRUST_ANCHOR" placeholder:"sha256:HEX" group:"global"`
	Audience    string `help:"Audience of the tokens to ask for. Default: what the issuer says at /v1/info." env:"MAYFLY_AUDIENCE" placeholder:"mayfly:TD" group:"global"`
	TokenSource string `help:"Where ID tokens come from: auto, github, gitlab, fly, file:PATH, env:NAME, or exec:CMD, which runs CMD without a shell." default:"auto" placeholder:"SOURCE" group:"global"`
	JSON        bool   `help:"Print the API's body, one JSON document a line, on stdout." name:"json" group:"global"`
}

// commands is the command line's grammar.
type commands struct {
	globals

	Exec     execCommand     `cmd:"" help:"Run a command with a tunnel to the engine." group:"job"`
	Proxy    proxyCommand    `cmd:"" help:"Open a tunnel to the engine and keep it open." group:"job"`
	Cert     certCommand     `cmd:"" help:"Write a client certificate and its key as files." group:"job"`
	Wake     wakeCommand     `cmd:"" help:"Wake the engine and wait until it admits this job." group:"job"`
	Policy   policyCommands  `cmd:"" help:"Help with the issuer's policy." group:"job"`
	Doctor   doctorCommand   `cmd:"" help:"Check the way to the engine step by step." group:"job"`
	Certs    certsCommands   `cmd:"" help:"List, show and revoke certificates." group:"admin"`
	Sessions sessionsCommand `cmd:"" help:"Show who is connected to the engines." group:"admin"`
	Engines  enginesCommand  `cmd:"" help:"Show the engines and their machines, awake, asleep or silent." group:"admin"`
	Events   eventsCommand   `cmd:"" help:"Show what happened." group:"admin"`
	Blocks   blocksCommands  `cmd:"" help:"Show and end blocks: who is refused new certificates." group:"admin"`
	Login    loginCommand    `cmd:"" help:"Log in as a person." group:"admin"`
	Whoami   whoamiCommand   `cmd:"" help:"Show who is logged in, in which role, and until when." group:"admin"`
	Logout   logoutCommand   `cmd:"" help:"Delete the stored login." group:"admin"`
	Inspect  inspectCommand  `cmd:"" help:"Say in words what is in a certificate, a trust bundle or a CRL." group:"any"`

	command.Common
	Version versionCommand `cmd:"" help:"Print which mayfly this is." group:"about"`
}

const description = `mayfly reaches a remote build engine (Dagger, BuildKit) with a certificate that lives for an hour at most, bought with the job's own ID token, so that no secret is stored on either side.

In a job, this is all there is to do:

	mayfly exec -- dagger call test`

const epilog = `
Environment:
  MAYFLY_ADMIN_TOKEN    An ID token of a people provider, in place of the login.
  NO_COLOR              Set to anything: no colours.
  XDG_CONFIG_HOME       mayfly/login.json below it keeps the login, 0600.
  XDG_RUNTIME_DIR, TMPDIR
                        Where exec and proxy make the folder of their socket.
`

// mayfly describes the program for its help.
var mayfly = command.Program{
	Name: "mayfly", Summary: "reach a remote build engine without a stored secret", Description: description, Epilog: epilog,
	LogFormat: "text", // people read it, in a job's log too
	Groups: []kong.Group{
		{Key: "job", Title: "In a job:"},
		{Key: "admin", Title: "For admins:"},
		{Key: "any", Title: "Anywhere:"},
		{Key: "match", Title: "Which ones:"},
	},
}

// program is one execution of mayfly.
type program struct {
	*terminal
	globals
	asAdmin bool // the command calls the admin API
}

// Run parses args (without the program's name), runs the command and returns the
// exit code.
func Run(ctx context.Context, args []string, s Stdio) int {
	t := newTerminal(s)
	var c commands
	k, err := mayfly.Parse(&c, args, command.Stdio{In: t.in, Out: t.out, Err: t.err})
	if err == nil && k == nil {
		return exitOK
	}
	if err == nil {
		err = refuseEmptyMatch(k)
	}
	if t.log = c.Log; t.log.LogFormat == "" {
		t.log.LogFormat = mayfly.LogFormat
	}
	if err != nil {
		t.fail(usageFailure(err))
		return exitUsage
	}
	p := &program{terminal: t, globals: c.globals}
	k.BindTo(ctx, (*context.Context)(nil))
	return p.end(k.Run(p))
}

// refuseEmptyMatch refuses an empty value for a flag that selects items:
// `--run-id "$RUN"` with RUN unset must not mean every run.
func refuseEmptyMatch(k *kong.Context) error {
	for _, at := range k.Path {
		if f := at.Flag; f != nil && f.Group != nil && f.Group.Key == "match" && f.Target.Kind() == reflect.String && f.Target.IsZero() {
			return fmt.Errorf("--%s is empty; leave it out to match any", f.Name)
		}
	}
	return nil
}

// usageFailure explains a command line that the grammar does not accept.
func usageFailure(err error) *failure {
	f := &failure{code: exitUsage, what: err.Error(), err: err, hints: []string{"`mayfly --help` shows how to call it"}}
	var usage *command.UsageError
	if errors.As(err, &usage) && usage.Hint != "" {
		f.hints = []string{usage.Hint}
	}
	return f
}

// end prints an error and returns its exit code.
func (p *program) end(err error) int {
	p.settle()
	if err == nil {
		return exitOK
	}
	var status commandStatus
	if errors.As(err, &status) {
		return int(status)
	}
	f := explain(err)
	if p.asAdmin {
		f = explainAdmin(err)
	}
	p.fail(p.located(f))
	return f.code
}

// located adds the issuer's URL to a message, because a user may have several issuers.
func (p *program) located(f *failure) *failure {
	if rest, ok := strings.CutPrefix(f.what, "issuer: "); ok {
		f.what = "issuer " + p.Issuer + ": " + rest
	}
	return f
}

// interruptible returns a context that the first SIGINT, SIGTERM or SIGHUP
// cancels, with context.Canceled as its cause. A second signal has its default
// effect and ends the program.
func interruptible(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	stop := func() {
		signal.Stop(signals)
		cancel()
	}
	go func() {
		select {
		case <-signals:
		case <-ctx.Done():
		}
		stop()
	}()
	return ctx, stop
}

// usagef returns a failure for a command line that parses but is wrong.
func usagef(hint, format string, args ...any) error {
	return failf(exitUsage, hint, format, args...)
}

// needIssuer returns an error if there is no issuer. Without --issuer it uses the
// issuer of the last login, with the trust settings of that login.
func (p *program) needIssuer() error {
	if p.Issuer == "" {
		if err := p.recallIssuer(); err != nil {
			return err
		}
	}
	if p.Issuer == "" {
		return usagef("set MAYFLY_ISSUER or --issuer to the issuer's URL, such as https://mayfly.example.com", "no issuer is named")
	}
	return nil
}

// plural returns a count with its noun.
func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	if strings.HasSuffix(noun, "y") {
		return fmt.Sprintf("%d %sies", n, strings.TrimSuffix(noun, "y"))
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
