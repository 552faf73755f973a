package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

type proxyCommand struct {
	tunnelFlags
	Listen  string `help:"Where the tunnel begins: unix:PATH or tcp:127.0.0.1:0. Only loopback. Default: a 0600 socket in a 0700 folder of its own." placeholder:"ADDRESS"`
	Report  string `help:"Write what went through, as JSON, to this file at the end." type:"path" placeholder:"FILE"`
	Wake    bool   `help:"Wake the engine before saying where the tunnel begins."`
	PIDFile string `help:"Write the process id to this file once the tunnel is open." name:"pid-file" type:"path" placeholder:"FILE"`
}

func (proxyCommand) Help() string {
	return `Stays until it is interrupted, or refused for good (exit code 5), and renews its certificate meanwhile. Prints what to put into the environment of the tools:

	mayfly proxy --listen unix:$PWD/engine.sock &
	export BUILDKIT_HOST=unix://$PWD/engine.sock

With --json it prints one line: runner_host, buildkit_host, engine, serial, identity, rule, expires_at.

Only the user who runs it, and root, can use the tunnel.`
}

// opened is the output that says where a tunnel, or a set of files, leads.
type opened struct {
	RunnerHost   string    `json:"runner_host"`
	BuildkitHost string    `json:"buildkit_host"`
	Engine       string    `json:"engine"`
	Serial       string    `json:"serial"`
	Identity     string    `json:"identity"`
	Rule         string    `json:"rule"`
	ExpiresAt    time.Time `json:"expires_at"`
}

func (t *tunnel) opened(runnerHost, buildkitHost string) opened {
	i := t.client.Info()
	return opened{RunnerHost: runnerHost, BuildkitHost: buildkitHost, Engine: t.engine().Name,
		Serial: i.Serial, Identity: i.Identity, Rule: i.Rule, ExpiresAt: i.NotAfter}
}

// report is the record of a tunnel's traffic.
type report struct {
	Engine       string    `json:"engine"`
	Endpoint     string    `json:"endpoint"`
	Serial       string    `json:"serial"` // of the last certificate
	Identity     string    `json:"identity"`
	Rule         string    `json:"rule"`
	Certificates int64     `json:"certificates"` // issued
	Connections  int64     `json:"connections"`
	BytesOut     int64     `json:"bytes_out"` // to the engine
	BytesIn      int64     `json:"bytes_in"`
	WakeMS       int64     `json:"wake_ms"` // the longest dial
	FailedDials  int64     `json:"failed_dials"`
	Cut          int64     `json:"cut"`
	StartedAt    time.Time `json:"started_at"`
	EndedAt      time.Time `json:"ended_at"`
	Reason       string    `json:"reason"` // why it ended
}

func (t *tunnel) report(started, ended time.Time, why error) report {
	i, s, e := t.client.Info(), t.client.Stats(), t.engine()
	r := report{
		Engine: e.Name, Endpoint: e.Endpoint, Serial: i.Serial, Identity: i.Identity, Rule: i.Rule,
		Certificates: 1 + s.Renewals, Connections: s.Connections, BytesOut: s.BytesSent, BytesIn: s.BytesReceived,
		WakeMS: s.Wake.Milliseconds(), FailedDials: s.FailedDials, Cut: s.Cut,
		StartedAt: started.UTC(), EndedAt: ended.UTC(), Reason: "stopped",
	}
	if why != nil {
		r.Reason = escapeText(explain(why).what)
	}
	return r
}

// Run keeps the tunnel open.
func (c *proxyCommand) Run(ctx context.Context, p *program) error {
	ctx, stop := interruptible(ctx)
	defer stop()
	started := p.now()
	t, ln, cleanup, err := p.enter(ctx, c.tunnelFlags, c.Listen)
	if err != nil {
		return err
	}
	end := t.serve(context.WithoutCancel(ctx), ln)
	var why error
	if c.Wake {
		_, why = t.wake(ctx)
	}
	if why == nil {
		why = c.announce(p, t.opened(host(ln), host(ln)))
	}
	if why == nil {
		select {
		case <-ctx.Done():
		case why = <-t.final:
		}
	}
	err = errors.Join(end(), cleanup(), c.finish(t.report(started, p.now(), why)))
	if why != nil {
		return t.explain(why)
	}
	if err != nil {
		return failf(exitFailed, "the tunnel is closed; what it left can be deleted by hand", "%w", err)
	}
	return nil
}

// announce prints the tunnel's address, once the tunnel accepts connections.
func (c *proxyCommand) announce(p *program, o opened) error {
	if c.PIDFile != "" {
		if err := writeWhole(c.PIDFile, fmt.Appendf(nil, "%d\n", os.Getpid())); err != nil {
			return failf(exitFailed, "give --pid-file a path in a folder that can be written", "%w", err)
		}
	}
	if p.JSON {
		p.json(o)
		return nil
	}
	p.printf("export %s=%s\nexport %s=%s\n", daggerVariable, shellQuote(o.RunnerHost), buildkitVariable, shellQuote(o.BuildkitHost))
	return nil
}

func (c *proxyCommand) finish(r report) error {
	var errs []error
	if c.PIDFile != "" {
		errs = append(errs, os.Remove(c.PIDFile))
	}
	if c.Report != "" {
		raw, err := json.Marshal(r)
		if err == nil {
			err = writeWhole(c.Report, append(raw, '\n'))
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// writeWhole replaces a file atomically, with mode 0600.
func writeWhole(path string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".mayfly-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(data)
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// shellQuote quotes s for a POSIX shell. It splits "##[", because no output line
// may contain it (see terminal.go).
func shellQuote(s string) string {
	return "'" + strings.NewReplacer("'", `'\''`, "##[", "#''#[").Replace(s) + "'"
}
