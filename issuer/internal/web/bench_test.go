package web_test

import (
	"fmt"
	"net/http"
	"slices"
	"testing"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib"
	_ "modernc.org/sqlite"

	"github.com/mayfly-ca/mayfly/ca/catest"
	"github.com/mayfly-ca/mayfly/ca/store/storetest"
	"github.com/mayfly-ca/mayfly/issuer"
	"github.com/mayfly-ca/mayfly/issuer/issuertest"
)

// BenchmarkPages measures each page over 1,000,000 certificates, 5,000,000 events and
// 1,000,000 sessions (MAYFLY_BENCH_ROWS certificates): from an admin's request over
// TLS on loopback to the response's last byte. It reports the median, the 99th
// percentile and the maximum.
func BenchmarkPages(b *testing.B) {
	b.Run("sqlite", func(b *testing.B) {
		benchmarkPages(b, "", "sqlite")
	})
	b.Run("postgres", func(b *testing.B) {
		benchmarkPages(b, catest.StartPostgres(b).Database(b), "pgx")
	})
}

func benchmarkPages(b *testing.B, dsn, driver string) {
	i := issuertest.Start(b, issuertest.Options{Store: dsn, Config: func(c *issuer.Config) { c.Rate = issuer.RateConfig{} }})
	if err := i.Stop(); err != nil {
		b.Fatal(err)
	}
	rows := storetest.BenchRows()
	storetest.Seed(b, driver, i.Config.Store, rows)
	i.Restart()
	issued, err := i.Issue(i.GitHubToken(map[string]any{"repository": "octo/big"}))
	if err != nil {
		b.Fatal(err)
	}
	admin := loggedIn(b, i, issuertest.Admin)
	run := fmt.Sprint("run", rows/8)
	ago := func(days int) string { return time.Now().AddDate(0, 0, -days).UTC().Format("2006-01-02T15:04") }
	for _, p := range []struct{ name, path string }{
		{"overview", "/"},
		{"certificates", "/certificates"},
		{"certificates/repository", "/certificates?repository=octo%2Fr77"},
		{"certificates/big-repository", "/certificates?repository=octo%2Fbig"},
		{"certificates/run", "/certificates?run_id=" + run},
		{"certificates/actor", "/certificates?actor=a5"},
		{"certificates/serial", "/certificates?serial=ab"},
		{"certificates/valid", "/certificates?status=valid"},
		{"certificates/expired", "/certificates?status=expired"},
		{"certificates/revoked", "/certificates?status=revoked"},
		{"certificates/revoked-repository", "/certificates?status=revoked&repository=octo%2Fbig"},
		{"certificates/repository-actor", "/certificates?repository=octo%2Fbig&actor=a5"},
		{"certificates/day", "/certificates?time=day"},
		{"certificates/between-repository", "/certificates?repository=octo%2Fbig&from=" + ago(200) + "&to=" + ago(100)},
		{"certificates/none", "/certificates?repository=octo%2Fnone"},
		{"certificate", "/certificates/" + issued.Serial},
		{"revoke/serial", "/revocations?serial=" + issued.Serial},
		{"revoke/repository", "/revocations?repository=octo%2Fbig"},
		{"sessions", "/sessions"},
		{"sessions/ended", "/sessions?ended=yes"},
		{"sessions/ended-repository", "/sessions?ended=yes&repository=octo%2Fr77"},
		{"sessions/ended-engine-repository", "/sessions?ended=yes&engine=other&repository=octo%2Fbig"},
		{"sessions/cut", "/sessions?cut=yes"},
		{"sessions/day", "/sessions?ended=yes&time=day"},
		{"sessions/between-engine", "/sessions?ended=yes&engine=other&from=" + ago(200) + "&to=" + ago(100)},
		{"engines", "/engines"},
		{"events", "/events"},
		{"events/day", "/events?time=day"},
		{"events/denied-between", "/events?type=denied&from=" + ago(200) + "&to=" + ago(100)},
		{"events/denied", "/events?type=denied"},
		{"events/repository", "/events?repository=octo%2Fr77"},
		{"events/run", "/events?run_id=" + run},
		{"events/serial", "/events?serial=" + issued.Serial},
		{"events/revoked-repository", "/events?type=revoked&repository=octo%2Fr77"},
		{"events/denied-big-repository", "/events?type=denied&repository=octo%2Fbig"},
		{"events/none", "/events?type=rotation&repository=octo%2Fbig"},
		{"blocks", "/blocks"},
		{"policy", "/policy"},
	} {
		b.Run(p.name, func(b *testing.B) { admin.times(b, p.path) })
	}
}

// times loads a page until the benchmark has enough samples.
func (b *browser) times(t *testing.B, path string) {
	b.t = t
	var took []time.Duration
	for t.Loop() {
		start := time.Now()
		resp, body := b.get(path)
		took = append(took, time.Since(start))
		if resp.StatusCode != http.StatusOK {
			t.Fatalf("%s: %s\n%s", path, resp.Status, body)
		}
	}
	slices.Sort(took)
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	t.ReportMetric(0, "ns/op")
	t.ReportMetric(ms(took[len(took)/2]), "p50-ms")
	t.ReportMetric(ms(took[len(took)*99/100]), "p99-ms")
	t.ReportMetric(ms(took[len(took)-1]), "max-ms")
}
