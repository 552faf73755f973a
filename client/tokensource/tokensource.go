// Package tokensource gets OIDC ID tokens from the platform that a program runs
// on: a GitHub Actions job, a Fly Machine, a GitLab job, a file that another
// program refreshes, or a command.
//
// A source never stores a token and never writes one to a log or an error. It
// requests only mayfly's audiences, because most platforms issue tokens for any
// audience. Otherwise an issuer could name another audience and collect tokens for
// other services.
//
// It imports only the standard library.
package tokensource

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
)

// AudiencePrefix is the prefix of every audience that a source requests.
const AudiencePrefix = "mayfly:"

// maxToken bounds a compact JWS. The issuer has the same limit (wire.MaxTokenBytes).
const maxToken = 16 << 10

// Source provides ID tokens. Every call asks the platform again. It is safe for
// concurrent use.
type Source interface {
	// Token returns a compact JWS for an audience, which begins with
	// AudiencePrefix. Its errors are *Error.
	Token(ctx context.Context, audience string) (string, error)
	// String returns a readable name of the source.
	String() string
}

// Error says which source gave no token and what to change.
type Error struct {
	Source string
	// Hint is the remedy; empty if there is none.
	Hint string
	// Temporary reports whether a later attempt may succeed.
	Temporary bool
	Err       error
}

// Error implements error.
func (e *Error) Error() string {
	s := fmt.Sprintf("id token from %s: %v", e.Source, e.Err)
	if e.Hint != "" {
		s += "\n" + e.Hint
	}
	return s
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Parse returns the source of a specification:
//
//	auto        the platform that the environment shows; never a command
//	github      GitHub Actions
//	gitlab      GitLab CI, the ID token in the variable MAYFLY_ID_TOKEN
//	fly         the Fly Machine's API socket: FLY_API_SOCKET, else /.fly/api
//	file:PATH   a file with a token, read at each use
//	env:NAME    an environment variable with a token
//	exec:CMD    a command that prints a token
func Parse(spec string) (Source, error) {
	kind, rest, hasRest := strings.Cut(spec, ":")
	switch {
	case spec == "" || spec == "auto":
		return auto()
	case spec == "github":
		return GitHubActions()
	case spec == "gitlab":
		return GitLab()
	case spec == "fly":
		return FlyMachine(flySocket()), nil
	case kind == "file" && hasRest && rest != "":
		return File(rest), nil
	case kind == "env" && hasRest && rest != "":
		return Env(rest), nil
	case kind == "exec" && hasRest:
		return Exec(rest)
	}
	return nil, fmt.Errorf("token source %q is none of auto, github, gitlab, fly, file:PATH, env:NAME, exec:CMD", spec)
}

// auto picks the platform by its environment variables.
func auto() (Source, error) {
	switch {
	case os.Getenv("ACTIONS_ID_TOKEN_REQUEST_URL") != "", os.Getenv("GITHUB_ACTIONS") == "true":
		return GitHubActions()
	case os.Getenv(gitlabVariable) != "", os.Getenv("GITLAB_CI") == "true":
		return GitLab()
	case os.Getenv("FLY_MACHINE_ID") != "":
		return FlyMachine(flySocket()), nil
	}
	return nil, &Error{
		Source: "auto",
		Err:    errors.New("this is neither a GitHub Actions job, a GitLab job nor a Fly Machine"),
		Hint:   "set token_source to file:PATH (a file that the platform keeps fresh, as Kubernetes does), env:NAME or exec:CMD",
	}
}

// File returns a source that reads a token from a file at each use. Kubernetes
// writes and refreshes such files. The program that writes the file sets the audience.
func File(path string) Source { return file(path) }

type file string

func (f file) String() string { return "file " + string(f) }

func (f file) Token(_ context.Context, audience string) (string, error) {
	fail := func(hint string, err error) (string, error) {
		return "", &Error{Source: f.String(), Hint: hint, Err: err}
	}
	if err := CheckAudience(audience); err != nil {
		return fail("", err)
	}
	r, err := os.Open(string(f))
	if err != nil {
		hint := "the file must hold one ID token for the audience " + audience
		return fail(hint, err)
	}
	defer r.Close()
	b, err := readToken(r)
	if err != nil {
		return fail("", err)
	}
	return b, nil
}

// Env returns a source that reads the token from an environment variable. The token
// cannot be refreshed, so the source works until the token expires.
func Env(name string) Source { return env{name: name} }

type env struct {
	name string
	hint string
}

func (e env) String() string { return "variable " + e.name }

func (e env) Token(_ context.Context, audience string) (string, error) {
	fail := func(err error) (string, error) {
		return "", &Error{Source: e.String(), Hint: e.hint, Err: err}
	}
	if err := CheckAudience(audience); err != nil {
		return fail(err)
	}
	v := os.Getenv(e.name)
	if v == "" {
		return fail(errors.New("the variable is not set"))
	}
	token, err := readToken(strings.NewReader(v))
	if err != nil {
		return fail(err)
	}
	return token, nil
}

const gitlabVariable = "MAYFLY_ID_TOKEN"

const gitlabHint = `ask for the token in .gitlab-ci.yml:
  id_tokens:
    MAYFLY_ID_TOKEN: {aud: "mayfly:<trust domain>"}`

// GitLab returns the source of a GitLab job. The job declares its tokens as
// variables under id_tokens.
func GitLab() (Source, error) {
	e := env{name: gitlabVariable, hint: gitlabHint}
	if os.Getenv(e.name) == "" {
		return nil, &Error{Source: e.String(), Hint: e.hint, Err: errors.New("the variable is not set")}
	}
	return e, nil
}

// CheckAudience returns an error for an audience that is not mayfly's, because a
// platform issues tokens for any service.
func CheckAudience(audience string) error {
	if len(audience) <= len(AudiencePrefix) || !strings.HasPrefix(audience, AudiencePrefix) {
		return fmt.Errorf("audience %.80q does not begin with %q: a token for another service is never asked for", audience, AudiencePrefix)
	}
	return nil
}

// readToken reads one token with white space around it.
func readToken(r io.Reader) (string, error) {
	b, err := io.ReadAll(io.LimitReader(r, maxToken+256))
	if err != nil {
		return "", err
	}
	token := strings.TrimSpace(string(b))
	if err := checkToken(token); err != nil {
		return "", err
	}
	return token, nil
}

// checkToken checks that a text is a compact JWS (RFC 7515 section 7.1) and not an
// error page. Its error never contains the text.
func checkToken(token string) error {
	switch {
	case token == "":
		return errors.New("no token: the answer is empty")
	case len(token) > maxToken:
		return fmt.Errorf("token is larger than %d bytes", maxToken)
	case strings.Count(token, ".") != 2:
		return errors.New("the answer is not a token (three parts of base64url)")
	}
	for _, c := range []byte(token) {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '-', c == '_', c == '.':
		default:
			return errors.New("the answer is not a token (three parts of base64url)")
		}
	}
	return nil
}
