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

// FlyDir holds the machine's API socket on Fly, and is always hidden from an
// isolated engine.
const FlyDir = "/.fly"

// DefaultCutAfter is how long Stop waits between the signal and Cut.
const DefaultCutAfter = 3 * time.Second

// Options say what to run. Args and Socket are required.
type Options struct {
	// Args is the engine's command line; Args[0] is looked up in its PATH.
	Args []string
	// Env adds to what Rules pass on of the sidecar's environment: NAME=VALUE, NAME
	// for the sidecar's value, when it has one, or PREFIX* for all its variables
	// that begin with PREFIX. CheckEnvironment says what is wrong with an entry.
	Env []string
	// Withhold names further variables of the sidecar that never reach the engine.
	Withhold []string
	// Socket is the absolute path of the unix socket that the engine will
	// listen on.
	Socket string
	// Probe says what an answer on Socket is. Zero is ProbeAnswer.
	Probe Probe
	// Isolate runs the engine in namespaces of its own, which needs root. Only
	// an option that begins with unsafe_ may set it to false.
	Isolate bool
	// Hide names further absolute paths that an isolated engine must not
	// reach, beside FlyDir. Name the folder of a file that is replaced, not the
	// file: replacing uncovers it. A path that does not exist is skipped.
	Hide []string
	// Stdout and Stderr get the engine's output. Nil discards it.
	Stdout, Stderr io.Writer
	// Cut ends what still hangs on the engine; Stop calls it once, CutAfter
	// after the signal (zero: DefaultCutAfter), if the engine still runs then:
	// Dagger and its clients wait on each other otherwise. Nil is allowed.
	Cut      func()
	CutAfter time.Duration
	// Logger is told of the start, the stop and the end. Nil discards.
	Logger *slog.Logger
}

// IsolationError says why the engine could not be set apart.
type IsolationError struct {
	Op  string
	Err error
}

// Error implements error.
func (e *IsolationError) Error() string {
	return fmt.Sprintf("isolate engine: %s: %v (isolation needs root with CAP_SYS_ADMIN)", e.Op, e.Err)
}

// Unwrap gives the cause.
func (e *IsolationError) Unwrap() error { return e.Err }

// ExitError says that the engine ended while it was needed. Code is its exit
// code, 128 + signal when a signal ended it.
type ExitError struct{ Code int }

// Error implements error.
func (e *ExitError) Error() string { return fmt.Sprintf("engine ended with exit code %d", e.Code) }

// ErrKilled is returned by Stop when the engine had to be killed: its context
// ended first. A killed Dagger engine loses its cache.
var ErrKilled = errors.New("engine killed: it did not stop in time")

// spec is what the sidecar tells the child, as one line of JSON.
type spec struct {
	Args    []string `json:"args"`
	Isolate bool     `json:"isolate"`
	Hide    []string `json:"hide"`
	Cgroup  bool     `json:"cgroup"` // the child is in a cgroup of its own
}

// reply is the child's one line of JSON: the engine runs, or why not.
type reply struct {
	Op    string `json:"op,omitempty"`
	Error string `json:"error,omitempty"`
}

// maxLine bounds a line between sidecar and child; the kernel bounds argv to
// 2 MiB on its own.
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
