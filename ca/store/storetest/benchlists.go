package storetest

import (
	"context"
	"fmt"
	"os"
	"sort"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/ca/store"
)

// BenchRows is how many certificates a benchmark lists, and a fifth of how many
// events: MAYFLY_BENCH_ROWS, or a million.
func BenchRows() int {
	if n, err := strconv.Atoi(os.Getenv("MAYFLY_BENCH_ROWS")); err == nil && n > 0 {
		return n
	}
	return 1_000_000
}

// Seed fills the tables of d with rows of a year: a repository with half of
// them all, many with a few, one revoked in fifty. random is SQL for 16 bytes
// that differ with i.
func Seed(b *testing.B, d Database, rows int, random string) {
	newest := time.Now().Add(-time.Minute).UnixMicro()
	const spacing = 31_000_000 // microseconds: a year of a million
	at := func(n int) string { return fmt.Sprintf("(%d - (%d - i) * %d)", newest, n, spacing) }
	numbers := func(n int) string {
		return fmt.Sprintf("WITH RECURSIVE n(i) AS (SELECT CAST(1 AS BIGINT) UNION ALL SELECT i + 1 FROM n WHERE i < %d) ", n)
	}
	repo := "CASE WHEN i % 2 = 0 THEN 'octo/big' ELSE 'octo/r' || (i % 5000) END"
	d.Exec(b, numbers(rows)+"INSERT INTO certificates SELECT "+at(rows)+" * 1024, "+random+
		", CASE WHEN i % 1000 = 0 THEN 'server' ELSE 'client' END, 'github', 'spiffe://ci.example.com/github/1/' || (i % 5000), 'rule', 'r', '[\"default\"]', "+
		repo+", CASE WHEN i % 2 = 0 THEN '1' ELSE '' || (i % 5000) END, 'run' || (i / 4), CASE WHEN i % 3 = 0 THEN 'bot' ELSE 'a' || (i % 700) END,"+
		" 'https://token.example.com', 'id' || i, 1, "+at(rows)+", "+random+", "+random+", "+at(rows)+", "+at(rows)+" + 3600000000, 0 FROM n")
	d.Exec(b, "INSERT INTO revocations SELECT id, id, serial, aki, not_after, id / 1024, 'ops', 'bench' FROM certificates WHERE (id / 1024 / "+strconv.Itoa(spacing)+") % 50 = 0")
	events := 5 * rows
	d.Exec(b, numbers(events)+"INSERT INTO events SELECT i, "+at(events)+", CASE WHEN i % 100 = 0 THEN 'denied' WHEN i % 5000 = 1 THEN 'revoked' ELSE 'issued' END, 'ann', '', 'spiffe://x', "+
		repo+", 'run' || (i / 20), 'rule', 'why', 1, '' FROM n")
	d.Exec(b, "INSERT INTO links SELECT seq, seq, time, "+strings.ReplaceAll(random, "i::text", "seq::text")+" FROM events")
	d.Exec(b, fmt.Sprintf("UPDATE state SET head_seq = %d, head_time = %d", events, newest))
	d.Exec(b, "ANALYZE")
}

// BenchmarkLists measures pages of 100, each filter at pages from the newest
// on, and reports p50 and p99 of what a page takes.
func BenchmarkLists(b *testing.B, d Database, random string) {
	rows := BenchRows()
	Seed(b, d, rows, random)
	s := open(b, d.Open)
	ctx := context.Background()
	since, until := time.Now().Add(-90*24*time.Hour), time.Now().Add(-60*24*time.Hour)
	certificates := func(f store.CertificateFilter) func(string) (string, error) {
		return func(cursor string) (string, error) {
			f.Cursor, f.Limit = cursor, 100
			_, next, err := s.Certificates(ctx, f)
			return next, err
		}
	}
	events := func(f store.EventFilter) func(string) (string, error) {
		return func(cursor string) (string, error) {
			f.Cursor, f.Limit = cursor, 100
			_, next, err := s.Events(ctx, f)
			return next, err
		}
	}
	m := func(m store.Match) store.CertificateFilter { return store.CertificateFilter{Match: m} }
	for _, list := range []struct {
		name string
		page func(cursor string) (string, error)
	}{
		{"all", certificates(m(store.Match{}))},
		{"repository/big", certificates(m(store.Match{Repository: "octo/big"}))},
		{"repository/small", certificates(m(store.Match{Repository: "octo/r77"}))},
		{"repository_id", certificates(m(store.Match{RepositoryID: "77"}))},
		{"run_id", certificates(m(store.Match{RunID: fmt.Sprintf("run%d", rows/8)}))},
		{"actor", certificates(m(store.Match{Actor: "a5"}))},
		{"identity", certificates(m(store.Match{Identity: "spiffe://ci.example.com/github/1/77"}))},
		{"client", certificates(m(store.Match{Profile: "client"}))},
		{"server", certificates(m(store.Match{Profile: "server"}))},
		{"since-until", certificates(m(store.Match{Since: &since, Until: &until}))},
		{"valid", certificates(store.CertificateFilter{Status: "valid"})},
		{"expired", certificates(store.CertificateFilter{Status: "expired"})},
		{"revoked", certificates(store.CertificateFilter{Status: "revoked"})},
		{"revoked+big", certificates(store.CertificateFilter{Status: "revoked", Match: store.Match{Repository: "octo/big"}})},
		{"revoked+small", certificates(store.CertificateFilter{Status: "revoked", Match: store.Match{Repository: "octo/r77"}})},
		{"big+actor", certificates(m(store.Match{Repository: "octo/big", Actor: "a5"}))},
		{"prefix1", certificates(store.CertificateFilter{SerialPrefix: "a"})},
		{"prefix2", certificates(store.CertificateFilter{SerialPrefix: "ab"})},
		{"prefix6", certificates(store.CertificateFilter{SerialPrefix: "abcdef"})},
		{"nothing", certificates(m(store.Match{Repository: "octo/nothing"}))},
		{"events/all", events(store.EventFilter{})},
		{"events/type", events(store.EventFilter{Type: "denied"})},
		{"events/revoked", events(store.EventFilter{Type: "revoked"})},
		{"events/repository", events(store.EventFilter{Repository: "octo/r77"})},
		{"events/run", events(store.EventFilter{RunID: fmt.Sprintf("run%d", rows/8)})},
		{"events/times", events(store.EventFilter{Since: &since, Until: &until})},
		{"events/type+times", events(store.EventFilter{Type: "denied", Since: &since, Until: &until})},
	} {
		b.Run(list.name, func(b *testing.B) {
			var took []time.Duration
			cursor := ""
			for b.Loop() {
				start := time.Now()
				next, err := list.page(cursor)
				took = append(took, time.Since(start))
				if err != nil {
					b.Fatal(err)
				}
				cursor = next
			}
			sort.Slice(took, func(i, j int) bool { return took[i] < took[j] })
			b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-us")
			b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-us")
		})
	}
}
