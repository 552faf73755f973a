package issuer

import (
	"context"
	"errors"
	"time"

	"github.com/mayfly-ca/mayfly/ca"
)

// timedStore measures the operations of a store that requests wait for. Close
// closes the store below.
type timedStore struct {
	ca.Store
	m *Metrics
}

func (t timedStore) observe(operation string, start time.Time, err error) {
	t.m.storeSeconds.WithLabelValues(operation).Observe(time.Since(start).Seconds())
	if err == nil || errors.Is(err, context.Canceled) {
		return
	}
	if _, ok := named(err); !ok {
		t.m.storeErrors.WithLabelValues(operation).Inc()
	}
}

// Record implements ca.Store.
func (t timedStore) Record(ctx context.Context, c *ca.Certificate, ev ca.Event) (*ca.Certificate, error) {
	start := time.Now()
	out, err := t.Store.Record(ctx, c, ev)
	t.observe("record", start, err)
	return out, err
}

// Revoke implements ca.Store.
func (t timedStore) Revoke(ctx context.Context, r ca.Revocation) (*ca.RevocationResult, error) {
	start := time.Now()
	out, err := t.Store.Revoke(ctx, r)
	t.observe("revoke", start, err)
	return out, err
}

// Certificates implements ca.Store.
func (t timedStore) Certificates(ctx context.Context, f ca.CertificateFilter) ([]ca.Certificate, string, error) {
	start := time.Now()
	items, next, err := t.Store.Certificates(ctx, f)
	t.observe("list_certificates", start, err)
	return items, next, err
}

// Events implements ca.Store.
func (t timedStore) Events(ctx context.Context, f ca.EventFilter) ([]ca.Event, string, error) {
	start := time.Now()
	items, next, err := t.Store.Events(ctx, f)
	t.observe("list_events", start, err)
	return items, next, err
}

// ReportSessions implements ca.Store.
func (t timedStore) ReportSessions(ctx context.Context, by ca.SessionReporter, reports []ca.SessionReport) (int, []ca.SessionRefusal, error) {
	start := time.Now()
	n, refused, err := t.Store.ReportSessions(ctx, by, reports)
	t.observe("report_sessions", start, err)
	return n, refused, err
}

// PutStatus implements ca.Store.
func (t timedStore) PutStatus(ctx context.Context, by ca.SessionReporter, m ca.MachineStatus) error {
	start := time.Now()
	err := t.Store.PutStatus(ctx, by, m)
	t.observe("put_status", start, err)
	return err
}

// Ping implements ca.Store.
func (t timedStore) Ping(ctx context.Context) error {
	start := time.Now()
	err := t.Store.Ping(ctx)
	t.observe("ping", start, err)
	return err
}
