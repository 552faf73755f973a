package catest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// ErrNoPostgres means that this machine has no PostgreSQL server. The error says
// what to install.
var ErrNoPostgres = errors.New("PostgreSQL is not installed")

// Postgres is a running PostgreSQL server.
type Postgres struct {
	dir       string
	process   *os.Process
	ended     chan error // closed when the process has ended
	databases atomic.Int64
}

// postgresTimeout bounds every step of starting and stopping.
const postgresTimeout = 60 * time.Second

// StartPostgres starts a PostgreSQL server that ends with the test. It listens on a
// socket in its own folder. It needs initdb and postgres, in PATH or in Debian's
// folder. Without them, the test is skipped, or fails if MAYFLY_TEST_REQUIRE=all.
func StartPostgres(t testing.TB) *Postgres {
	t.Helper()
	s, err := NewPostgres()
	if errors.Is(err, ErrNoPostgres) && os.Getenv("MAYFLY_TEST_REQUIRE") != "all" {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// NewPostgres starts a server with PostgreSQL's default durability. Close ends it.
// If there is no server to start, the error is ErrNoPostgres.
func NewPostgres() (_ *Postgres, err error) {
	bin, err := findPostgres()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "mayfly-pg-")
	if err != nil {
		return nil, err
	}
	s := &Postgres{dir: dir}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	attr := &syscall.SysProcAttr{}
	if err := unprivileged(attr, dir); err != nil {
		return nil, err
	}
	data := filepath.Join(dir, "data")
	initdb := exec.Command(filepath.Join(bin, "initdb"), "-D", data, "-A", "trust", "-U", "postgres", "-E", "UTF8", "--no-locale", "--no-sync", "--no-instructions")
	initdb.SysProcAttr, initdb.Dir = attr, dir
	if out, err := initdb.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("initdb: %w\n%s", err, out)
	}
	endWithParent(attr)
	server := exec.Command(filepath.Join(bin, "postgres"), "-D", data, "-k", dir, "-c", "listen_addresses=", "-c", "max_connections=200", "-c", "autovacuum_naptime=5s")
	server.SysProcAttr, server.Dir = attr, dir
	return s, s.run(server)
}

// run starts server and waits until it accepts connections.
func (s *Postgres) run(server *exec.Cmd) error {
	log, err := server.StderrPipe()
	if err != nil {
		return err
	}
	if err := server.Start(); err != nil {
		return err
	}
	s.process, s.ended = server.Process, make(chan error, 1)
	ready := make(chan bool, 1)
	go func() {
		var said strings.Builder
		lines := bufio.NewScanner(log)
		for lines.Scan() {
			if strings.Contains(lines.Text(), "ready to accept connections") {
				ready <- true
				break
			}
			said.WriteString(lines.Text() + "\n")
		}
		_, drained := io.Copy(io.Discard, log)
		if err := errors.Join(server.Wait(), drained); err != nil {
			s.ended <- fmt.Errorf("postgres: %w\n%s", err, said.String())
		}
		close(s.ended)
	}()
	select {
	case <-ready:
		return nil
	case err := <-s.ended:
		return err
	case <-time.After(postgresTimeout):
		return errors.New("postgres does not start")
	}
}

// PID returns the id of the server's first process, the parent of all others.
func (s *Postgres) PID() int { return s.process.Pid }

// Close stops the server at once, cuts its connections and removes its files.
func (s *Postgres) Close() error {
	var stop error
	if s.process != nil {
		_ = s.process.Signal(syscall.SIGINT)
		select {
		case <-s.ended:
		case <-time.After(postgresTimeout):
			stop = errors.Join(errors.New("postgres does not stop"), s.process.Kill())
			<-s.ended
		}
	}
	return errors.Join(stop, os.RemoveAll(s.dir))
}

// Database makes an empty database and returns its URL.
func (s *Postgres) Database(t testing.TB) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), postgresTimeout)
	defer cancel()
	url, err := s.NewDatabase(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return url
}

// NewDatabase makes an empty database and returns its URL.
func (s *Postgres) NewDatabase(ctx context.Context) (string, error) {
	c, err := pgx.Connect(ctx, s.url("postgres"))
	if err != nil {
		return "", err
	}
	name := fmt.Sprintf("t%d", s.databases.Add(1))
	_, err = c.Exec(ctx, "CREATE DATABASE "+name)
	return s.url(name), errors.Join(err, c.Close(ctx))
}

func (s *Postgres) url(database string) string {
	return (&url.URL{Scheme: "postgres", Path: "/" + database, RawQuery: url.Values{"host": {s.dir}, "user": {"postgres"}}.Encode()}).String()
}

// findPostgres returns the folder of initdb and postgres. If there are several, it
// returns the newest.
func findPostgres() (string, error) {
	if initdb, err := exec.LookPath("initdb"); err == nil {
		if initdb, err = filepath.EvalSymlinks(initdb); err == nil {
			if _, err := os.Stat(filepath.Join(filepath.Dir(initdb), "postgres")); err == nil {
				return filepath.Dir(initdb), nil
			}
		}
	}
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	if err != nil || len(found) == 0 {
		return "", fmt.Errorf("%w: no initdb in PATH or /usr/lib/postgresql: install postgresql", ErrNoPostgres)
	}
	version := func(path string) int {
		n, _ := strconv.Atoi(strings.Split(path, "/")[4]) // 0 if not a number
		return n
	}
	return filepath.Dir(slices.MaxFunc(found, func(a, b string) int { return version(a) - version(b) })), nil
}

// unprivileged sets a user other than root in attr and as owner of dir. PostgreSQL
// refuses to run as root.
func unprivileged(attr *syscall.SysProcAttr, dir string) error {
	if os.Geteuid() != 0 {
		return nil
	}
	u, err := user.Lookup("postgres")
	if err != nil {
		if u, err = user.Lookup("nobody"); err != nil {
			return fmt.Errorf("no user postgres or nobody to run PostgreSQL as: %w", err)
		}
	}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return err
	}
	gid, err := strconv.ParseUint(u.Gid, 10, 32)
	if err != nil {
		return err
	}
	attr.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	return os.Chown(dir, int(uid), int(gid))
}
