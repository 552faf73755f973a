package supervise

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
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
	// Env is the engine's own environment: KEY=VALUE, or KEY alone to pass on
	// the sidecar's value, when it has one. PATH and HOME are always passed on.
	// Names that carry the sidecar's or the platform's credentials are refused.
	Env []string
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

// environment is the engine's whole environment: PATH, HOME and what own
// names, looked up in lookup where it gives no value.
func environment(own []string, lookup func(string) (string, bool)) ([]string, error) {
	values := map[string]string{"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root"}
	order := []string{"PATH", "HOME"}
	for _, name := range order {
		if v, ok := lookup(name); ok {
			values[name] = v
		}
	}
	for _, entry := range own {
		name, value, given := strings.Cut(entry, "=")
		if name == "" || strings.ContainsRune(entry, 0) {
			return nil, errors.New("supervise: engine environment: an entry has no name or holds a zero byte")
		}
		if reason := withheld(name); reason != "" {
			return nil, fmt.Errorf("supervise: engine environment: %s is not passed on: %s", name, reason)
		}
		if !given {
			if value, given = lookup(name); !given {
				continue
			}
		}
		if _, ok := values[name]; !ok {
			order = append(order, name)
		}
		values[name] = value
	}
	env := make([]string, len(order))
	for i, name := range order {
		env[i] = name + "=" + values[name]
	}
	return env, nil
}

// withheld gives the reason why a variable never reaches the engine, or "".
func withheld(name string) string {
	upper := strings.ToUpper(name)
	switch {
	case strings.HasPrefix(upper, "MAYFLY_"):
		return "it configures the sidecar"
	case strings.HasPrefix(upper, "ACTIONS_"):
		return "it belongs to a GitHub Actions job"
	case strings.HasPrefix(upper, "FLY_API"), strings.HasPrefix(upper, "FLY_ACCESS"),
		strings.HasPrefix(upper, "FLY_") && strings.Contains(upper, "TOKEN"):
		return "it speaks for the Fly machine"
	case upper == notifyVariable:
		return "the sidecar sets it"
	}
	return ""
}

// notifyVariable names the socket for READY=1 (sd_notify(3)).
const notifyVariable = "NOTIFY_SOCKET"

func (o Options) logger() *slog.Logger {
	if o.Logger == nil {
		return slog.New(slog.DiscardHandler)
	}
	return o.Logger
}

// environ is the engine's environment out of the sidecar's own.
func (o Options) environ() ([]string, error) { return environment(o.Env, os.LookupEnv) }
