package main

import (
	"context"
	"fmt"
	"io"
	"path/filepath"
	"regexp"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/mayfly-ca/mayfly/client/wire"
)

// boot starts sidecars, one after the other, and splits the time from each
// start until it listens.
func boot(ctx context.Context, o options, out io.Writer) error {
	s, err := newStand(ctx, o, 24*time.Hour)
	if err != nil {
		return err
	}
	defer s.close()
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "%d starts\t\tp50\tmax\tbound\n", o.count)
	engines := []engine{{"stand-in engine", standIn, "engine listens"}}
	if o.engine != "" {
		engines = append(engines, engine{"BuildKit", s.buildkit, "running server on"})
	}
	for _, e := range engines {
		var all []start
		for range o.count {
			one, err := s.measureStart(ctx, e)
			if err != nil {
				return err
			}
			all = append(all, one)
		}
		row := func(name string, f func(start) time.Duration, bound string) {
			var took []time.Duration
			for _, one := range all {
				took = append(took, f(one))
			}
			slices.Sort(took)
			fmt.Fprintf(w, "%s\t%s\t%v\t%v\t%s\n", e.name, name, micro(took[len(took)/2]), micro(took[len(took)-1]), bound)
		}
		row("exec -> listening", func(s start) time.Duration { return s.total }, "")
		row("  the issuer's answers", func(s start) time.Duration { return s.issuer }, "")
		row("  exec -> certificate", func(s start) time.Duration { return s.certificate }, "")
		row("  the engine's own start", func(s start) time.Duration { return s.engine }, "")
		row("  the sidecar's own part", func(s start) time.Duration { return s.total - max(s.issuer, s.engine) }, "50ms")
	}
	return w.Flush()
}

// engine is an engine that a sidecar starts.
type engine struct {
	name    string
	command func(socket string) []string
	answers string // log text when it serves
}

// start holds the times of one start. The issuer answers while the engine
// starts, so only the longer of the two counts.
type start struct {
	total       time.Duration // execution to listening
	certificate time.Duration // execution to a certificate
	issuer      time.Duration // the issuer's time for its answers, from its own log
	engine      time.Duration // from the engine's execution until it serves, from its own log
}

// measureStart starts and stops one sidecar.
func (s *stand) measureStart(ctx context.Context, e engine) (start, error) {
	// The lines after these belong to this start.
	asked := len(s.issuer.lines("msg=request"))
	began := time.Now()
	sc, err := s.startSidecar(ctx, e.command)
	if err != nil {
		return start{}, err
	}
	defer sc.stop()
	for _, part := range []string{`"listening"`, `"certificate received"`, e.answers} {
		if _, err := sc.await(ctx, part); err != nil {
			return start{}, err
		}
	}
	m := start{
		total:       sc.when(`"listening"`).Sub(began),
		certificate: sc.when(`"certificate received"`).Sub(began),
		engine:      sc.when(e.answers).Sub(sc.when(`"engine started"`)),
	}
	for _, line := range s.issuer.lines("msg=request")[asked:] {
		m.issuer += answered(line)
	}
	return m, nil
}

// request matches a line of the issuer's log.
var request = regexp.MustCompile(`route=(\S+) .*took=(\S+)`)

// answered returns the issuer's time for a call that the sidecar needs for a
// certificate, or 0 for other calls.
func answered(line string) time.Duration {
	m := request.FindStringSubmatch(line)
	if m == nil || m[1] != wire.PathCertificates && m[1] != wire.PathInfo {
		return 0
	}
	took, _ := time.ParseDuration(m[2])
	return took
}

// buildkit returns the command of a real engine.
func (s *stand) buildkit(socket string) []string {
	return []string{s.o.engine, "--addr", "unix://" + socket, "--root", filepath.Join(s.dir, "buildkit"),
		"--oci-worker=true", "--oci-worker-snapshotter", "overlayfs", "--containerd-worker=false", "--otel-socket-path", filepath.Join(s.dir, "otel.sock")}
}
