package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/mayfly-ca/mayfly/ca/catest"
	"github.com/mayfly-ca/mayfly/issuer/idtokentest"
	"github.com/mayfly-ca/mayfly/issuer/internal/idtoken"
)

const (
	modulePath  = "github.com/mayfly-ca/mayfly"
	trustDomain = "ci.example.com"
	// audience is the same for all servers: step-ca accepts a token by its audience.
	audience = idtoken.AudiencePrefix + trustDomain
	// releaseTags are the build tags of mayfly's releases.
	releaseTags = "nobadger,nomysql,nopgx,nobbolt"
)

// site holds what all servers of a run share. Close ends and removes all of it.
type site struct {
	dir      string // holds all files that are written
	module   string // the checkout
	tokens   *idtokentest.Provider
	postgres *catest.Postgres  // nil until the first call of database
	built    map[string]string // programs by name
	progress io.Writer
}

func newSite(ctx context.Context, progress io.Writer) (_ *site, err error) {
	s := &site{built: make(map[string]string), progress: progress}
	if s.module, err = goCommand(ctx, "", "list", "-m", "-f", "{{.Dir}}", modulePath); err != nil {
		return nil, fmt.Errorf("%w\nrun it inside of a clone: go run ./issuer/bench", err)
	}
	if s.dir, err = os.MkdirTemp("", "mayfly-bench-"); err != nil {
		return nil, err
	}
	s.tokens, err = idtokentest.New(idtokentest.Options{Type: idtoken.GitHub, Defaults: map[string]any{"aud": audience}})
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// Close must be called after every server has ended.
func (s *site) Close() error {
	var stopped error
	if s.tokens != nil {
		s.tokens.Close()
	}
	if s.postgres != nil {
		stopped = s.postgres.Close()
	}
	return errors.Join(stopped, os.RemoveAll(s.dir))
}

// folder makes a folder for one server.
func (s *site) folder(name string) (string, error) {
	dir := filepath.Join(s.dir, name)
	return dir, os.Mkdir(dir, 0o700)
}

// database makes an empty database. The first call starts the PostgreSQL server.
func (s *site) database(ctx context.Context) (string, error) {
	if s.postgres == nil {
		var err error
		if s.postgres, err = catest.NewPostgres(); err != nil {
			return "", err
		}
	}
	return s.postgres.NewDatabase(ctx)
}

// issuer builds mayfly-issuer as releases are built.
func (s *site) issuer(ctx context.Context) (string, error) {
	return s.build("mayfly-issuer", func() (string, error) {
		path := filepath.Join(s.dir, "mayfly-issuer")
		_, err := goCommand(ctx, s.module, "build", "-trimpath", "-tags", releaseTags, "-ldflags", "-s -w", "-o", path, "./issuer/cmd/mayfly-issuer")
		return path, err
	})
}

// peer builds a program of the nested module, or finds it in the build cache.
func (s *site) peer(ctx context.Context, name string) (string, error) {
	return s.build(name, func() (string, error) {
		return goCommand(ctx, filepath.Join(s.module, "issuer", "bench", "peers"), "tool", "-n", name)
	})
}

func (s *site) build(name string, f func() (string, error)) (string, error) {
	if path, ok := s.built[name]; ok {
		return path, nil
	}
	fmt.Fprintf(s.progress, "%s: from the build cache, or built now (minutes the first time)\n", name)
	path, err := f()
	if err != nil {
		return "", fmt.Errorf("build %s: %w", name, err)
	}
	s.built[name] = path
	return path, nil
}

// goCommand runs go in a folder, with only the module there, and returns its output.
func goCommand(ctx context.Context, dir string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOWORK=off", "GOFLAGS=", "CGO_ENABLED=0")
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("go %s: %w\n%s", args[0], err, stderr.String())
	}
	return strings.TrimSpace(string(out)), nil
}
