package issuer

import (
	"context"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/mayfly-ca/mayfly/ca/store"
	"github.com/mayfly-ca/mayfly/client/wire"
)

// Metrics holds the Prometheus metrics in a registry of their own. Labels come from
// closed sets or from the policy file, never from a token.
type Metrics struct {
	registry *prometheus.Registry

	issuedTotal    *prometheus.CounterVec
	deniedTotal    *prometheus.CounterVec
	refusedTotal   *prometheus.CounterVec
	revokedTotal   prometheus.Counter
	reloadsTotal   *prometheus.CounterVec
	requestSeconds *prometheus.HistogramVec
	storeSeconds   *prometheus.HistogramVec
	storeErrors    *prometheus.CounterVec
	watchOnce      sync.Once
}

// NewMetrics returns an empty set of metrics.
func NewMetrics() *Metrics {
	m := &Metrics{
		registry: prometheus.NewRegistry(),
		issuedTotal: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mayfly_issuer_certificates_issued_total",
			Help: "Certificates issued; repeated counts those whose token was used for the same certificate before, since the answer was lost.",
		}, []string{"profile", "provider", "repeated"}),
		deniedTotal: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mayfly_issuer_denials_total",
			Help: "Verified tokens that got no certificate, by the claim that failed, or blocked, replay, floor.",
		}, []string{"reason"}),
		refusedTotal: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mayfly_issuer_problems_total", Help: "Requests answered with a problem, by its type.",
		}, []string{"problem"}),
		revokedTotal: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "mayfly_issuer_certificates_revoked_total", Help: "Certificates revoked by this process.",
		}),
		reloadsTotal: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mayfly_issuer_policy_reloads_total", Help: "Policy files read again, by result.",
		}, []string{"result"}),
		requestSeconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "mayfly_issuer_http_request_duration_seconds", Help: "Time to answer, by route and status.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 5, 30},
		}, []string{"route", "code"}),
		storeSeconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "mayfly_issuer_store_duration_seconds", Help: "Time of store operations, commit included.",
			Buckets: []float64{.0001, .0005, .001, .0025, .005, .01, .025, .05, .1, .5, 1, 5},
		}, []string{"operation"}),
		storeErrors: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mayfly_issuer_store_errors_total", Help: "Store operations that failed, refusals by the record excepted.",
		}, []string{"operation"}),
	}
	m.registry.MustRegister(m.issuedTotal, m.deniedTotal, m.refusedTotal, m.revokedTotal, m.reloadsTotal, m.requestSeconds, m.storeSeconds, m.storeErrors,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// Handler serves /metrics.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{Registry: m.registry, Timeout: 10 * time.Second, MaxRequestsInFlight: 4})
}

func (m *Metrics) issued(profile, provider string, repeated bool) {
	m.issuedTotal.WithLabelValues(profile, provider, strconv.FormatBool(repeated)).Inc()
}

// denied counts a denial. The reason comes from a closed set: the claims in the policy
// file and the reasons of this package.
func (m *Metrics) denied(reason string) {
	if reason == "" {
		reason = "no rule"
	}
	m.deniedTotal.WithLabelValues(reason).Inc()
}

func (m *Metrics) refused(problem string) { m.refusedTotal.WithLabelValues(problem).Inc() }
func (m *Metrics) revoked(n int)          { m.revokedTotal.Add(float64(n)) }

func (m *Metrics) reloaded(err error) {
	result := "loaded"
	if err != nil {
		result = "refused"
	}
	m.reloadsTotal.WithLabelValues(result).Inc()
}

func (m *Metrics) request(route string, status int, took time.Duration) {
	if route == wire.PathCRLWait {
		return // these requests wait on purpose and would hide the others
	}
	m.requestSeconds.WithLabelValues(route, strconv.Itoa(status)).Observe(took.Seconds())
}

// watch adds metrics that are read from s at each scrape. Only the first Server of a
// set is watched.
func (m *Metrics) watch(s *Server) {
	m.watchOnce.Do(func() { m.registry.MustRegister(newStateCollector(s)) })
}

// stateCollector reads the authority's state at each scrape.
type stateCollector struct {
	s                                            *Server
	expiry, crlAge, crlNumber, live, held, stale *prometheus.Desc
	policyLoaded                                 *prometheus.Desc
}

func newStateCollector(s *Server) *stateCollector {
	d := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("mayfly_issuer_"+name, help, labels, nil)
	}
	return &stateCollector{
		s:            s,
		expiry:       d("ca_expiry_seconds", "Seconds until the root, the intermediate or the root CRL ends.", "certificate"),
		crlAge:       d("crl_age_seconds", "Seconds since the newest CRL was signed."),
		crlNumber:    d("crl_number", "Number of the newest CRL."),
		live:         d("sessions_live", "Relayed connections that engines report as open; at most 5000 are counted."),
		held:         d("crl_waiters", "Requests held on crl/wait."),
		stale:        d("policy_stale", "1 when the policy file is not in force because it does not load."),
		policyLoaded: d("policy_loaded_timestamp_seconds", "When the policy in force was loaded."),
	}
}

// Describe implements prometheus.Collector.
func (c *stateCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.expiry, c.crlAge, c.crlNumber, c.live, c.held, c.stale, c.policyLoaded} {
		ch <- d
	}
}

// scrapeTimeout bounds the store queries of a scrape.
const scrapeTimeout = 5 * time.Second

// Collect implements prometheus.Collector. It leaves out values that cannot be read,
// because alerts look for absent series.
func (c *stateCollector) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), scrapeTimeout)
	defer cancel()
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	now := time.Now()
	for _, e := range c.s.authority.Expiries() {
		gauge(c.expiry, e.NotAfter.Sub(now).Seconds(), e.What)
	}
	gauge(c.held, float64(c.s.heldTotal.Load()))
	gauge(c.policyLoaded, float64(c.s.policies.load().loadedAt.Unix()))
	stale := 0.0
	if c.s.policies.Failed() != "" {
		stale = 1
	}
	gauge(c.stale, stale)
	if crls, err := c.s.authority.CRLs(ctx); err == nil {
		gauge(c.crlNumber, float64(crls.Number))
		gauge(c.crlAge, now.Sub(crls.SignedAt).Seconds())
	}
	if n, err := c.s.liveSessions(ctx); err == nil {
		gauge(c.live, float64(n))
	}
}

// liveSessions counts open relays, on up to ten pages.
func (s *Server) liveSessions(ctx context.Context) (int, error) {
	f := store.SessionFilter{Live: true, Now: time.Now().UTC(), Limit: wire.MaxListLimit}
	n := 0
	for range 10 {
		items, next, err := s.authority.Store().Sessions(ctx, f)
		if err != nil {
			return 0, err
		}
		n += len(items)
		if f.Cursor = next; next == "" {
			break
		}
	}
	return n, nil
}
