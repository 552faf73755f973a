package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"slices"
	"time"
)

// exchange is the only key exchange that a client offers.
type exchange tls.CurveID

const (
	classical   = exchange(tls.X25519)
	postQuantum = exchange(tls.X25519MLKEM768)
)

// connectionMost bounds the time of one connection.
const connectionMost = 2 * time.Minute

// settleHandshakes is the time that a server gets for its work after the
// connections, such as session reports, before its CPU is read.
const settleHandshakes = 400 * time.Millisecond

// dial connects to s with the i-th certificate. It uses several source
// addresses, so that ports do not run out. Like any TLS client with
// certificate files, it offers no ALPN.
func (w *world) dial(s *server, x exchange, i int) (*tls.Conn, error) {
	from := net.IPv4(127, 0, 1, byte(1+w.dialled.Add(1)%32))
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: from}, Timeout: 10 * time.Second}
	tcp, err := d.Dial("tcp", s.addr)
	if err != nil {
		return nil, err
	}
	conn := tls.Client(tcp, &tls.Config{
		RootCAs: w.roots, ServerName: serverName, MinVersion: tls.VersionTLS13,
		Certificates:     []tls.Certificate{*w.clients[(i/relaysPerCertificate)%len(w.clients)]},
		CurvePreferences: []tls.CurveID{tls.CurveID(x)},
	})
	err = conn.SetDeadline(time.Now().Add(connectionMost))
	if err == nil {
		err = conn.Handshake()
	}
	if err != nil {
		_ = tcp.Close()
		return nil, fmt.Errorf("dial %s: %w", s.name, err)
	}
	return conn, nil
}

// echo writes b and reads it back.
func echo(conn net.Conn, b []byte) error {
	if _, err := conn.Write(b); err != nil {
		return err
	}
	got := make([]byte, len(b))
	if _, err := io.ReadFull(conn, got); err != nil {
		return err
	}
	if string(got) != string(b) {
		return fmt.Errorf("the echo of %d bytes is not what was sent", len(b))
	}
	return nil
}

// speed runs the measurements in which the servers take turns.
func (w *world) speed(ctx context.Context, o options, r *report) error {
	for round := range o.rounds {
		w.say("round %d of %d", round+1, o.rounds)
		turns := slices.Concat(w.servers[round%len(w.servers):], w.servers[:round%len(w.servers)])
		for _, t := range tasks(o) {
			for _, s := range turns {
				if err := ctx.Err(); err != nil {
					return err
				}
				if err := t(w, s, r); err != nil {
					return fmt.Errorf("%s: %w", s.name, err)
				}
			}
		}
	}
	return nil
}

// task is one measurement of a server.
type task func(*world, *server, *report) error

// Kinds of tasks, as --speed names them.
const (
	kindTransfer  = "transfer"
	kindPing      = "ping"
	kindHandshake = "handshake"
)

var allKinds = []string{kindTransfer, kindPing, kindHandshake}

func tasks(o options) []task {
	var all []task
	for _, kind := range o.speed {
		switch kind {
		case kindTransfer:
			for _, streams := range []int{1, 4} {
				for _, up := range []bool{true, false} {
					all = append(all, func(w *world, s *server, r *report) error { return w.transfer(s, up, streams, o.bytes, r) })
				}
			}
		case kindPing:
			all = append(all, func(w *world, s *server, r *report) error { return w.pingPong(s, o.pings, r) })
		case kindHandshake:
			all = append(all, handshakeTask(1, max(1, o.handshakes/4)), handshakeTask(16, o.handshakes))
		}
	}
	return all
}

// handshakeTask measures handshakes with X25519 on every server, and also with
// X25519MLKEM768 on ours.
func handshakeTask(clients, n int) task {
	return func(w *world, s *server, r *report) error {
		if err := w.handshakes(s, classical, clients, n, r); err != nil || s.name != mayfly {
			return err
		}
		return w.handshakes(s, postQuantum, clients, n, r)
	}
}

// warmUp is the number of bytes that a stream carries before the measurement.
// Records and socket buffers then have their final size.
const warmUp = 4 << 20

// transfer measures the throughput of all streams together.
func (w *world) transfer(s *server, up bool, streams int, bytes int64, r *report) error {
	conns := make([]*tls.Conn, streams)
	for i := range conns {
		conn, err := w.dial(s, classical, i)
		if err != nil {
			return err
		}
		defer conn.Close()
		if err := carry(conn, up, warmUp); err != nil {
			return err
		}
		conns[i] = conn
	}
	before, err := s.process.cpu()
	if err != nil {
		return err
	}
	began := time.Now()
	err = each(streams, streams, func(i int) error { return carry(conns[i], up, bytes/int64(streams)) })
	took := time.Since(began)
	if err != nil {
		return err
	}
	after, err := s.process.cpu()
	if err != nil {
		return err
	}
	gb := float64(bytes/int64(streams)*int64(streams)) / 1e9
	direction := "down"
	if up {
		direction = "up"
	}
	r.add(s, row{fmt.Sprintf("%s, %s", direction, plural(streams, "stream")), "GB/s"}, gb/took.Seconds())
	r.add(s, row{fmt.Sprintf("%s, %s: CPU", direction, plural(streams, "stream")), "s/GB"}, (after-before).Seconds()/gb)
	return nil
}

// carry transfers n bytes and returns when the last has arrived.
func carry(conn *tls.Conn, up bool, n int64) error {
	if !up {
		if _, err := conn.Write(request(askGive, n, 0)); err != nil {
			return err
		}
		return discard(conn, n)
	}
	if _, err := conn.Write(request(askTake, n, 0)); err != nil {
		return err
	}
	if err := pour(conn, n); err != nil {
		return err
	}
	_, err := io.ReadFull(conn, make([]byte, 1))
	return err
}

// pingPong measures round trips of 64 bytes.
func (w *world) pingPong(s *server, n int, r *report) error {
	conn, err := w.dial(s, classical, 0)
	if err != nil {
		return err
	}
	defer conn.Close()
	message := make([]byte, 64)
	message[0] = askEcho
	took := make([]time.Duration, n)
	for range max(1, n/10) {
		if err := echo(conn, message); err != nil {
			return err
		}
	}
	before, err := s.process.cpu()
	if err != nil {
		return err
	}
	for i := range took {
		began := time.Now()
		if err := echo(conn, message); err != nil {
			return err
		}
		took[i] = time.Since(began)
	}
	after, err := s.process.cpu()
	if err != nil {
		return err
	}
	slices.Sort(took)
	r.add(s, row{"64 bytes there and back, p50", "us"}, micros(took[n/2]))
	r.add(s, row{"64 bytes there and back, p99", "us"}, micros(took[min(n-1, n*99/100)]))
	r.add(s, row{"64 bytes there and back: CPU", "us"}, micros(after-before)/float64(n))
	return nil
}

// handshakes measures connections that complete a handshake, send one byte to
// the engine and back, and close.
func (w *world) handshakes(s *server, x exchange, clients, n int, r *report) error {
	before, err := s.process.cpu()
	if err != nil {
		return err
	}
	began := time.Now()
	err = each(clients, n, func(i int) error {
		conn, err := w.dial(s, x, i)
		if err != nil {
			return err
		}
		defer conn.Close()
		return echo(conn, []byte{askEcho})
	})
	took := time.Since(began)
	if err != nil {
		return err
	}
	time.Sleep(settleHandshakes)
	after, err := s.process.cpu()
	if err != nil {
		return err
	}
	name := "handshakes, "
	if x == postQuantum {
		name = "handshakes X25519MLKEM768, "
	}
	name += plural(clients, "client")
	r.add(s, row{name, "/s"}, float64(n)/took.Seconds())
	r.add(s, row{name + ": CPU", "us"}, micros(after-before)/float64(n))
	return nil
}

func micros(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }

func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
