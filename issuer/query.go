package issuer

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/go-chi/chi/v5"

	"github.com/mayfly-ca/mayfly/ca/store"
	"github.com/mayfly-ca/mayfly/client/wire"
)

// maxFilterBytes bounds one filter's value.
const maxFilterBytes = 512

// query reads the parameters of a list. An unknown, repeated, empty-named or oversized
// one is an error: a mistyped filter must not list everything.
type query struct {
	values url.Values
	known  map[string]bool
	err    error
}

func newQuery(v url.Values) *query { return &query{values: v, known: make(map[string]bool, len(v))} }

func (q *query) fail(format string, args ...any) {
	if q.err == nil {
		q.err = badRequest(format, args...)
	}
}

func (q *query) text(name string) string {
	q.known[name] = true
	v := q.values[name]
	switch {
	case len(v) == 0:
		return ""
	case len(v) > 1:
		q.fail("%s: given more than once", name)
	case len(v[0]) > maxFilterBytes:
		q.fail("%s: longer than %d bytes", name, maxFilterBytes)
	case v[0] == "":
		q.fail("%s: is empty; leave it out to not filter by it", name)
	case !isText(v[0]):
		q.fail("%s: holds NUL, or is no UTF-8: no record has it", name)
	}
	return v[0]
}

func (q *query) oneOf(name string, allowed ...string) string {
	v := q.text(name)
	if v == "" {
		return ""
	}
	for _, a := range allowed {
		if v == a {
			return v
		}
	}
	q.fail("%s: want one of %s", name, strings.Join(allowed, ", "))
	return ""
}

func (q *query) time(name string) *time.Time {
	v := q.text(name)
	if v == "" {
		return nil
	}
	t, err := time.Parse(time.RFC3339, v)
	if err != nil {
		q.fail("%s: want a time of RFC 3339, such as 2026-01-02T15:04:05Z", name)
		return nil
	}
	return utc(t)
}

func (q *query) int(name string, fallback, lowest, highest int64) int64 {
	v := q.text(name)
	if v == "" {
		return fallback
	}
	n, err := strconv.ParseInt(v, 10, 64)
	if err != nil || n < lowest || n > highest {
		q.fail("%s: want a whole number from %d to %d", name, lowest, highest)
		return fallback
	}
	return n
}

func (q *query) limit() int {
	return int(q.int("limit", wire.DefaultListLimit, 1, wire.MaxListLimit))
}

// done returns the first error. An unknown parameter is an error.
func (q *query) done() error {
	for name := range q.values {
		if !q.known[name] {
			q.fail("%s: no such parameter", Printable(truncate(name)))
		}
	}
	return q.err
}

// noQuery returns an error for a request that has query parameters.
func noQuery(r *http.Request) error { return newQuery(r.URL.Query()).done() }

// certificateFilter reads the filters of GET /v1/certificates.
func certificateFilter(v url.Values) (store.CertificateFilter, error) {
	q := newQuery(v)
	f := store.CertificateFilter{
		Match: store.Match{
			Repository:   q.text("repository"),
			RepositoryID: q.text("repository_id"),
			RunID:        q.text("run_id"),
			Actor:        q.text("actor"),
			Identity:     q.text("identity"),
			Profile:      q.oneOf("profile", "client", "server"),
			Since:        q.time("since"),
			Until:        q.time("until"),
		},
		SerialPrefix: q.text("serial"),
		Status:       q.oneOf("status", wire.StatusValid, wire.StatusExpired, wire.StatusRevoked),
		Limit:        q.limit(),
		Cursor:       q.text("cursor"),
		Now:          time.Now().UTC(),
	}
	if f.SerialPrefix != "" && !isHex(f.SerialPrefix, 1, 32) {
		q.fail("serial: want up to 32 lower-case hex digits")
	}
	return f, q.done()
}

func sessionFilter(v url.Values) (store.SessionFilter, error) {
	q := newQuery(v)
	f := store.SessionFilter{
		Engine:     q.text("engine"),
		Serial:     q.text("serial"),
		RunID:      q.text("run_id"),
		Repository: q.text("repository"),
		Live:       q.oneOf("live", "true", "false") == "true",
		Cut:        q.oneOf("cut", "true", "false") == "true",
		Since:      q.time("since"),
		Until:      q.time("until"),
		Now:        time.Now().UTC(),
		Limit:      q.limit(),
		Cursor:     q.text("cursor"),
	}
	if f.Serial != "" && !isHex(f.Serial, 32, 32) {
		q.fail("serial: want 32 lower-case hex digits")
	}
	return f, q.done()
}

func eventFilter(v url.Values) (store.EventFilter, error) {
	q := newQuery(v)
	f := store.EventFilter{
		Type:       q.text("type"),
		Serial:     q.text("serial"),
		Repository: q.text("repository"),
		RunID:      q.text("run_id"),
		Since:      q.time("since"),
		Until:      q.time("until"),
		After:      q.int("after", 0, 0, 1<<62),
		Limit:      q.limit(),
		Cursor:     q.text("cursor"),
	}
	if f.After == 0 && v.Has("after") {
		f.After = -1 // oldest first, from the start
	}
	if f.Serial != "" && !isHex(f.Serial, 32, 32) {
		q.fail("serial: want 32 lower-case hex digits")
	}
	return f, q.done()
}

// serialOf returns the serial in the path, in the form that certificates carry.
func serialOf(r *http.Request) (string, error) {
	serial := chi.URLParam(r, "serial")
	if !isHex(serial, 32, 32) {
		return "", badRequest("serial: want 32 lower-case hex digits")
	}
	return serial, nil
}

// isText reports whether s may be stored: UTF-8 without NUL. With other text,
// PostgreSQL returns an error that looks like a fault of the store.
func isText(s string) bool { return utf8.ValidString(s) && !strings.Contains(s, "\x00") }

// isHex reports whether s is lower-case hex with a length from lo to hi.
func isHex(s string, lo, hi int) bool {
	if len(s) < lo || len(s) > hi {
		return false
	}
	for i := range len(s) {
		if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// matchOf converts the wire's match to the store's.
func matchOf(m wire.Match) (store.Match, error) {
	out := store.Match{
		Repository: m.Repository, RepositoryID: m.RepositoryID, RunID: m.RunID,
		Actor: m.Actor, Identity: m.Identity, Profile: m.Profile, Since: m.Since, Until: m.Until,
	}
	for _, v := range []string{m.Repository, m.RepositoryID, m.RunID, m.Actor, m.Identity, m.Profile} {
		if len(v) > maxFilterBytes {
			return store.Match{}, fmt.Errorf("a value is longer than %d bytes", maxFilterBytes)
		}
		if !isText(v) {
			return store.Match{}, errors.New("a value holds NUL: no record has it")
		}
	}
	if m.Since != nil && m.Until != nil && !m.Since.Before(*m.Until) {
		return store.Match{}, errors.New("until is not after since")
	}
	if m.Profile != "" && m.Profile != "client" && m.Profile != "server" {
		return store.Match{}, fmt.Errorf("profile: want client or server")
	}
	return out, nil
}

// routeOf returns the route's pattern, for events and the log.
func routeOf(r *http.Request) string {
	if rc := chi.RouteContext(r.Context()); rc != nil {
		return rc.RoutePattern()
	}
	return r.URL.Path
}
