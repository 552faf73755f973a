package issuer

import (
	"context"
	"errors"
	"time"

	"github.com/mayfly-ca/mayfly/ca/store"
)

// timedStore measures the store operations that requests wait for. Close closes the
// underlying store.
type timedStore struct {
	store.Store
	m *Metrics
}

func (t timedStore) observe(operation string, start time.Time, err error) {
	t.m.storeSeconds.WithLabelValues(operation).Observe(time.Since(start).Seconds())
	if err == nil || errors.Is(err, context.Canceled) {
		return
	}
	if _, ok := problemFor(err); !ok {
		t.m.storeErrors.WithLabelValues(operation).Inc()
	}
}

// Record implements store.Store.
func (t timedStore) Record(ctx context.Context, c *store.Certificate, ev store.Event) (*store.Certificate, error) {
	start := time.Now()
	out, err := t.Store.Record(ctx, c, ev)
	t.observe("record", start, err)
	return out, err
}

// Revoke implements store.Store.
func (t timedStore) Revoke(ctx context.Context, r store.Revocation) (*store.RevocationResult, error) {
	start := time.Now()
	out, err := t.Store.Revoke(ctx, r)
	t.observe("revoke", start, err)
	return out, err
}

// Certificates implements store.Store.
func (t timedStore) Certificates(ctx context.Context, f store.CertificateFilter) ([]store.Certificate, string, error) {
	start := time.Now()
	items, next, err := t.Store.Certificates(ctx, f)
	t.observe("list_certificates", start, err)
	return items, next, err
}

// Events implements store.Store.
func (t timedStore) Events(ctx context.Context, f store.EventFilter) ([]store.Event, string, error) {
	start := time.Now()
	items, next, err := t.Store.Events(ctx, f)
	t.observe("list_events", start, err)
	return items, next, err
}

// ReportSessions implements store.Store.
func (t timedStore) ReportSessions(ctx context.Context, by store.SessionReporter, reports []store.SessionReport) (int, []store.SessionRefusal, error) {
	start := time.Now()
	n, refused, err := t.Store.ReportSessions(ctx, by, reports)
	t.observe("report_sessions", start, err)
	return n, refused, err
}

// PutStatus implements store.Store.
func (t timedStore) PutStatus(ctx context.Context, by store.SessionReporter, m store.MachineStatus) error {
	start := time.Now()
	err := t.Store.PutStatus(ctx, by, m)
	t.observe("put_status", start, err)
	return err
}

// Ping implements store.Store.
func (t timedStore) Ping(ctx context.Context) error {
	start := time.Now()
	err := t.Store.Ping(ctx)
	t.observe("ping", start, err)
	return err
}
