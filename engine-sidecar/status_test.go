package sidecar_test

import (
	"net"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// countedEngine is an engine's listener that counts its connections.
type countedEngine struct {
	net.Listener
	n atomic.Int32
}

func (e *countedEngine) Accept() (net.Conn, error) {
	c, err := e.Listener.Accept()
	if err == nil {
		e.n.Add(1)
	}
	return c, err
}

// TestReadyAsksTheEngine: /readyz reports that the engine's socket is gone or
// silent. Many callers cause one probe, and /healthz causes none.
func TestReadyAsksTheEngine(t *testing.T) {
	t.Parallel()
	w := setUp(t)
	engine := &countedEngine{Listener: w.engine}
	w.engine = engine
	w.echo()
	w.run()
	ready := func() bool { code, _ := w.get("/readyz"); return code == 200 }
	eventually(t, "ready", ready)
	before, began := engine.n.Load(), time.Now()
	var callers sync.WaitGroup
	for range 50 {
		callers.Go(func() { w.get("/readyz") })
	}
	callers.Wait()
	if n, most := engine.n.Load()-before, int32(time.Since(began)/(2*time.Second))+1; n > most {
		t.Errorf("50 callers caused %d probes, want at most %d", n, most)
	}

	engine.Close() // also removes the socket's file
	eventually(t, "not ready without the socket", func() bool {
		code, body := w.get("/readyz")
		return code == 503 && contains(body, "the engine does not answer")
	})
	if code, _ := w.get("/healthz"); code != 200 {
		t.Errorf("healthz: %d", code)
	}
	if _, body := w.get("/metrics"); !contains(body, "mayfly_sidecar_ready 0") {
		t.Error("the metric says ready")
	}
	again, err := net.Listen("unix", w.cfg.EngineSocket)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	w.engine = again // accepts, but does not answer
	eventually(t, "not ready while the engine is silent", func() bool {
		code, body := w.get("/readyz")
		return code == 503 && contains(body, "silent")
	})
	w.echo()
	eventually(t, "ready again", ready)

	if err := os.Remove(w.cfg.EngineSocket); err != nil {
		t.Fatal(err)
	}
	counted, err := net.Listen("unix", w.cfg.EngineSocket)
	if err != nil {
		t.Fatal(err)
	}
	defer counted.Close()
	engine = &countedEngine{Listener: counted}
	w.engine = engine
	w.echo()
	for range 20 {
		w.get("/healthz")
	}
	if n := engine.n.Load(); n != 0 {
		t.Errorf("healthz caused %d probes", n)
	}
}
