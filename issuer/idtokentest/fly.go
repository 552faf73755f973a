package idtokentest

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"time"
)

// FlySocket is a machine's /.fly/api socket, which hands out its tokens.
type FlySocket struct {
	server *http.Server
	done   chan struct{}
}

// ServeFlySocket listens on a unix socket at path, mode 0600, as a machine whose
// tokens have claims instead of the defaults. The caller closes it.
func (p *Provider) ServeFlySocket(path string, claims map[string]any) (*FlySocket, error) {
	ln, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("idtokentest: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("idtokentest: %w", err), ln.Close())
	}
	s := &FlySocket{done: make(chan struct{}), server: &http.Server{
		Handler: p.FlyHandler(claims), ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 30 * time.Second,
	}}
	go func() {
		defer close(s.done)
		_ = s.server.Serve(ln)
	}()
	return s, nil
}

// Close ends the server and removes the socket.
func (s *FlySocket) Close() error {
	err := s.server.Close()
	<-s.done
	return err
}

// FlyHandler handles POST /v1/tokens/oidc of a machine whose tokens have claims
// instead of the defaults. The request is {"aud": ...}, a string; the response is the
// bare token. Without aud, the audience is https://fly.io/<organisation>.
func (p *Provider) FlyHandler(claims map[string]any) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/tokens/oidc", func(w http.ResponseWriter, r *http.Request) {
		asked, err := readObject(w, r)
		if err != nil {
			http.Error(w, "want a JSON object", http.StatusBadRequest)
			return
		}
		overrides := map[string]any{}
		for name, v := range claims {
			overrides[name] = v
		}
		for name, v := range asked {
			aud, ok := v.(string)
			if name != "aud" || !ok {
				http.Error(w, "want aud, a string", http.StatusBadRequest)
				return
			}
			overrides["aud"] = aud
		}
		token, err := p.Mint(overrides)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		p.currentFaults().Token.answer(w, r, "text/plain; charset=utf-8", []byte(token))
	})
	return mux
}
