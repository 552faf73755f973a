package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"time"
)

// memory measures n idle relays of each server in a new process: after one
// byte each way, and after 64 KiB each way.
func (w *world) memory(ctx context.Context, o options, n int, r *report) error {
	for _, s := range w.servers {
		w.say("%s: %d idle relays", s.name, n)
		if err := w.restart(ctx, s); err != nil {
			return err
		}
		if err := w.idle(ctx, o, s, n, r); err != nil {
			return fmt.Errorf("%s: %d idle relays: %w", s.name, n, err)
		}
	}
	return nil
}

func (w *world) idle(ctx context.Context, o options, s *server, n int, r *report) error {
	conns := make([]*tls.Conn, n)
	defer func() {
		for _, c := range conns {
			if c != nil {
				_ = c.NetConn().Close()
			}
		}
	}()
	before, err := s.process.rss()
	if err != nil {
		return err
	}
	for _, used := range []struct {
		name string
		size int
	}{{"1 byte", 1}, {"64 KiB", 64 << 10}} {
		err := each(16, n, func(i int) error {
			if conns[i] == nil {
				var err error
				if conns[i], err = w.dial(s, classical, i); err != nil {
					return err
				}
			}
			if err := conns[i].SetDeadline(time.Now().Add(connectionMost)); err != nil {
				return err
			}
			return trade(conns[i], used.size)
		})
		if err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(o.settle):
		}
		after, err := s.process.rss()
		if err != nil {
			return err
		}
		r.add(s, row{fmt.Sprintf("memory per idle relay of %d, after %s", n, used.name), "KB"}, float64(after-before)/float64(n)/1e3)
	}
	return nil
}

// trade sends size bytes and reads them back at the same time.
func trade(conn *tls.Conn, size int) error {
	out := make([]byte, size)
	out[0] = askEcho
	if size == 1 {
		return echo(conn, out)
	}
	sent := make(chan error, 1)
	go func() {
		_, err := conn.Write(out)
		sent <- err
	}()
	if err := discard(conn, int64(size)); err != nil {
		return err
	}
	return <-sent
}
