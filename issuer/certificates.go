package issuer

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/mayfly-ca/mayfly/ca"
	"github.com/mayfly-ca/mayfly/client/wire"
	"github.com/mayfly-ca/mayfly/issuer/internal/idtoken"
	"github.com/mayfly-ca/mayfly/issuer/internal/policy"
)

// issue handles POST /v1/certificates: token, claims, decision, certificate. It reads
// the body only after the token is verified.
func (s *Server) issue(w http.ResponseWriter, r *http.Request) error {
	raw, err := bearer(r)
	if err != nil {
		return err
	}
	rules := s.policies.load()
	ctx := r.Context()
	claims, err := rules.verifier.Verify(ctx, raw, rules.set.Audience())
	if err != nil {
		return err
	}
	info := infoOf(ctx)
	info.identity = subjectName(claims)
	if err := s.perID.take(w, r, limitKey(claims)); err != nil {
		return err
	}
	var req wire.IssueRequest
	if err := decode(r, &req); err != nil {
		return err
	}
	decision, err := rules.set.Decide(claims, policy.Request{Want: policy.WantCertificate, Engine: req.Engine, OneEngine: req.OneEngine})
	if err != nil {
		return s.recordDenial(ctx, claims, err)
	}
	info.rule = decision.Rule
	csr, err := parseCSR(req.CSR)
	if err != nil {
		return err
	}
	issued, err := s.authority.Issue(ctx, decision.Grant, csr)
	if err != nil {
		return s.recordRefusal(ctx, claims, decision, err)
	}
	info.serial = issued.Record.Serial
	s.metrics.issued(issued.Record.Profile, issued.Record.Provider, issued.Repeated)
	return s.writeIssued(w, r, issued, decision)
}

// maxCSRBytes bounds the PEM of a CSR; an RSA-8192 one with its armour is 4 KiB.
const maxCSRBytes = 16 << 10

// parseCSR parses exactly one PEM block. Names and extensions that the CSR asks for
// are ignored.
func parseCSR(text string) (*x509.CertificateRequest, error) {
	if text == "" || len(text) > maxCSRBytes {
		return nil, &Error{Name: wire.ProblemBadCSR, Detail: "csr: want a PKCS #10 request in PEM"}
	}
	block, rest := pem.Decode([]byte(text))
	if block == nil || block.Type != "CERTIFICATE REQUEST" || len(block.Headers) > 0 ||
		!strings.HasPrefix(strings.TrimSpace(text), "-----BEGIN ") || len(bytes.TrimSpace(rest)) > 0 {
		return nil, &Error{Name: wire.ProblemBadCSR, Detail: "csr: want one PEM block of type CERTIFICATE REQUEST, and nothing else"}
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, &Error{Name: wire.ProblemBadCSR, Detail: "csr: not a PKCS #10 request", Err: err}
	}
	return csr, nil
}

// writeIssued answers 201. A retry after a lost response gets the same form.
func (s *Server) writeIssued(w http.ResponseWriter, r *http.Request, issued *ca.Issued, d policy.Decision) error {
	crls, err := s.authority.CRLs(r.Context())
	if err != nil {
		return unavailable("read crl", err)
	}
	leaf := issued.Certificate
	engines := make([]wire.Engine, 0, len(d.Engines))
	versions := s.versions.read(r.Context(), s.authority.Store())
	for _, e := range d.Engines {
		engines = append(engines, wire.Engine{Name: e.Name, Endpoint: e.Endpoint, ServerName: e.ServerName, Version: versions[e.Name]})
	}
	return s.writeIssuedJSON(w, wire.IssueResponse{
		Serial:     issued.Record.Serial,
		NotBefore:  leaf.NotBefore.UTC(),
		NotAfter:   leaf.NotAfter.UTC(),
		RenewAfter: leaf.NotBefore.Add(leaf.NotAfter.Sub(leaf.NotBefore) / 2).UTC(),
		Identity:   issued.Record.Identity,
		Rule:       issued.Record.Rule,
		Engines:    engines,
	}, issued.Chain, crls)
}

// listCertificates handles GET /v1/certificates.
func (s *Server) listCertificates(w http.ResponseWriter, r *http.Request) error {
	if _, err := s.requireRole(w, r, policy.Viewer); err != nil {
		return err
	}
	list, err := s.Certificates(r.Context(), r.URL.Query())
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, list)
}

// showCertificate handles GET /v1/certificates/{serial}.
func (s *Server) showCertificate(w http.ResponseWriter, r *http.Request) error {
	p, err := s.requireRole(w, r, policy.Viewer)
	if err != nil {
		return err
	}
	if err := noQuery(r); err != nil {
		return err
	}
	serial, err := serialOf(r)
	if err != nil {
		return err
	}
	detail, err := s.Certificate(r.Context(), serial)
	if err != nil {
		return err
	}
	s.Read(r.Context(), p.Name, detail.Serial)
	return writeJSON(w, http.StatusOK, detail)
}

func writeJSON(w http.ResponseWriter, status int, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode answer: %w", err)
	}
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = w.Write(body) // an error means that the client disconnected
	return nil
}

func pemOf(certs ...*x509.Certificate) string {
	var out []byte
	for _, c := range certs {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return string(out)
}

// subjectName returns the subject of a verified token for the log and for events.
func subjectName(c idtoken.Claims) string { return c.Provider().Name + "/" + c.Subject() }

// limitKey returns the key that PerIdentity counts by: the repository, if there is
// one, because sub differs between its runs; else the subject.
func limitKey(c idtoken.Claims) string {
	if id, ok := c.String("repository_id"); ok {
		return c.Issuer() + "\x00repository\x00" + id
	}
	return c.Issuer() + "\x00sub\x00" + c.Subject()
}

func utc(t time.Time) *time.Time {
	t = t.UTC()
	return &t
}
