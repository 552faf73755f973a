package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/mayfly-ca/mayfly/issuer/idtokentest"
)

// cutWithin is how long the demonstration waits for a revoked build to end before
// it reports a failure.
const cutWithin = 10 * time.Second

// demonstrate runs the steps in order. It returns the exit code of the user's
// command, if there is one.
func demonstrate(ctx context.Context, o options, r *report, stdout io.Writer) (code int, err error) {
	s, err := newStack(o, r)
	if err != nil {
		return 1, err
	}
	defer func() {
		if closeErr := s.close(); closeErr != nil {
			err = errors.Join(err, fmt.Errorf("clean up: %w", closeErr))
		}
	}()
	for _, step := range []struct {
		name string
		do   func(context.Context) (string, error)
	}{{"tools", s.buildTools}, {"oidc", s.startProviders}, {"issuer", s.startIssuer}, {"machine", s.startMachine}} {
		if err := r.run(step.name, func() (string, error) { return step.do(ctx) }); err != nil {
			return 1, s.withLogs(err)
		}
	}
	if o.keep {
		if err := s.writeEnv(); err != nil {
			return 1, err
		}
	}
	j := newJob(s)
	switch {
	case len(o.command) > 0:
		code, err = j.command(ctx, o.command, stdout)
	case !o.keep:
		err = j.builds(ctx)
	}
	if err != nil {
		return max(code, 1), s.withLogs(err)
	}
	if o.keep {
		r.say("all of it is up; %s tells how to reach it; interrupt to end", filepath.Join(o.dir, "env"))
		return code, s.stay(ctx)
	}
	return code, nil
}

// job is a CI job. Each has its own run, since a revoked run stays refused.
type job struct {
	stack  *stack
	runID  string
	runner *idtokentest.Job
}

// newJob returns a job as GitHub has started it.
func newJob(s *stack) *job {
	runID := strconv.FormatInt(time.Now().UnixMicro(), 10)
	return &job{stack: s, runID: runID, runner: s.providers.github.NewJob(map[string]any{"run_id": runID})}
}

// env returns the variables of the job's steps: the issuer and the runner's token
// endpoint.
func (j *job) env() []string {
	return append(j.stack.commandEnv(),
		"MAYFLY_ISSUER="+j.stack.issuerURL,
		"MAYFLY_CA_FILE="+j.stack.caFile,
		"ACTIONS_ID_TOKEN_REQUEST_URL="+j.runner.RequestURL,
		"ACTIONS_ID_TOKEN_REQUEST_TOKEN="+j.runner.RequestToken)
}

// command runs -- CMD: the user's own program in the tunnel.
func (j *job) command(ctx context.Context, argv []string, stdout io.Writer) (int, error) {
	r := j.stack.report
	if err := r.run("token", func() (string, error) { return j.token(ctx) }); err != nil {
		return 1, err
	}
	code := 0
	err := r.run("build", func() (string, error) {
		cmd := j.exec(ctx, argv...)
		cmd.Stdin = os.Stdin
		cmd.Stdout, cmd.Stderr = stdout, r.progress
		if j.stack.options.json {
			cmd.Stdout = r.progress // standard output is only for the report
		}
		err := cmd.Run()
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			code = exitCode(exit)
			return "", fmt.Errorf("%s ended with exit code %d", argv[0], code)
		}
		return strings.Join(argv, " "), err
	})
	if err != nil {
		return max(code, 1), nil
	}
	return 0, r.run("list", func() (string, error) { return j.list(ctx) })
}

// exitCode returns the command's own code, or 128 + signal as shells do.
func exitCode(exit *exec.ExitError) int {
	if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return 128 + int(status.Signal())
	}
	return exit.ExitCode()
}

// builds runs the demonstration itself.
func (j *job) builds(ctx context.Context) error {
	for _, step := range []struct {
		name string
		do   func(context.Context) (string, error)
	}{{"token", j.token}, {"build", j.build}, {"list", j.list}, {"revoke", j.revoke}} {
		if err := j.stack.report.run(step.name, func() (string, error) { return step.do(ctx) }); err != nil {
			return err
		}
	}
	return nil
}

// token fetches an ID token as the runner's steps do, and describes its claims.
func (j *job) token(ctx context.Context) (string, error) {
	raw, err := j.fetchToken(ctx)
	if err != nil {
		return "", err
	}
	parts := strings.Split(raw, ".")
	if len(parts) != 3 {
		return "", errors.New("the token endpoint gave no compact JWS")
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return "", err
	}
	var claims struct {
		Repository   string `json:"repository"`
		RepositoryID string `json:"repository_id"`
		Ref          string `json:"ref"`
		Event        string `json:"event_name"`
		RunID        string `json:"run_id"`
		IAT          int64  `json:"iat"`
		EXP          int64  `json:"exp"`
	}
	if err := json.Unmarshal(payload, &claims); err != nil {
		return "", err
	}
	return fmt.Sprintf("%s (id %s) at %s by %s, run %s, good for %ds", claims.Repository, claims.RepositoryID,
		claims.Ref, claims.Event, claims.RunID, claims.EXP-claims.IAT), nil
}

// fetchToken sends a request to the runner's token endpoint, whose URL has a query
// already.
func (j *job) fetchToken(ctx context.Context) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet,
		j.runner.RequestURL+"&audience="+url.QueryEscape("mayfly:"+j.stack.settings.trustDomain()), nil)
	if err != nil {
		return "", err
	}
	req.Header.Set("Authorization", "bearer "+j.runner.RequestToken)
	req.Header.Set("Accept", "application/json")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return "", fmt.Errorf("the token endpoint answered %s", res.Status)
	}
	var answer struct {
		Value string `json:"value"`
	}
	if err := json.NewDecoder(res.Body).Decode(&answer); err != nil {
		return "", fmt.Errorf("the token endpoint's answer: %w", err)
	}
	return answer.Value, nil
}

// exec returns `mayfly exec -- ARGV` with the variables of a job on GitHub.
func (j *job) exec(ctx context.Context, argv ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, j.stack.program("mayfly"), append([]string{"exec", "--"}, argv...)...)
	cmd.Env = j.env()
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 15 * time.Second
	return cmd
}

// buildctl returns the command line of one build of the demonstration.
func (j *job) buildctl(dockerfile string, more ...string) []string {
	context := j.stack.path("context")
	return append([]string{j.stack.tools.buildctl, "build", "--progress", "plain", "--frontend", "dockerfile.v0",
		"--local", "context=" + context, "--local", "dockerfile=" + context, "--opt", "filename=" + dockerfile, "--no-cache"}, more...)
}

// build runs a real build through the tunnel. The connection starts the machine,
// and the product of the RUN step runs here.
func (j *job) build(ctx context.Context) (string, error) {
	out := j.stack.path("out")
	shown := &indent{w: j.stack.report.progress, prefix: "    | "}
	cmd := j.exec(ctx, j.buildctl("Dockerfile", "--output", "type=local,dest="+out)...)
	cmd.Stdout, cmd.Stderr = shown, shown
	err := cmd.Run()
	shown.flush()
	if err != nil {
		return "", remedy(fmt.Errorf("mayfly exec -- buildctl build: %w", err), "the build's own output is above")
	}
	said, err := exec.CommandContext(ctx, filepath.Join(out, "artifact")).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("run the built artifact: %w: %s", err, said)
	}
	return strings.TrimSpace(string(said)), nil
}

// certificate holds the fields of the API's list that list and revoke use.
type certificate struct {
	Serial     string `json:"serial"`
	Rule       string `json:"rule"`
	Status     string `json:"status"`
	Repository string `json:"repository"`
	Identity   string `json:"identity"`
}

// newest returns this run's newest certificate, as an admin would find it.
func (j *job) newest(ctx context.Context) (certificate, error) {
	out, err := j.stack.admin(ctx, "certs", "list", "--json", "--profile", "client", "--run-id", j.runID, "--limit", "1")
	if err != nil {
		return certificate{}, err
	}
	var list struct {
		Items []certificate `json:"items"`
	}
	if err := json.Unmarshal(out, &list); err != nil {
		return certificate{}, fmt.Errorf("mayfly certs list --json: %w", err)
	}
	if len(list.Items) == 0 {
		return certificate{}, fmt.Errorf("no certificate of run %s is listed", j.runID)
	}
	return list.Items[0], nil
}

func (j *job) list(ctx context.Context) (string, error) {
	c, err := j.newest(ctx)
	if err != nil {
		return "", err
	}
	j.stack.report.Serial, j.stack.report.Rule = c.Serial, c.Rule
	return fmt.Sprintf("%s %s, rule %s, %s", c.Serial, c.Status, c.Rule, c.Identity), nil
}

// revoke starts a long build and revokes its certificate during the build. It
// measures from the end of the revoke call to the end of the build's tunnel.
func (j *job) revoke(ctx context.Context) (string, error) {
	j = newJob(j.stack)
	build := &longBuild{shown: &indent{w: j.stack.report.progress, prefix: "    | "}, ticking: make(chan struct{})}
	if err := build.start(j.exec(ctx, j.buildctl("Dockerfile.long")...)); err != nil {
		return "", err
	}
	defer build.stop()
	select {
	case <-build.ticking:
	case <-build.done:
		return "", fmt.Errorf("the long build ended before it was revoked: %v", build.err)
	case <-ctx.Done():
		return "", ctx.Err()
	}
	c, err := j.newest(ctx)
	if err != nil {
		return "", err
	}
	if _, err := j.stack.admin(ctx, "certs", "revoke", c.Serial, "--yes", "--reason", "the demonstration"); err != nil {
		return "", err
	}
	revoked := time.Now()
	select {
	case <-build.done:
		cut := build.ended.Sub(revoked)
		build.shown.flush()
		if build.err == nil {
			return "", errors.New("the revoked build succeeded")
		}
		j.stack.report.RevokeCutMS = max(cut.Milliseconds(), 1)
		return fmt.Sprintf("build dead %s after the revocation returned: mayfly exec: %v", roundTime(max(cut, 0)), build.err), nil
	case <-time.After(cutWithin):
		return "", fmt.Errorf("the build still runs %s after its certificate was revoked", cutWithin)
	case <-ctx.Done():
		return "", ctx.Err()
	}
}

// longBuild is a build that runs until something ends it.
type longBuild struct {
	shown   *indent
	ticking chan struct{} // closed when the output of the RUN step appears
	done    chan struct{}
	err     error     // how the command ended; valid after done, as is ended
	ended   time.Time // end time

	cmd  *exec.Cmd
	once sync.Once
	seen bytes.Buffer
}

func (b *longBuild) start(cmd *exec.Cmd) error {
	b.cmd, b.done = cmd, make(chan struct{})
	cmd.Stdout, cmd.Stderr = b, b // one writer, so the command does not write concurrently
	if err := cmd.Start(); err != nil {
		return err
	}
	go func() {
		b.err, b.ended = cmd.Wait(), time.Now()
		close(b.done)
	}()
	return nil
}

// Write shows the build's output and watches for its second tick.
func (b *longBuild) Write(p []byte) (int, error) {
	if b.seen.Len() < 1<<20 {
		b.seen.Write(p)
	}
	if bytes.Contains(b.seen.Bytes(), []byte("tick 2\n")) {
		b.once.Do(func() { close(b.ticking) })
	}
	return b.shown.Write(p)
}

// stop ends a build that has not ended yet.
func (b *longBuild) stop() {
	_ = b.cmd.Process.Signal(syscall.SIGTERM) // it still runs only after a failure
	<-b.done
}
