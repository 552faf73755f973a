package main

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// turn is the result of one server in one turn of one round.
type turn struct {
	rate        float64       // certificates per second
	p50, p99    time.Duration // latency of one client
	cpu, dbCPU  time.Duration // of the server, and of its database server, per certificate
	memory      int64         // resident when the turn ended, bytes
	count       int
	tokensEnded bool // the turn ended early, out of tokens
}

// load lets n clients request certificates from v, one after another, for d or until
// the tokens end. It opens and uses each connection once before the clock starts.
func (v *server) load(ctx context.Context, clients []*client, tokens []string, d time.Duration) (t turn, err error) {
	if len(tokens) < 2*len(clients) {
		return t, errors.New("too few tokens")
	}
	for i, c := range clients {
		if err := c.dial(ctx, v); err != nil {
			return t, v.failed("refuses a connection", err)
		}
		defer c.hangUp()
		if err := c.issue(v, tokens[i]); err != nil {
			return t, v.failed("does not issue", err)
		}
	}
	v.issued += int64(len(clients))
	tokens = tokens[len(clients):]
	runtime.GC() // no collection of this process while the clock runs
	before, dbBefore, err := v.usage()
	if err != nil {
		return t, err
	}
	took, wall, err := v.ask(clients, tokens, d)
	if err != nil {
		return t, v.failed("does not issue", err)
	}
	after, dbAfter, err := v.usage()
	if err != nil {
		return t, err
	}
	if len(took) == 0 {
		return t, errors.New(v.name + " issued nothing")
	}
	if t.memory, err = memoryOf(v.process.Pid); err != nil {
		return t, err
	}
	slices.Sort(took)
	n := len(took)
	v.issued += int64(n)
	t.count, t.rate = n, float64(n)/wall.Seconds()
	t.p50, t.p99 = took[n/2], took[n*99/100]
	t.cpu, t.dbCPU = (after-before)/time.Duration(n), (dbAfter-dbBefore)/time.Duration(n)
	t.tokensEnded = n >= len(tokens)
	return t, ctx.Err()
}

// ask is the timed part. It returns the time of each response and of all together.
func (v *server) ask(clients []*client, tokens []string, d time.Duration) ([]time.Duration, time.Duration, error) {
	var next atomic.Int64
	var wg sync.WaitGroup
	took := make([][]time.Duration, len(clients))
	errs := make([]error, len(clients))
	for i := range took {
		took[i] = make([]time.Duration, 0, len(tokens)/len(clients)*2)
	}
	start := time.Now()
	until := start.Add(d)
	for i, c := range clients {
		wg.Go(func() {
			for at := time.Now(); at.Before(until); {
				n := next.Add(1) - 1
				if n >= int64(len(tokens)) {
					return
				}
				if errs[i] = c.issue(v, tokens[n]); errs[i] != nil {
					return
				}
				now := time.Now()
				took[i] = append(took[i], now.Sub(at))
				at = now
			}
		})
	}
	wg.Wait()
	return slices.Concat(took...), time.Since(start), errors.Join(errs...)
}

// usage returns the CPU time of the server and of its database server.
func (v *server) usage() (own, database time.Duration, err error) {
	own, err = cpuOf(v.process.Pid)
	if err == nil && v.database != 0 {
		database, err = cpuOfTree(v.database)
	}
	return own, database, err
}

// mint makes n tokens, four for each job, on all processors.
func (s *site) mint(ctx context.Context, n int) ([]string, error) {
	tokens := make([]string, n)
	workers := runtime.GOMAXPROCS(0)
	errs := make([]error, workers)
	var next atomic.Int64
	var wg sync.WaitGroup
	run := time.Now().UnixNano()
	for w := range workers {
		wg.Go(func() {
			for i := next.Add(1) - 1; i < int64(n) && ctx.Err() == nil; i = next.Add(1) - 1 {
				if tokens[i], errs[w] = s.tokens.Mint(map[string]any{"run_id": fmt.Sprint(run + i/4)}); errs[w] != nil {
					return
				}
			}
		})
	}
	wg.Wait()
	return tokens, errors.Join(append(errs, ctx.Err())...)
}

// cold starts v n times, with what it has stored. It returns the time of each start
// from exec to the first certificate.
func (v *server) cold(ctx context.Context, s *site, n int) ([]time.Duration, error) {
	tokens, err := s.mint(ctx, n)
	if err != nil {
		return nil, err
	}
	c, err := newClient()
	if err != nil {
		return nil, err
	}
	took := make([]time.Duration, n)
	for i, token := range tokens {
		start := time.Now()
		if err := v.start(); err != nil {
			return nil, err
		}
		if err := v.ready(ctx, c, token); err != nil {
			return nil, err
		}
		took[i] = time.Since(start)
		c.hangUp()
		if err := v.stop(); err != nil {
			return nil, err
		}
	}
	v.issued += int64(n)
	slices.Sort(took)
	return took, nil
}
