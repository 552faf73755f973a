package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"path/filepath"
	"runtime"
	"slices"
	"time"
)

// measure makes the servers, loads them in turn, and returns the report.
func measure(ctx context.Context, o options, progress io.Writer) (_ *report, err error) {
	s, err := newSite(ctx, progress)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	if o.issuer != "" {
		if s.built["mayfly-issuer"], err = filepath.Abs(o.issuer); err != nil {
			return nil, err
		}
	}
	r := &report{Machine: machine(), CPUs: runtime.NumCPU(), Rounds: o.rounds, Turn: o.duration.String()}
	var servers []*server
	defer func() {
		for _, v := range servers {
			err = errors.Join(err, v.stop())
		}
	}()
	for _, name := range o.servers {
		v, err := s.newServer(ctx, name)
		if err != nil {
			return nil, err
		}
		servers = append(servers, v)
	}
	m := &meter{site: s, servers: servers, options: o, turns: make(map[cell][]turn), most: make(map[int]float64)}
	if err := m.rounds(ctx); err != nil {
		return nil, err
	}
	for _, v := range servers {
		line, err := m.finish(ctx, v)
		if err != nil {
			return nil, err
		}
		r.Servers = append(r.Servers, line)
	}
	r.FloorMicros = micros(median(m.floors))
	r.judge()
	return r, nil
}

// cell is a server at a number of clients.
type cell struct {
	server  string
	clients int
}

// meter is the state of a run.
type meter struct {
	site    *site
	servers []*server
	options options
	turns   map[cell][]turn
	floors  []time.Duration
	most    map[int]float64 // the highest rate so far, by number of clients
	stored  map[string]int64
}

// rounds starts the servers and gives each its turns.
func (m *meter) rounds(ctx context.Context) error {
	o := m.options
	f, err := newFloor()
	if err != nil {
		return err
	}
	clients := make([]*client, slices.Max(o.clients))
	for i := range clients {
		if clients[i], err = newClient(); err != nil {
			return err
		}
	}
	m.stored = make(map[string]int64)
	for _, v := range m.servers {
		if err := m.begin(ctx, v, clients[0]); err != nil {
			return err
		}
	}
	for round := range o.rounds {
		fmt.Fprintf(m.site.progress, "round %d of %d\n", round+1, o.rounds)
		took, err := f.measure(min(o.duration, 500*time.Millisecond))
		if err != nil {
			return err
		}
		m.floors = append(m.floors, took)
		for i, n := range o.clients {
			if err := m.each(ctx, clients[:n], round+i); err != nil {
				return err
			}
		}
	}
	return nil
}

// begin measures the size of an empty store, and starts v.
func (m *meter) begin(ctx context.Context, v *server, c *client) (err error) {
	if err := v.start(); err != nil {
		return err
	}
	token, err := m.site.mint(ctx, 1)
	if err != nil {
		return err
	}
	if err := v.ready(ctx, c, token[0]); err != nil {
		return err
	}
	c.hangUp()
	if v.size == nil {
		return nil
	}
	// A store is at its smallest size after its server has ended.
	if err := v.stop(); err != nil {
		return err
	}
	if m.stored[v.name], err = v.size(ctx); err != nil {
		return err
	}
	if err := v.start(); err != nil {
		return err
	}
	if token, err = m.site.mint(ctx, 1); err != nil {
		return err
	}
	v.issued = 1
	return v.ready(ctx, c, token[0])
}

// each gives every server a turn with the same clients and the same tokens, which are
// new to the server. The first server changes from round to round.
func (m *meter) each(ctx context.Context, clients []*client, first int) error {
	n := len(clients)
	tokens, err := m.site.mint(ctx, 2*n+m.enough(n))
	if err != nil {
		return err
	}
	for i := range m.servers {
		v := m.servers[(first+i)%len(m.servers)]
		t, err := v.load(ctx, clients, tokens, m.options.duration)
		if err != nil {
			return err
		}
		at := cell{v.name, n}
		m.turns[at] = append(m.turns[at], t)
		m.most[n] = max(m.most[n], t.rate)
		note := ""
		if t.tokensEnded {
			note = " (ended early, out of tokens)"
		}
		fmt.Fprintf(m.site.progress, "  %2d clients  %-16s %6.0f/s  p50 %6.2f ms  p99 %6.2f ms  cpu %4.0f us%s\n",
			n, v.name, t.rate, millis(t.p50), millis(t.p99), micros(t.cpu), note)
	}
	return nil
}

// enough returns how many tokens the fastest server may need in one turn.
func (m *meter) enough(clients int) int {
	rate := 1.4 * m.most[clients]
	if rate == 0 {
		rate = 2500
		if clients > 1 {
			rate = 5000
		}
	}
	return int(math.Ceil(rate * m.options.duration.Seconds()))
}

// finish stops v, and measures its store and its cold starts.
func (m *meter) finish(ctx context.Context, v *server) (line, error) {
	l := line{Name: v.name, Stores: v.store, TLS: v.tls != nil}
	for _, n := range m.options.clients {
		l.Loads = append(l.Loads, summary(n, m.turns[cell{v.name, n}]))
	}
	if err := v.stop(); err != nil {
		return l, err
	}
	if v.size != nil {
		after, err := v.size(ctx)
		if err != nil {
			return l, err
		}
		l.StoredBytes = float64(after-m.stored[v.name]) / float64(v.issued)
	}
	l.Issued = v.issued
	if m.options.cold > 0 {
		took, err := v.cold(ctx, m.site, m.options.cold)
		if err != nil {
			return l, err
		}
		l.ColdMillis, l.ColdMaxMillis = millis(median(took)), millis(took[len(took)-1])
	}
	return l, nil
}

// summary returns the median of each figure over the rounds.
func summary(clients int, turns []turn) load {
	of := func(f func(turn) float64) float64 {
		var all []float64
		for _, t := range turns {
			all = append(all, f(t))
		}
		return median(all)
	}
	return load{
		Clients:   clients,
		PerSecond: of(func(t turn) float64 { return t.rate }),
		P50Millis: of(func(t turn) float64 { return millis(t.p50) }),
		P99Millis: of(func(t turn) float64 { return millis(t.p99) }),
		CPUMicros: of(func(t turn) float64 { return micros(t.cpu) }),
		DBMicros:  of(func(t turn) float64 { return micros(t.dbCPU) }),
		RSSBytes:  of(func(t turn) float64 { return float64(t.memory) }),
	}
}

// median returns the middle value, or the mean of the two middle values.
func median[T time.Duration | float64](all []T) T {
	if len(all) == 0 {
		return 0
	}
	all = slices.Sorted(slices.Values(all))
	n := len(all)
	return (all[(n-1)/2] + all[n/2]) / 2
}

func micros(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }
func millis(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
