package sidecar_test

import (
	"io"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"github.com/mayfly-ca/mayfly/client/clienttest"
	"github.com/mayfly-ca/mayfly/client/wire"
)

func TestRelayAndStop(t *testing.T) {
	t.Parallel()
	w := start(t)
	conn := w.admitted(w.clientCert(nil))
	if err := conn.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Read(make([]byte, 1)); err != io.EOF {
		t.Fatalf("after half-close: %v", err)
	}
	conn.Close()
	code, _ := w.get("/readyz")
	if code != 200 {
		t.Fatalf("readyz: %d", code)
	}
	_, body := w.get("/metrics")
	if !strings.Contains(body, "mayfly_sidecar_feed_number 1") {
		t.Fatalf("metrics:\n%s", body)
	}
	faults, err := promlint.New(strings.NewReader(body)).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range faults {
		t.Errorf("metric %s: %s", f.Metric, f.Text)
	}
	w.stop()
	if out := <-w.done; out.exit != 0 || out.err != nil {
		t.Fatalf("ended with %d, %v\n%s", out.exit, out.err, w.log)
	}
	if !w.log.has("relay ended", "reason=closed", "bytes_in=4", "run=77/1/5") {
		t.Fatalf("log:\n%s", w.log)
	}
}

func TestWrongEngine(t *testing.T) { // ATTACKS 39
	t.Parallel()
	w := start(t)
	w.admitted(w.clientCert(nil))
	w.refusedWith(w.clientCert(func(l *clienttest.Leaf) { l.Engines = []string{"other"} }), wire.ReasonWrongEngine)
}
