package tokensource

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
)

// DefaultFlySocket is the API socket of a Fly Machine's init. Only root may use it.
const DefaultFlySocket = "/.fly/api"

func flySocket() string {
	if s := os.Getenv("FLY_API_SOCKET"); s != "" {
		return s
	}
	return DefaultFlySocket
}

// FlyMachine returns the source of a Fly Machine. It sends POST /v1/tokens/oidc to
// the machine's API socket, which answers with the bare token. An empty socket
// means DefaultFlySocket.
func FlyMachine(socket string) Source {
	if socket == "" {
		socket = DefaultFlySocket
	}
	return &fly{socket: socket, client: newClient(&http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", socket)
		},
	})}
}

type fly struct {
	socket string
	client *http.Client
}

func (f *fly) String() string { return "Fly Machine" }

func (f *fly) Token(ctx context.Context, audience string) (string, error) {
	if err := CheckAudience(audience); err != nil {
		return "", &Error{Source: f.String(), Err: err}
	}
	body, err := json.Marshal(struct {
		Audience string `json:"aud"`
	}{audience})
	if err != nil {
		return "", &Error{Source: f.String(), Err: err}
	}
	get := fetcher{
		client: f.client,
		request: func(ctx context.Context) (*http.Request, error) {
			req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://localhost/v1/tokens/oidc", bytes.NewReader(body))
			if err != nil {
				return nil, err
			}
			req.Header.Set("Content-Type", "application/json")
			return req, nil
		},
		parse: func(body []byte) (string, error) {
			token := strings.TrimSpace(string(body))
			return token, checkToken(token)
		},
	}
	// Do not wait for a missing socket: init makes the socket before any program
	// runs.
	if _, err := os.Stat(f.socket); err != nil {
		return "", &Error{Source: f.String(), Hint: flyHint(err), Err: err}
	}
	token, err := get.fetch(ctx)
	if err != nil {
		return "", &Error{Source: f.String(), Hint: flyHint(err), Temporary: temporary(err), Err: err}
	}
	return token, nil
}

func flyHint(err error) string {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "the socket is there on Fly Machines only; elsewhere choose another token source"
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EACCES):
		return "the Machine's API answers root only: run this program as root"
	}
	return ""
}
