package cli

import (
	"bytes"
	"context"
	"encoding/base64"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/mayfly-ca/mayfly/client/command"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"mayfly-issuer": func() { os.Exit(Run(context.Background(), os.Args[1:], OS())) },
	})
}

// TestScripts runs whole commands, as an operator types them.
func TestScripts(t *testing.T) {
	t.Parallel()
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Condition: func(cond string) (bool, error) {
			return cond == "root" && os.Geteuid() == 0, nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"waitfor": waitFor, "signal": signalJob, "mode": checkMode, "get": getPath},
	})
}

// run runs one command and returns its exit code and output.
func run(t *testing.T, in string, args ...string) (int, string, string) {
	t.Helper()
	var out, errOut bytes.Buffer
	code := Run(t.Context(), args, Stdio{In: strings.NewReader(in), Out: &out, Err: &errOut})
	return code, out.String(), errOut.String()
}

const testPolicy = `version: 1
trust_domain: ci.example.com
providers:
  github: {type: github, issuer: https://token.actions.githubusercontent.com}
  fly: {type: fly, issuer: https://oidc.fly.io/example-org}
engines:
  default: {endpoint: "tcp://engine.example.com:8080", server_name: engine.example.com}
rules:
  - name: app-main
    provider: github
    match: {repository_id: "42", ref: refs/heads/main, event_name: [push]}
    grant: {profile: client, engines: [default], ttl: 1h}
  - name: engine
    provider: fly
    match: {org_id: "1", app_id: "2"}
    grant: {profile: server, engines: [default], dns: [engine.example.com], ttl: 24h}
tests:
  - name: main is admitted
    provider: github
    claims: {repository_id: "42", ref: refs/heads/main, event_name: push}
    rule: app-main
  - name: others are not
    provider: github
    claims: {repository_id: "43", ref: refs/heads/main, event_name: push}
    denied: repository_id
`

const testClaims = `{"iss":"https://token.actions.githubusercontent.com","repository_owner_id":"7","repository_id":"42","ref":"refs/heads/main","event_name":"push"}`

func write(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestExitCodes(t *testing.T) {
	t.Parallel()
	good := write(t, testPolicy)
	bad := write(t, strings.Replace(testPolicy, "repository_id", "repository", 1))
	failing := write(t, strings.Replace(testPolicy, "rule: app-main\n  - name: others", "denied: ref\n  - name: others", 1))
	warned := write(t, strings.Replace(testPolicy, "tests:", `  - name: app-pr
    provider: github
    match: {repository_id: "42", event_name: [pull_request]}
    grant: {profile: client, engines: [default], ttl: 1h}
tests:`, 1))
	claims := write(t, testClaims)
	denied := write(t, strings.Replace(testClaims, "42", "43", 1))
	hostile := write(t, strings.Replace(testClaims, "refs/heads/main", "refs/\\u001b[2J\\u202e", 1))
	token := write(t, "e30."+base64.RawURLEncoding.EncodeToString([]byte(testClaims))+".c2ln\n")
	for _, tc := range []struct {
		name     string
		in       string
		args     []string
		code     int
		out, err string // substrings
	}{
		{"nothing", "", nil, command.ExitUsage, "", "no command is given"},
		{"unknown", "", []string{"sign"}, command.ExitUsage, "", "unexpected argument sign"},
		{"help", "", []string{"help"}, command.ExitOK, "policy explain", ""},
		{"help of a command", "", []string{"policy", "explain", "--help"}, command.ExitOK, "token-file", ""},
		{"unknown flag", "", []string{"version", "--loud"}, command.ExitUsage, "", "loud"},
		{"version", "", []string{"version"}, command.ExitOK, "mayfly-issuer ", ""},
		{"check", "", []string{"policy", "check", good}, command.ExitOK, "ok: rules 2", ""},
		{"check of a bad one", "", []string{"policy", "check", bad}, command.ExitFailed, "", "repository"},
		{"check of none", "", []string{"policy", "check"}, command.ExitUsage, "", "<file>"},
		{"check of a missing one", "", []string{"policy", "check", good + "x"}, command.ExitFailed, "", "no such file"},
		{"check warns", "", []string{"policy", "check", warned}, command.ExitOK, "ok: rules 3", "warning:"},
		{"test", "", []string{"policy", "test", good}, command.ExitOK, "2 of 2 pass", ""},
		{"test that fails", "", []string{"policy", "test", failing}, command.ExitFailed, "FAIL  main is admitted", "1 tests fail"},
		{"explain", "", []string{"policy", "explain", good, "--claims", claims}, command.ExitOK, "allowed by rule app-main", ""},
		{"explain from the input", testClaims, []string{"policy", "explain", good, "--claims", "-"}, command.ExitOK, "allowed by rule app-main", ""},
		{"explain a token", "", []string{"policy", "explain", "--token-file", token, good}, command.ExitOK, "allowed by rule app-main", ""},
		{"explain a denial", "", []string{"policy", "explain", good, "--claims", denied}, command.ExitDenied, `repository_id is "43"`, ""},
		{"explain another engine", "", []string{"policy", "explain", good, "--claims", claims, "--engine", "gpu"}, command.ExitDenied, "engine", ""},
		{"explain as JSON", "", []string{"policy", "explain", good, "--claims", claims, "--json"}, command.ExitOK, `"allowed": true`, ""},
		{"explain hostile claims", "", []string{"policy", "explain", good, "--claims", hostile}, command.ExitDenied, "ref is", ""},
		{"explain nothing", "", []string{"policy", "explain", good}, command.ExitUsage, "", "--claims or --token-file"},
		{"explain of no provider", `{"iss":"https://evil"}`, []string{"policy", "explain", good, "--claims", "-"}, command.ExitFailed, "", "no provider"},
		{"explain claims without iss", `{}`, []string{"policy", "explain", good, "--claims", "-"}, command.ExitFailed, "", "have no iss; name the provider with --provider"},
		{"explain what are no claims", `{"iss": 1}`, []string{"policy", "explain", good, "--claims", "-"}, command.ExitFailed, "", "want a JSON object with iss, a text"},
		{"explain no token", "x.y", []string{"policy", "explain", good, "--token-file", "-"}, command.ExitFailed, "", "compact JWS"},
		{"serve without a config", "", []string{"serve"}, command.ExitUsage, "", "--config"},
		{"revoke nothing", "", []string{"revoke", "--config", good}, command.ExitUsage, "", "give a serial, or --all"},
		{"revoke a prefix", "", []string{"revoke", "--config", good, "abc"}, command.ExitUsage, "", "32"},
		{"restore nothing", "", []string{"restore", "--config", good}, command.ExitUsage, "", "--in-place"},
		{"init without names", "", []string{"init", "--dir", "x"}, command.ExitUsage, "", "--engine-dns"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			code, out, errOut := run(t, tc.in, tc.args...)
			if code != tc.code || !strings.Contains(out, tc.out) || !strings.Contains(errOut, tc.err) {
				t.Errorf("exit %d, want %d\nout: %s\nerr: %s", code, tc.code, out, errOut)
			}
			if strings.ContainsAny(out+errOut, "\x1b\u202e") {
				t.Errorf("a claim reached the terminal as it stands: %q", out)
			}
		})
	}
}

func TestServesOnLinux(t *testing.T) {
	t.Parallel()
	if err := serves("linux"); err != nil {
		t.Error(err)
	}
	if err := serves("darwin"); err == nil || !strings.Contains(err.Error(), "needs Linux") {
		t.Errorf("on macOS: %v", err)
	}
}
