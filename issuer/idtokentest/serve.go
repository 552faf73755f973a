package idtokentest

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net"
	"net/http"
	"slices"

	"github.com/mayfly-ca/mayfly/issuer/internal/idtoken"
)

const (
	pathKeys = "/.well-known/jwks"
	maxBody  = 64 << 10
)

func (p *Provider) serveDiscovery(w http.ResponseWriter, r *http.Request) {
	p.discoveries.Add(1)
	f := p.currentFaults()
	doc := map[string]any{
		"issuer":                                p.issuer,
		"jwks_uri":                              p.issuer + pathKeys,
		"subject_types_supported":               []string{"public", "pairwise"},
		"response_types_supported":              []string{"id_token"},
		"id_token_signing_alg_values_supported": []string{p.keys.algorithm},
		"scopes_supported":                      []string{"openid"},
		"claims_supported":                      p.claimNames(),
	}
	if p.options.Type == idtoken.People {
		p.peopleDiscovery(doc)
	}
	if f.Issuer != "" {
		doc["issuer"] = f.Issuer
	}
	if f.KeysURI != "" {
		doc["jwks_uri"] = f.KeysURI
	}
	f.Discovery.answerJSON(w, r, doc)
}

func (p *Provider) claimNames() []string {
	var out []string
	for name := range p.Claims(nil) {
		out = append(out, name)
	}
	slices.Sort(out)
	return out
}

func (p *Provider) serveKeys(w http.ResponseWriter, r *http.Request) {
	p.keyFetches.Add(1)
	p.currentFaults().Keys.answerJSON(w, r, p.keys.set())
}

// serveMint handles POST <issuer>/mint. It is for programs on this machine. A web page
// cannot call it, neither from another origin nor under another host name.
func (p *Provider) serveMint(w http.ResponseWriter, r *http.Request) {
	if !p.ownHost(r.Host) {
		http.Error(w, "unknown host", http.StatusMisdirectedRequest)
		return
	}
	if r.Header.Get("Origin") != "" {
		http.Error(w, "not for web pages", http.StatusForbidden)
		return
	}
	if media, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || media != "application/json" {
		http.Error(w, "want Content-Type: application/json", http.StatusUnsupportedMediaType)
		return
	}
	overrides, err := readObject(w, r)
	if err != nil {
		http.Error(w, "want a JSON object of claims to override: "+err.Error(), http.StatusBadRequest)
		return
	}
	token, err := p.Mint(overrides)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	writeToken(w, token)
}

// ownHost reports whether a Host header names this listener.
func (p *Provider) ownHost(host string) bool {
	if host == p.host {
		return true
	}
	name, port, err := net.SplitHostPort(host)
	_, own, _ := net.SplitHostPort(p.host)
	return err == nil && port == own && (name == "localhost" || name == "127.0.0.1" || name == "::1")
}

// readObject reads one JSON object and keeps numbers as text. An empty body is an
// empty object.
func readObject(w http.ResponseWriter, r *http.Request) (map[string]any, error) {
	data, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil || len(bytes.TrimSpace(data)) == 0 {
		return nil, err
	}
	var out map[string]any
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	if err := d.Decode(&out); err != nil {
		return nil, err
	}
	if out == nil {
		return nil, errors.New("null")
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("more than one value")
	}
	return out, nil
}

func writeToken(w http.ResponseWriter, token string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	_, _ = io.WriteString(w, token)
}
