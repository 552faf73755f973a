package web

import (
	"maps"
	"net/http"
	"net/url"
	"time"
)

// span is a list's time filter, as its form shows it.
type span struct {
	Choice   string // "", hour, day, week, or between for From and To
	From, To string // in UTC, as a datetime-local field writes them
}

// spans are the choices that end now.
var spans = map[string]time.Duration{"hour": time.Hour, "day": 24 * time.Hour, "week": 7 * 24 * time.Hour}

// spanFields are the parameters of a span. at is the time of the request for the first
// page, so that the next pages have the same span.
var spanFields = []string{"time", "from", "to", "at"}

// between reads the time filter of a page's query and adds since and until to ask, the
// API's query. next is the query for the next page, without its cursor. Errors are
// *refusal.
func between(query, ask url.Values) (s span, next url.Values, err error) {
	next = maps.Clone(query)
	for _, name := range spanFields {
		next.Del(name)
	}
	s = span{query.Get("time"), query.Get("from"), query.Get("to")}
	if !query.Has("time") && s.From+s.To != "" {
		s.Choice = "between" // for a link written by hand: the form always has time
	}
	switch length := spans[s.Choice]; {
	case length > 0:
		at := time.Now().UTC()
		if query.Get("at") != "" {
			if at, err = time.Parse(time.RFC3339, query.Get("at")); err != nil {
				return s, nil, &refusal{http.StatusBadRequest, "The time of the first page is not understood: search again.", err}
			}
		}
		s.From, s.To = "", ""
		ask.Set("since", at.Add(-length).Format(time.RFC3339))
		next.Set("time", s.Choice)
		next.Set("at", at.Format(time.RFC3339))
		return s, next, nil
	case s.Choice == "":
		return span{}, next, nil
	case s.Choice != "between":
		return s, nil, &refusal{http.StatusBadRequest, "There is no such choice of times: search again.", nil}
	}
	next.Set("time", s.Choice)
	for _, end := range []struct{ field, value, to string }{{"from", s.From, "since"}, {"to", s.To, "until"}} {
		if end.value == "" {
			continue
		}
		at, err := parseLocal(end.value)
		if err != nil {
			return s, nil, &refusal{http.StatusBadRequest, "A time is not understood: write it as 2026-01-02T15:04, in UTC.", err}
		}
		ask.Set(end.to, at.Format(time.RFC3339))
		next.Set(end.field, end.value)
	}
	return s, next, nil
}

// parseLocal parses a datetime-local field as UTC.
func parseLocal(s string) (time.Time, error) {
	at, err := time.Parse("2006-01-02T15:04", s)
	if err != nil {
		at, err = time.Parse("2006-01-02T15:04:05", s)
	}
	return at, err
}
