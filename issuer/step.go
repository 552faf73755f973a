package issuer

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/pem"
	"net/http"
	"strings"

	"github.com/go-chi/chi/v5"

	"github.com/mayfly-ca/mayfly/client/wire"
)

// stepRoutes serves the read-only part of smallstep's step-ca API, so that step ca
// bootstrap, step ca health, step ca roots and step crl inspect work with this issuer.
// It has no sign, renew, rekey or revoke, and must never have them: only POST
// /v1/certificates issues.
func (s *Server) stepRoutes(r chi.Router) {
	for _, prefix := range []string{"", "/1.0"} {
		r.Get(prefix+"/health", s.handle(s.stepHealth))
		r.Get(prefix+"/version", s.handle(s.stepVersion))
		r.Get(prefix+"/root/{sha}", s.handle(s.stepRoot))
		r.Get(prefix+"/roots", s.handle(s.stepRoots))
		r.Get(prefix+"/roots.pem", s.handle(s.stepRootsPEM))
		r.Get(prefix+"/provisioners", s.handle(s.stepProvisioners))
		r.Get(prefix+"/crl", s.handle(s.stepCRL))
	}
}

func (s *Server) stepHealth(w http.ResponseWriter, r *http.Request) error {
	if err := s.readiness.ask(r.Context(), s.authority.Ready); err != nil {
		return unavailable("ready", err)
	}
	return writeJSON(w, http.StatusOK, map[string]string{"status": "ok"})
}

func (s *Server) stepVersion(w http.ResponseWriter, _ *http.Request) error {
	return writeJSON(w, http.StatusOK, map[string]string{"version": "mayfly " + Version()})
}

// stepRoot returns the root with the SHA-256 in the path.
func (s *Server) stepRoot(w http.ResponseWriter, r *http.Request) error {
	want := strings.ToLower(strings.ReplaceAll(chi.URLParam(r, "sha"), "-", ""))
	for _, c := range s.authority.TrustBundle() {
		sum := sha256.Sum256(c.Raw)
		if hex.EncodeToString(sum[:]) == want {
			return writeJSON(w, http.StatusOK, map[string]string{"ca": pemOf(c)})
		}
	}
	return &Error{Name: wire.ProblemNotFound, Detail: "no root of this fingerprint"}
}

// stepRoots answers 201, as step-ca does and its client expects.
func (s *Server) stepRoots(w http.ResponseWriter, _ *http.Request) error {
	var crts []string
	for _, c := range s.authority.TrustBundle() {
		crts = append(crts, pemOf(c))
	}
	return writeJSON(w, http.StatusCreated, map[string][]string{"crts": crts})
}

func (s *Server) stepRootsPEM(w http.ResponseWriter, _ *http.Request) error {
	w.Header().Set("Content-Type", "application/x-pem-file")
	_, _ = w.Write([]byte(s.bundle.pem))
	return nil
}

// stepProvisioners returns an empty list: this API issues nothing.
func (s *Server) stepProvisioners(w http.ResponseWriter, _ *http.Request) error {
	return writeJSON(w, http.StatusOK, map[string]any{"provisioners": []struct{}{}, "nextCursor": ""})
}

// stepCRL returns the current CRL, in PEM if the query has pem.
func (s *Server) stepCRL(w http.ResponseWriter, r *http.Request) error {
	crls, err := s.authority.CRLs(r.Context())
	if err != nil {
		return unavailable("read crl", err)
	}
	if !r.URL.Query().Has("pem") {
		writeCRL(w, r, crls.Number, crls.Current)
		return nil
	}
	w.Header().Set("Content-Type", "application/x-pem-file")
	_, _ = w.Write(pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: crls.Current}))
	return nil
}
