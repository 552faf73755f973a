package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"strconv"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/mayfly-ca/mayfly/client"
)

const (
	// perJob is the number of relays of one run. The sidecar admits 256.
	perJob = 250
	// dialers is the number of relays that are opened at the same time.
	dialers = 8
	// rotating is a server certificate's lifetime with which the sidecar
	// renews after 22 s. NotBefore is a minute before the issue.
	rotating = 30 * time.Second
)

// hold opens relays, waits for a restart of the issuer and a change of the
// sidecar's certificate, and counts the relays that still carry bytes.
func hold(ctx context.Context, o options, out io.Writer) error {
	s, err := newStand(ctx, o, rotating)
	if err != nil {
		return err
	}
	defer s.close()
	at, err := s.startSidecar(ctx, standIn, fmt.Sprintf("MAYFLY_SIDECAR_LIMITS_CONNECTIONS=%d", o.count+100), "MAYFLY_SIDECAR_LIMITS_HANDSHAKE_RATE=5000")
	if err != nil {
		return err
	}
	defer at.stop()
	before, err := at.usage()
	if err != nil {
		return err
	}
	h, err := s.openAll(ctx, at, o.count)
	defer h.close()
	if err != nil {
		return err
	}
	full, err := at.usage()
	if err != nil {
		return err
	}
	certificates, healed := len(at.lines(`"certificate received"`)), len(at.lines("revocation feed works again"))
	s.issuer.stop()
	if _, err := at.awaitMore(ctx, len(at.lines("revocation feed fails"))-1, "revocation feed fails"); err != nil {
		return err
	}
	if err := s.serve(ctx); err != nil {
		return err
	}
	if _, err := at.awaitMore(ctx, healed, "revocation feed works again"); err != nil {
		return err
	}
	if _, err := at.awaitMore(ctx, certificates, `"certificate received"`); err != nil {
		return err
	}
	dropped := h.dropped()
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "relays\topened in\tmemory each: resident\theap and stacks\tcertificates of the sidecar\tissuer's starts\tdropped\n")
	fmt.Fprintf(w, "%d\t%v\t%.1f KB\t%.1f KB\t%d\t%d\t%d\n", o.count, h.took.Round(10*time.Millisecond),
		float64(full.resident-before.resident)/float64(o.count)/1000, float64(full.inUse-before.inUse)/float64(o.count)/1000,
		len(at.lines(`"certificate received"`)), 2, dropped)
	if err := w.Flush(); err != nil {
		return err
	}
	if dropped > 0 {
		return fmt.Errorf("%d relays were dropped", dropped)
	}
	return nil
}

// held holds relays and the jobs that opened them.
type held struct {
	took  time.Duration
	mu    sync.Mutex
	jobs  []*client.Client
	conns []net.Conn
}

// openAll opens count relays, with as many jobs as needed.
func (s *stand) openAll(ctx context.Context, at *sidecar, count int) (*held, error) {
	h := &held{}
	began := time.Now()
	for i := 0; i < count; i += perJob {
		c, err := s.client(ctx, at, fmt.Sprint(9000+i))
		if err != nil {
			return h, err
		}
		h.jobs = append(h.jobs, c)
	}
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	next := make(chan int)
	var wg sync.WaitGroup
	for range dialers {
		wg.Go(func() {
			for i := range next {
				conn, err := h.jobs[i/perJob].DialContext(ctx, "tcp", "default")
				if err == nil {
					err = ping(conn)
				}
				if err != nil {
					fail(fmt.Errorf("relay %d: %w", i, err))
					return
				}
				h.mu.Lock()
				h.conns = append(h.conns, conn)
				h.mu.Unlock()
			}
		})
	}
	for i := range count {
		select {
		case next <- i:
		case <-ctx.Done():
		}
	}
	close(next)
	wg.Wait()
	h.took = time.Since(began)
	return h, context.Cause(ctx)
}

// dropped counts the relays that no longer carry bytes.
func (h *held) dropped() int {
	n := 0
	for _, conn := range h.conns {
		if ping(conn) != nil {
			n++
		}
	}
	return n
}

func (h *held) close() {
	for _, c := range h.jobs {
		_ = c.Close()
	}
}

// usage is the memory of a sidecar, in bytes.
type usage struct{ resident, inUse int64 }

var gauge = regexp.MustCompile(`(?m)^(process_resident_memory_bytes|go_memstats_heap_inuse_bytes|go_memstats_stack_inuse_bytes) (\S+)$`)

// usage reads the memory from the sidecar's metrics.
func (s *sidecar) usage() (usage, error) {
	res, err := http.Get("http://" + s.status + "/metrics")
	if err != nil {
		return usage{}, err
	}
	defer res.Body.Close()
	data, err := io.ReadAll(res.Body)
	if err != nil {
		return usage{}, err
	}
	var u usage
	for _, m := range gauge.FindAllSubmatch(data, -1) {
		n, err := strconv.ParseFloat(string(m[2]), 64)
		if err != nil {
			return u, err
		}
		if string(m[1]) == "process_resident_memory_bytes" {
			u.resident = int64(n)
		} else {
			u.inUse += int64(n)
		}
	}
	if u.resident == 0 || u.inUse == 0 {
		return u, errors.New("no memory in the metrics")
	}
	return u, nil
}
