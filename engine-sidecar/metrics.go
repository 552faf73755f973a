package sidecar

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
)

// metrics holds the sidecar's metrics. Labels take values from closed sets.
type metrics struct {
	registry   *prometheus.Registry
	handshakes *prometheus.CounterVec // result
	refusals   *prometheus.CounterVec // reason
	ends       *prometheus.CounterVec // reason
	bytes      *prometheus.CounterVec // direction: in, out
	feed       *prometheus.CounterVec // event
	renewals   *prometheus.CounterVec // result
	reports    *prometheus.CounterVec // result: sent, refused, dropped
}

func newMetrics() *metrics {
	m := &metrics{registry: prometheus.NewRegistry()}
	vec := func(name, help, label string) *prometheus.CounterVec {
		c := prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "mayfly_sidecar", Name: name, Help: help}, []string{label})
		m.registry.MustRegister(c)
		return c
	}
	m.handshakes = vec("handshakes_total", "Connections by how far they came: ok, failed, limited.", "result")
	m.refusals = vec("refusals_total", "Authenticated connections that were refused.", "reason")
	m.ends = vec("relay_ends_total", "Relays by how they ended.", "reason")
	m.bytes = vec("relayed_bytes_total", "Bytes of ended relays: in is client to engine.", "direction")
	m.feed = vec("feed_events_total", "Troubles of the revocation feed.", "event")
	m.renewals = vec("certificate_requests_total", "Attempts to get the sidecar's own certificate.", "result")
	m.reports = vec("session_reports_total", "Reports of sessions to the issuer.", "result")
	m.registry.MustRegister(collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// watch registers the gauges that read s.
func (m *metrics) watch(s *sidecar) {
	gauge := func(name, help string, f func() float64) {
		m.registry.MustRegister(prometheus.NewGaugeFunc(
			prometheus.GaugeOpts{Namespace: "mayfly_sidecar", Name: name, Help: help}, f))
	}
	gauge("relays", "Live relays.", func() float64 { return float64(s.gate.Counts().Relays) })
	gauge("control_connections", "Live control connections.", func() float64 { return float64(s.gate.Counts().Controls) })
	gauge("half_open", "Connections that are not authenticated yet.", func() float64 { return float64(s.pending.len()) })
	gauge("feed_age_seconds", "Age of the revocation feed; -1 without one.", func() float64 {
		if s.checker.Number() == 0 {
			return -1
		}
		return s.checker.Age().Seconds()
	})
	gauge("feed_number", "CRL number of the revocation feed.", func() float64 { return float64(s.checker.Number()) })
	gauge("certificate_seconds_left", "Until the sidecar's own certificate ends; -1 without one.", func() float64 {
		c := s.own.now.Load()
		if c == nil {
			return -1
		}
		return time.Until(c.Response.NotAfter).Seconds()
	})
	gauge("ready", "1 while clients are admitted.", func() float64 {
		if s.notReadyReason() == "" {
			return 1
		}
		return 0
	})
	gauge("session_reports_waiting", "Reports of sessions not sent yet.", func() float64 { return float64(s.reporter.waiting()) })
}
