package web

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"html/template"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/mayfly-ca/mayfly/client/wire"
)

// names lists the templates. Each is rendered within layout.
var names = []string{"login", "link", "overview", "certificates", "certificate", "revoke", "engines", "sessions", "events", "blocks", "policy", "error"}

func parse(b Backend) map[string]*template.Template {
	funcs := template.FuncMap{
		"when":  clock,
		"iso":   func(t time.Time) string { return t.UTC().Format(time.RFC3339) },
		"ago":   func(t time.Time) string { return short(time.Since(t)) },
		"left":  func(t time.Time) string { return short(time.Until(t)) },
		"bytes": wire.Size,
		"join":  func(s []string) string { return strings.Join(s, ", ") },
		"head":  func(s string) string { return s[:min(len(s), 12)] },
		"tail":  func(s string) string { return s[min(len(s), 12):] },
		"count": count,
		"kind":  func(s string) string { return strings.ReplaceAll(s, "_", " ") },
		"tone":  severity,
		"rest":  otherDetails,
		"ci": func(identity, repository, run string) ciRun {
			r := ciRun{run, b.RunURL(identity, repository, run)}
			if r.URL != "" { // on GitHub, attempt and job follow the number
				r.Number, _, _ = strings.Cut(run, "/")
			}
			return r
		},
		"lasted": func(from time.Time, to *time.Time) string { return short(to.Sub(from)) },
		"tick":   func(t time.Time) string { return t.UTC().Format("Mon 15:04") },
		"dur":    short,
		"hours":  func(t time.Time) string { return t.UTC().Format("2006-01-02 15:04") },
		"base64": base64.StdEncoding.EncodeToString,
		"soon":   func(t time.Time) bool { return time.Until(t) < 60*24*time.Hour },
	}
	layout := template.Must(template.New("layout").Funcs(funcs).ParseFS(files, "templates/layout.html"))
	out := make(map[string]*template.Template, len(names))
	for _, n := range names {
		out[n] = template.Must(template.Must(layout.Clone()).ParseFS(files, "templates/"+n+".html"))
	}
	return out
}

// ciRun is a run and its URL in the CI system, "" if unknown.
type ciRun struct{ Number, URL string }

// short formats a duration in its largest unit.
func short(d time.Duration) string {
	if d < 0 {
		d = -d
	}
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%d s", int(d.Seconds()))
	case d < 2*time.Hour:
		return fmt.Sprintf("%d min", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h", int(d.Hours()))
	case d < 3*365*24*time.Hour:
		return fmt.Sprintf("%d days", int(d.Hours()/24))
	}
	return fmt.Sprintf("%d years", int(d.Hours()/24/365))
}

// count formats a number with its noun.
func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// severity returns the colour of an event. The event's text has the same meaning.
func severity(kind string) string {
	switch kind {
	case "issued", "connected":
		return "good"
	case "denied", "replay", "revoked", "blocked", "forbidden":
		return "bad"
	case "feed_stale", "rotation", "restored", "policy_loaded", "admin_link":
		return "note"
	}
	return "quiet"
}

// shownDetails are the details that an event's text already contains.
var shownDetails = []string{"engine", "remote_addr", "bytes_in", "bytes_out", "got", "until", "all", "certificates", "names", "rules", "up_to"}

// otherDetails returns an event's other details, sorted by name.
func otherDetails(e wire.Event) []fact {
	var out []fact
	for _, k := range slices.Sorted(maps.Keys(e.Detail)) {
		if !slices.Contains(shownDetails, k) {
			out = append(out, fact{Name: k, Value: e.Detail[k]})
		}
	}
	return out
}

// visible escapes, as \u, the unprintable characters of a rendered page, such as
// control and format characters. The templates have none, so all come from untrusted
// values. It runs after html/template has escaped these.
func visible(b []byte) []byte {
	keep := func(r rune) bool { return r == '\n' || unicode.IsPrint(r) }
	if bytes.IndexFunc(b, func(r rune) bool { return !keep(r) }) < 0 {
		return b
	}
	var out bytes.Buffer
	out.Grow(len(b) + 64)
	for _, r := range string(b) {
		switch {
		case keep(r):
			out.WriteRune(r)
		case r > 0xffff:
			fmt.Fprintf(&out, `\U%08x`, r)
		default:
			fmt.Fprintf(&out, `\u%04x`, r)
		}
	}
	return out.Bytes()
}

// chart is the overview's SVG: one bar per hour, denials on top of issuances.
type chart struct {
	Bars           []bar
	Ticks          []time.Time // hours along the axis, evenly spaced
	Width          int
	Issued, Denied int64
	Highest        int64
}

type bar struct {
	X, IssuedY, IssuedH, DeniedY, DeniedH int
	Start                                 time.Time
	Issued, Denied                        int64
}

const (
	chartHeight = 120
	barStep     = 12
	ticksEvery  = 12
)

func newChart(hours []Hour) chart {
	c := chart{Width: len(hours) * barStep, Highest: 1}
	for _, h := range hours {
		c.Highest = max(c.Highest, h.Issued+h.Denied)
		c.Issued, c.Denied = c.Issued+h.Issued, c.Denied+h.Denied
	}
	scale := func(n int64) int {
		h := int(n * chartHeight / c.Highest)
		if n > 0 && h < 2 {
			h = 2 // so that one denial among thousands is visible
		}
		return h
	}
	for i, h := range hours {
		b := bar{X: i * barStep, Start: h.Start, Issued: h.Issued, Denied: h.Denied, IssuedH: scale(h.Issued), DeniedH: scale(h.Denied)}
		b.IssuedY = chartHeight - b.IssuedH
		b.DeniedY = max(0, b.IssuedY-b.DeniedH)
		c.Bars = append(c.Bars, b)
		if i%ticksEvery == 0 {
			c.Ticks = append(c.Ticks, h.Start)
		}
	}
	return c
}
