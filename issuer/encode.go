package issuer

import (
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"strconv"

	"github.com/mayfly-ca/mayfly/ca"
	"github.com/mayfly-ca/mayfly/client/wire"
)

// encodedParts holds the parts that all 201 responses share, as JSON strings encoded
// once. Encoding them each time took a tenth of an issuance.
type encodedParts struct {
	bundle        []byte            // trust_bundle
	intermediates map[string][]byte // PEM escaped for a JSON string, by DER of the key id
}

// crlText is the member crl of a 201 response for one set of CRLs.
type crlText struct {
	number int64
	text   []byte
}

func newTexts(bundle string, intermediates []*x509.Certificate) (*encodedParts, error) {
	quoted, err := json.Marshal(bundle)
	if err != nil {
		return nil, err
	}
	t := &encodedParts{bundle: quoted, intermediates: make(map[string][]byte, len(intermediates))}
	for _, c := range intermediates {
		t.intermediates[string(c.SubjectKeyId)] = appendPEM(nil, c.Raw)
	}
	return t, nil
}

// crlTextOf returns the JSON string of the PEM of crls. It encodes each set once.
func (s *Server) crlTextOf(crls *ca.CRLs) ([]byte, error) {
	if t := s.crlText.Load(); t != nil && t.number == crls.Number {
		return t.text, nil
	}
	quoted, err := json.Marshal(string(crls.PEM))
	if err != nil {
		return nil, err
	}
	s.crlText.Store(&crlText{crls.Number, quoted})
	return quoted, nil
}

// appendPEM appends a certificate in PEM (RFC 7468), escaped for a JSON string.
func appendPEM(b, der []byte) []byte {
	const column, newline = 48, `\n` // 48 bytes are the 64 characters of a line
	b = append(b, `-----BEGIN CERTIFICATE-----`+newline...)
	for len(der) > 0 {
		n := min(column, len(der))
		b = base64.StdEncoding.AppendEncode(b, der[:n])
		b = append(b, newline...)
		der = der[n:]
	}
	return append(b, `-----END CERTIFICATE-----`+newline...)
}

// appendChain appends the chain, leaf first.
func (t *encodedParts) appendChain(b []byte, chain []*x509.Certificate) []byte {
	b = appendPEM(b, chain[0].Raw)
	for _, c := range chain[1:] {
		if text, ok := t.intermediates[string(c.SubjectKeyId)]; ok {
			b = append(b, text...)
		} else {
			b = appendPEM(b, c.Raw)
		}
	}
	return b
}

// issuedHead is a wire.IssueResponse without its three long members.
type issuedHead struct {
	wire.IssueResponse
	Certificate struct{} `json:"certificate,omitzero"`
	TrustBundle struct{} `json:"trust_bundle,omitzero"`
	CRL         struct{} `json:"crl,omitzero"`
}

// writeIssuedJSON answers 201 with head and the long members.
func (s *Server) writeIssuedJSON(w http.ResponseWriter, head wire.IssueResponse, chain []*x509.Certificate, crls *ca.CRLs) error {
	crl, err := s.crlTextOf(crls)
	if err != nil {
		return err
	}
	short, err := json.Marshal(issuedHead{IssueResponse: head})
	if err != nil {
		return err
	}
	b := make([]byte, 0, len(short)+len(s.texts.bundle)+len(crl)+4096)
	b = append(b, short[:len(short)-1]...)
	b = append(b, `,"certificate":"`...)
	b = s.texts.appendChain(b, chain)
	b = append(b, `","trust_bundle":`...)
	b = append(b, s.texts.bundle...)
	b = append(b, `,"crl":`...)
	b = append(b, crl...)
	b = append(b, '}')
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", "no-store")
	h.Set("Content-Length", strconv.Itoa(len(b)))
	w.WriteHeader(http.StatusCreated)
	_, _ = w.Write(b) // an error means that the client disconnected
	return nil
}
