package supervise

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"strings"
	"time"
)

// FlyDir is the folder of the machine's API socket on Fly. It is always hidden
// from an isolated engine.
const FlyDir = "/.fly"

// DefaultCutAfter is how long Stop waits between the signal and Cut.
const DefaultCutAfter = 3 * time.Second

// Options describe the engine to run. Args and Socket are required.
type Options struct {
	// Args is the engine's command line. Args[0] is looked up in the engine's
	// PATH.
	Args []string
	// Env adds to the variables that Rules pass on from the sidecar. An entry
	// is NAME=VALUE, NAME for the sidecar's value, if any, or PREFIX* for all
	// sidecar variables that begin with PREFIX. CheckEnvironment validates the
	// entries.
	Env []string
	// Withhold lists further sidecar variables that never reach the engine.
	Withhold []string
	// Socket is the absolute path of the unix socket that the engine will
	// listen on.
	Socket string
	// Probe defines when the engine is ready. The zero value is ProbeAnswer.
	Probe Probe
	// Isolate runs the engine in its own namespaces, which needs root. Only an
	// option that begins with unsafe_ may set it to false.
	Isolate bool
	// Hide lists further absolute paths to hide from an isolated engine, in
	// addition to FlyDir. For a file that may be replaced, name its folder: a
	// replacement of the file is not hidden. A path that does not exist is
	// skipped.
	Hide []string
	// Stdout and Stderr receive the engine's output. Nil discards it.
	Stdout, Stderr io.Writer
	// Cut ends the connections to the engine. Stop calls it once, CutAfter
	// after the signal (zero: DefaultCutAfter), if the engine still runs.
	// Otherwise Dagger and its clients would wait for each other. Nil is
	// allowed.
	Cut      func()
	CutAfter time.Duration
	// Logger logs the start, the stop and the end. Nil discards.
	Logger *slog.Logger
}

// IsolationError reports that the engine could not be isolated.
type IsolationError struct {
	Op  string
	Err error
}

// Error implements error.
func (e *IsolationError) Error() string {
	return fmt.Sprintf("isolate engine: %s: %v (isolation needs root with CAP_SYS_ADMIN)", e.Op, e.Err)
}

// Unwrap returns the cause.
func (e *IsolationError) Unwrap() error { return e.Err }

// ExitError reports that the engine ended while it was needed. Code is its
// exit code, 128 + signal when a signal ended it.
type ExitError struct{ Code int }

// Error implements error.
func (e *ExitError) Error() string { return fmt.Sprintf("engine ended with exit code %d", e.Code) }

// ErrKilled is returned by Stop when its context ended first and the engine
// was killed. A killed Dagger engine loses its cache.
var ErrKilled = errors.New("engine killed: it did not stop in time")

// spec is the sidecar's instruction to the child, as one line of JSON.
type spec struct {
	Args    []string `json:"args"`
	Isolate bool     `json:"isolate"`
	Hide    []string `json:"hide"`
	Cgroup  bool     `json:"cgroup"` // the child is in its own cgroup
}

// reply is the child's answer, one line of JSON: the engine runs, or the
// error.
type reply struct {
	Op    string `json:"op,omitempty"`
	Error string `json:"error,omitempty"`
}

// maxLine bounds a line between sidecar and child. The kernel also bounds
// argv, to 2 MiB.
const maxLine = 4 << 20

func (o Options) validate() error {
	if len(o.Args) == 0 || o.Args[0] == "" {
		return errors.New("supervise: no engine command")
	}
	if !filepath.IsAbs(o.Socket) {
		return fmt.Errorf("supervise: engine socket %q is not an absolute path", o.Socket)
	}
	for _, p := range o.Hide {
		if !filepath.IsAbs(p) || filepath.Clean(p) == "/" {
			return fmt.Errorf("supervise: cannot hide %q: not an absolute path below /", p)
		}
	}
	return nil
}

func (o Options) spec() spec {
	s := spec{Args: o.Args, Isolate: o.Isolate, Hide: []string{FlyDir}}
	for _, p := range o.Hide {
		if p = filepath.Clean(p); p != FlyDir && !strings.HasPrefix(p, FlyDir+"/") {
			s.Hide = append(s.Hide, p)
		}
	}
	return s
}

func (o Options) logger() *slog.Logger {
	if o.Logger == nil {
		return slog.New(slog.DiscardHandler)
	}
	return o.Logger
}
