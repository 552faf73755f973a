package idtokentest

import (
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"time"
)

// Faults describes how a provider misbehaves. The zero Faults has no fault.
type Faults struct {
	// Discovery, Keys and Token are faults of the discovery document, the key
	// set, and the endpoints that hand out tokens (not of POST /mint).
	Discovery, Keys, Token Fault
	// Issuer replaces the issuer in the discovery document.
	Issuer string
	// KeysURI replaces the jwks_uri in the discovery document.
	KeysURI string
}

// Fault describes how one endpoint misbehaves. The set fields apply in this order.
type Fault struct {
	Delay    time.Duration // respond after this time, or when the client has disconnected
	Redirect string        // answer 302 to this URL
	Status   int           // answer with this status and Body
	Body     string        // answer with this instead of the true body
	Pad      int           // put this many spaces before the body
}

// SetFaults replaces the faults of all responses from now on.
func (p *Provider) SetFaults(f Faults) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.faults = f
}

func (p *Provider) currentFaults() Faults {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.faults
}

// answer writes body, as changed by f.
func (f Fault) answer(w http.ResponseWriter, r *http.Request, contentType string, body []byte) {
	if f.Delay > 0 {
		select {
		case <-time.After(f.Delay):
		case <-r.Context().Done():
			return
		}
	}
	if f.Redirect != "" {
		http.Redirect(w, r, f.Redirect, http.StatusFound)
		return
	}
	if f.Body != "" || f.Status != 0 {
		body = []byte(f.Body)
	}
	w.Header().Set("Content-Type", contentType)
	w.Header().Set("Cache-Control", "no-store")
	if f.Status != 0 {
		w.WriteHeader(f.Status)
	}
	if f.Pad > 0 {
		if _, err := io.WriteString(w, strings.Repeat(" ", f.Pad)); err != nil {
			return
		}
	}
	_, _ = w.Write(body)
}

func (f Fault) answerJSON(w http.ResponseWriter, r *http.Request, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	f.answer(w, r, "application/json", body)
}
