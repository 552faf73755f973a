package storetest

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/ca/store"
)

// page asks for one page, and for the next page at its next call.
type page func(ctx context.Context, s store.Store) error

// BenchmarkLists measures pages of 100 over the rows of Seed. It runs each filter,
// alone and with each status, for every kind, and each kind for the first, second,
// middle and last page. It reports the median, the 99th percentile and the slowest
// page, so that a slow kind is visible.
func BenchmarkLists(b *testing.B, driver, dsn string, o Open) {
	rows := BenchRows()
	Seed(b, driver, dsn, rows)
	s := open(b, o)
	ctx := context.Background()
	for _, list := range slices.Concat(certificateLists(), eventLists(), sessionLists(), revocations()) {
		b.Run(list.name, func(b *testing.B) {
			var took []time.Duration
			worst := 0
			for i := 0; b.Loop(); i++ {
				start := time.Now()
				err := list.pages[i%len(list.pages)](ctx, s)
				if took = append(took, time.Since(start)); err != nil {
					b.Fatal(err)
				}
				if took[i] > took[worst] {
					worst = i
				}
			}
			which := worst % len(list.pages)
			slices.Sort(took)
			ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(ms(took[len(took)/2]), "p50-ms")
			b.ReportMetric(ms(took[len(took)*99/100]), "p99-ms")
			b.ReportMetric(ms(took[len(took)-1]), "max-ms")
			b.ReportMetric(float64(which), "worst-page") // in the order of list.pages
		})
	}
}

type benchList struct {
	name  string
	pages []page
}

// ages are points of the year at which a page ends: now, the middle, the beginning.
var ages = []time.Duration{0, 180 * 24 * time.Hour, 365 * 24 * time.Hour}

// ago returns nil for 0.
func ago(d time.Duration) *time.Time {
	if d == 0 {
		return nil
	}
	t := time.Now().Add(-d)
	return &t
}

// certificatePages returns the pages of f before each age, and the second page.
func certificatePages(f store.CertificateFilter) []page {
	f.Limit = 100
	var pages []page
	second := ""
	for _, age := range ages {
		f := f
		f.Until = ago(age)
		pages = append(pages, func(ctx context.Context, s store.Store) error {
			_, next, err := s.Certificates(ctx, f)
			if age == 0 {
				second = next
			}
			return err
		})
	}
	return append(pages, func(ctx context.Context, s store.Store) error {
		f := f
		f.Cursor = second
		_, _, err := s.Certificates(ctx, f)
		return err
	})
}

func certificateLists() []benchList {
	var lists []benchList
	add := func(name string, filters ...store.CertificateFilter) {
		l := benchList{name: "certificates/" + name}
		for _, f := range filters {
			l.pages = append(l.pages, certificatePages(f)...)
		}
		lists = append(lists, l)
	}
	of := func(status string, match func(kind string) store.Match) []store.CertificateFilter {
		var filters []store.CertificateFilter
		for _, kind := range kinds {
			filters = append(filters, store.CertificateFilter{Match: match(kind), Status: status})
		}
		return filters
	}
	since := ago(90 * 24 * time.Hour)
	for _, status := range []string{"", "valid", "expired", "revoked"} {
		name := func(filter string) string {
			if status == "" {
				return filter
			}
			return filter + "+" + status
		}
		add(name("all"), store.CertificateFilter{Status: status})
		add(name("repository"), of(status, func(k string) store.Match { return store.Match{Repository: repositoryOf(k)} })...)
		add(name("repository_id"), of(status, func(k string) store.Match { return store.Match{RepositoryID: k} })...)
		add(name("run_id"), of(status, func(k string) store.Match { return store.Match{RunID: runOf(k)} })...)
		add(name("actor"), of(status, func(k string) store.Match { return store.Match{Actor: actorOf(k)} })...)
		add(name("identity"), of(status, func(k string) store.Match { return store.Match{Identity: identityOf(k)} })...)
		add(name("profile"), store.CertificateFilter{Status: status, Match: store.Match{Profile: "client"}},
			store.CertificateFilter{Status: status, Match: store.Match{Profile: "server"}})
		add(name("since"), store.CertificateFilter{Status: status, Match: store.Match{Since: since}})
		add(name("serial"), store.CertificateFilter{Status: status, SerialPrefix: "a"}, store.CertificateFilter{Status: status, SerialPrefix: "ab"},
			store.CertificateFilter{Status: status, SerialPrefix: "abcdef"})
		add(name("repository+actor"), store.CertificateFilter{Status: status, Match: store.Match{Repository: repositoryOf(kindBig), Actor: "a6"}},
			store.CertificateFilter{Status: status, Match: store.Match{Repository: repositoryOf(kindBig), Actor: actorOf(kindBig)}},
			store.CertificateFilter{Status: status, Match: store.Match{Repository: repositoryOf(kindBig), Actor: actorOf(kindNone)}})
	}
	return lists
}

func eventLists() []benchList {
	var lists []benchList
	add := func(name string, filters ...store.EventFilter) {
		l := benchList{name: "events/" + name}
		for _, f := range filters {
			f.Limit = 100
			second := ""
			for _, age := range ages {
				f := f
				f.Until = ago(age)
				l.pages = append(l.pages, func(ctx context.Context, s store.Store) error {
					_, next, err := s.Events(ctx, f)
					if age == 0 {
						second = next
					}
					return err
				})
			}
			l.pages = append(l.pages, func(ctx context.Context, s store.Store) error {
				f := f
				f.Cursor = second
				_, _, err := s.Events(ctx, f)
				return err
			})
		}
		lists = append(lists, l)
	}
	types := []string{"", store.EventIssued, store.EventDenied, store.EventRevoked, store.EventRotation}
	since := ago(90 * 24 * time.Hour)
	for _, t := range types {
		name := func(filter string) string {
			if t == "" {
				return filter
			}
			return filter + "+" + t
		}
		var repositories, runs []store.EventFilter
		for _, k := range kinds {
			repositories = append(repositories, store.EventFilter{Type: t, Repository: repositoryOf(k)})
			if t == "" {
				runs = append(runs, store.EventFilter{RunID: runOf(k)})
			}
		}
		if t != "" { // no run has more than a few events of one type
			runs = []store.EventFilter{{Type: t, RunID: "run100"}, {Type: t, RunID: runOf(kindNone)}}
		}
		add(name("all"), store.EventFilter{Type: t})
		add(name("repository"), repositories...)
		add(name("run_id"), runs...)
		add(name("since"), store.EventFilter{Type: t, Since: since})
		add(name("serial"), store.EventFilter{Type: t, Serial: "abababababababababababababababab"})
	}
	return lists
}

func sessionLists() []benchList {
	var lists []benchList
	add := func(name string, filters ...store.SessionFilter) {
		for _, live := range []bool{false, true} {
			l := benchList{name: "sessions/" + name}
			if live {
				l.name += "+live"
			}
			for _, f := range filters {
				f.Limit, f.Live = 100, live
				second := ""
				l.pages = append(l.pages, func(ctx context.Context, s store.Store) error {
					_, next, err := s.Sessions(ctx, f)
					second = next
					return err
				}, func(ctx context.Context, s store.Store) error {
					f := f
					f.Cursor = second
					_, _, err := s.Sessions(ctx, f)
					return err
				})
			}
			lists = append(lists, l)
		}
	}
	var repositories, runs, serials []store.SessionFilter
	for _, k := range kinds {
		repositories = append(repositories, store.SessionFilter{Repository: repositoryOf(k)})
		runs = append(runs, store.SessionFilter{RunID: runOf(k)})
		serials = append(serials, store.SessionFilter{Serial: "serial-" + k})
	}
	add("all", store.SessionFilter{})
	add("repository", repositories...)
	add("run_id", runs...)
	add("serial", serials...)
	add("engine", store.SessionFilter{Engine: "default"}, store.SessionFilter{Engine: "other"}, store.SessionFilter{Engine: "none"})
	return lists
}

// revocations are dry runs, as in the admin page's preview.
func revocations() []benchList {
	list := func(name string, r store.Revocation) benchList {
		r.DryRun, r.Block = true, 24*time.Hour
		return benchList{"revoke/" + name, []page{func(ctx context.Context, s store.Store) error {
			_, err := s.Revoke(ctx, r)
			return err
		}}}
	}
	return []benchList{
		list("big", store.Revocation{Match: store.Match{Repository: repositoryOf(kindBig)}}),
		list("revoked", store.Revocation{Match: store.Match{RepositoryID: kindRevoked}}),
		list("busy", store.Revocation{Match: store.Match{Actor: actorOf(kindBusy)}}),
		list("small", store.Revocation{Match: store.Match{Identity: identityOf(kindSmall)}}),
		list("run", store.Revocation{Match: store.Match{RunID: runOf(kindOld)}}),
		list("live", store.Revocation{Match: store.Match{Repository: repositoryOf(kindLive)}}), // a hundredth of all
		list("all", store.Revocation{All: true}),
	}
}
