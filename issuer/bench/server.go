package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

// kinds are the servers that can be measured, in the order of the table.
var kinds = []struct {
	name  string
	make  func(context.Context, *site, *server) error
	store string // where it stores data, for the reader
}{
	{"mayfly-sqlite", makeMayfly(false), "SQLite, FULL fsync before the signature"},
	{"mayfly-postgres", makeMayfly(true), "PostgreSQL, synchronous commit before the signature"},
	{"step-ca-badger", makeStep("badgerv2"), "badger v2"},
	{"step-ca-bbolt", makeStep("bbolt"), "bbolt"},
	{"step-ca-postgres", makeStep("postgresql"), "PostgreSQL"},
	{"fulcio", makeFulcio, "nothing"},
}

func names() []string {
	var out []string
	for _, k := range kinds {
		out = append(out, k.name)
	}
	return out
}

// server is one program under load.
type server struct {
	name, store string
	dir         string // the server's own folder
	argv        []string
	addr        string      // of the API
	tls         *tls.Config // nil for plain HTTP
	request     request
	// size returns how many bytes are stored; nil for a server that stores nothing. It
	// is called while the server does not run.
	size func(context.Context) (int64, error)
	// database is the first process of the database server that does the server's
	// work; 0 for none.
	database int
	// litter is a file that the program leaves behind and cannot start with.
	litter string

	process *os.Process
	ended   chan error // closed when the process has ended
	issued  int64      // successful responses
}

// newServer prepares the server and what it needs, and does not start it.
func (s *site) newServer(ctx context.Context, name string) (*server, error) {
	for _, k := range kinds {
		if k.name != name {
			continue
		}
		dir, err := s.folder(name)
		if err != nil {
			return nil, err
		}
		v := &server{name: name, store: k.store, dir: dir}
		if v.addr, err = freeAddress(); err != nil {
			return nil, err
		}
		if err := k.make(ctx, s, v); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		return v, nil
	}
	return nil, fmt.Errorf("no server %q", name)
}

// freeAddress returns a loopback address whose port was just free.
func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}

const (
	startTimeout = 30 * time.Second
	stopTimeout  = 30 * time.Second
)

// start runs the program. Its log goes to a file, in the default form.
func (v *server) start() error {
	if v.litter != "" {
		if err := os.Remove(v.litter); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	log, err := os.OpenFile(filepath.Join(v.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	cmd := exec.Command(v.argv[0], v.argv[1:]...)
	cmd.Stdout, cmd.Stderr, cmd.Dir = log, log, v.dir
	// HOME hides a step-ca configuration of the user.
	cmd.Env = append(os.Environ(), "HOME="+v.dir, "STEPPATH="+v.dir)
	cmd.SysProcAttr = endWithParent()
	err = cmd.Start()
	err = errors.Join(err, log.Close())
	if err != nil {
		return err
	}
	v.process, v.ended = cmd.Process, make(chan error, 1)
	go func(ended chan error) {
		if err := cmd.Wait(); err != nil {
			ended <- err
		}
		close(ended)
	}(v.ended)
	return nil
}

// ready requests certificates until the server issues one, and returns the response.
func (v *server) ready(ctx context.Context, c *client, token string) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	var last error
	for {
		if last = c.dial(ctx, v); last == nil {
			if last = c.issue(v, token); last == nil {
				return nil
			}
		}
		select {
		case err := <-v.ended:
			return v.failed("has ended", errors.Join(err, last))
		case <-ctx.Done():
			return v.failed("does not issue", last)
		case <-time.After(200 * time.Microsecond):
		}
	}
}

// failed returns an error with the end of the server's log.
func (v *server) failed(what string, err error) error {
	const tail = 2000
	log, rerr := os.ReadFile(filepath.Join(v.dir, "log"))
	return fmt.Errorf("%s %s: %w\n%s", v.name, what, errors.Join(err, rerr), log[max(0, len(log)-tail):])
}

// stop ends the process with a signal, and kills it after stopTimeout.
func (v *server) stop() error {
	if v.process == nil {
		return nil
	}
	defer func() { v.process = nil }()
	if err := v.process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-v.ended: // some exit with 1 after the signal
		return nil
	case <-time.After(stopTimeout):
		err := v.process.Kill()
		<-v.ended
		return v.failed("does not stop", err)
	}
}

// request is the form of a server's request for a certificate.
type request struct {
	path   string
	bearer bool // the token is in the Authorization header, else in the body
	// body appends the body for a client's certificate request.
	body func(b []byte, c *client, token string) []byte
}

// append appends the HTTP request to b. The body is built in scratch.
func (r *request) append(b, scratch []byte, c *client, host, token string) (out, body []byte) {
	body = r.body(scratch[:0], c, token)
	b = append(b, "POST "+r.path+" HTTP/1.1\r\nHost: "+host+"\r\nContent-Type: application/json\r\nContent-Length: "...)
	b = strconv.AppendInt(b, int64(len(body)), 10)
	if r.bearer {
		b = append(b, "\r\nAuthorization: Bearer "...)
		b = append(b, token...)
	}
	b = append(b, "\r\n\r\n"...)
	return append(b, body...), body
}
