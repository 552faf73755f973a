package wire

import (
	"bytes"
	"encoding/json"
	"fmt"
	"mime"
	"net/http"
	"strconv"
	"strings"
)

// ProblemPrefix is the prefix of the type of each problem that the issuer sends.
const ProblemPrefix = "urn:mayfly:problem:"

// ProblemMediaType is the Content-Type of a Problem (RFC 9457 section 3).
const ProblemMediaType = "application/problem+json"

// Problem types, without ProblemPrefix.
const (
	ProblemBadRequest    = "bad-request"
	ProblemBadCSR        = "bad-csr"
	ProblemBadToken      = "bad-token"
	ProblemDenied        = "denied"
	ProblemBlocked       = "blocked"
	ProblemForbiddenRole = "forbidden-role"
	ProblemNotFound      = "not-found"
	ProblemReplay        = "replay"
	// ProblemSeveralEngines answers IssueRequest.OneEngine. No certificate was
	// issued, and the token can still be used.
	ProblemSeveralEngines = "several-engines"
	ProblemTooLarge       = "too-large"
	ProblemRateLimited    = "rate-limited"
	ProblemUnavailable    = "unavailable"
	ProblemInternal       = "internal"
)

// ProblemStatus returns the HTTP status of a problem type without its prefix, and
// 500 for an unknown type.
func ProblemStatus(name string) int {
	switch name {
	case ProblemBadRequest, ProblemBadCSR, ProblemSeveralEngines:
		return http.StatusBadRequest
	case ProblemBadToken:
		return http.StatusUnauthorized
	case ProblemDenied, ProblemBlocked, ProblemForbiddenRole:
		return http.StatusForbidden
	case ProblemNotFound:
		return http.StatusNotFound
	case ProblemReplay:
		return http.StatusConflict
	case ProblemTooLarge:
		return http.StatusRequestEntityTooLarge
	case ProblemRateLimited:
		return http.StatusTooManyRequests
	case ProblemUnavailable:
		return http.StatusServiceUnavailable
	}
	return http.StatusInternalServerError
}

// Problem is an RFC 9457 problem document. It is also the error of a client for
// each answer of the issuer that is not a success.
type Problem struct {
	Type   string `json:"type"`
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail,omitempty"`
	// Instance is the request's id, which is also in the issuer's log.
	Instance string `json:"instance,omitempty"`
	// Claim and Rule are set on denied: the claim that failed and the nearest rule.
	// Engines are the engines that Rule grants. They are set on several-engines, and
	// on denied if Claim is "engine".
	Claim   string   `json:"claim,omitempty"`
	Rule    string   `json:"rule,omitempty"`
	Engines []string `json:"engines,omitempty"`
	// RetryAfter, in seconds, repeats the header of the same name.
	RetryAfter int `json:"retry_after,omitempty"`
}

// ReadProblem returns the problem in an answer that is not a success. body is the
// part of the body that was read. For an answer that is not a problem document,
// such as a proxy's page, the problem has only the status. Its texts are untrusted.
func ReadProblem(resp *http.Response, body []byte) *Problem {
	p := &Problem{}
	if resp.StatusCode == http.StatusBadRequest && bytes.Contains(body, []byte(plainToTLS)) {
		return &Problem{Title: "Bad Request", Status: resp.StatusCode, Detail: speaksTLS}
	}
	media, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if media != ProblemMediaType || json.Unmarshal(body, p) != nil {
		p = &Problem{}
	}
	p.Status = resp.StatusCode // the real status, whatever the document says
	if p.Title == "" {
		p.Title = http.StatusText(resp.StatusCode)
	}
	if n, err := strconv.Atoi(strings.TrimSpace(resp.Header.Get("Retry-After"))); err == nil && n > 0 {
		p.RetryAfter = n
	}
	return p
}

// plainToTLS is the answer of Go's HTTP servers to plain HTTP on a port for
// HTTPS.
const plainToTLS = "HTTP request to an HTTPS server"

const speaksTLS = "it speaks https, and the URL says http"

// WantsTLS reports whether a server that expects HTTPS answered a request in
// plain HTTP.
func (p *Problem) WantsTLS() bool { return p.Type == "" && p.Detail == speaksTLS }

// Name returns the type without its prefix, or "" for a foreign type.
func (p *Problem) Name() string {
	name, ok := strings.CutPrefix(p.Type, ProblemPrefix)
	if !ok {
		return ""
	}
	return name
}

// Error implements error.
func (p *Problem) Error() string {
	switch {
	case p.Name() == "" && (p.Status == http.StatusTooManyRequests || p.Status >= 500):
		return fmt.Sprintf("issuer: it answers %d %s", p.Status, p.Title)
	case p.WantsTLS():
		return fmt.Sprintf("issuer: %s (%d %s)", p.Detail, p.Status, p.Title)
	case p.Name() == "":
		return fmt.Sprintf("issuer: what answers there is not a mayfly issuer (%d %s)", p.Status, p.Title)
	}
	if p.Detail != "" {
		return fmt.Sprintf("issuer: %s (%d %s)", p.Detail, p.Status, p.Name())
	}
	return fmt.Sprintf("issuer: %s (%d %s)", p.Title, p.Status, p.Name())
}
