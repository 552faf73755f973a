package relay

import (
	"crypto/tls"
	"io"
	"net"
	"sync"
	"testing"
)

// BenchmarkUp and BenchmarkDown measure bulk data through one relay, client to
// engine and back, and through a bare loop of crypto/tls and io.Copy. They
// report MB/s and CPU: the user time of the process, which includes both
// peers.
func BenchmarkUp(b *testing.B)   { benchmarkBulk(b, true) }
func BenchmarkDown(b *testing.B) { benchmarkBulk(b, false) }

func benchmarkBulk(b *testing.B, up bool) {
	for _, kind := range []string{"relay", "bare"} {
		b.Run(kind, func(b *testing.B) {
			w := newWorld(b)
			var client *tls.Conn
			var engine *net.UnixConn
			if kind == "relay" {
				p := w.open()
				client, engine = p.client, p.engine
			} else {
				client, engine = w.openBare()
			}
			chunk := make([]byte, 1<<20)
			b.SetBytes(int64(len(chunk)))
			src, dst := io.Writer(client), io.Reader(engine)
			if !up {
				src, dst = engine, client
			}
			in := make([]byte, 1<<20)
			var wg sync.WaitGroup
			b.ReportAllocs()
			b.ResetTimer()
			n := b.N
			wg.Go(func() {
				for range n {
					if _, err := src.Write(chunk); err != nil {
						b.Error(err)
						return
					}
				}
			})
			for range n {
				if _, err := io.ReadFull(dst, in); err != nil {
					b.Fatal(err)
				}
			}
			wg.Wait()
		})
	}
}

// openBare opens the bare loop for comparison: two io.Copy.
func (w *world) openBare() (*tls.Conn, *net.UnixConn) {
	w.tb.Helper()
	engines := make(chan *net.UnixConn, 1)
	go func() {
		tcp, err := w.tcp.AcceptTCP()
		if err != nil {
			return
		}
		server := tls.Server(tcp, w.conf)
		if server.Handshake() != nil {
			return
		}
		near, err := net.DialUnix("unix", nil, w.unix.Addr().(*net.UnixAddr))
		if err != nil {
			return
		}
		far, err := w.unix.AcceptUnix()
		if err != nil {
			return
		}
		engines <- far
		go func() { _, _ = io.Copy(near, server); _ = near.CloseWrite() }()
		_, _ = io.Copy(server, near)
		_ = server.CloseWrite()
	}()
	tcp, err := net.DialTCP("tcp", nil, w.tcp.Addr().(*net.TCPAddr))
	if err != nil {
		w.tb.Fatal(err)
	}
	client := tls.Client(tcp, &tls.Config{InsecureSkipVerify: true}) // the relay is under test
	if err := client.Handshake(); err != nil {
		w.tb.Fatal(err)
	}
	engine := <-engines
	w.tb.Cleanup(func() { tcp.Close(); engine.Close() })
	return client, engine
}

// BenchmarkPingPong measures the round trip of 64 bytes.
func BenchmarkPingPong(b *testing.B) {
	for _, kind := range []string{"relay", "bare"} {
		b.Run(kind, func(b *testing.B) {
			w := newWorld(b)
			var client *tls.Conn
			var engine *net.UnixConn
			if kind == "relay" {
				p := w.open()
				client, engine = p.client, p.engine
			} else {
				client, engine = w.openBare()
			}
			go io.Copy(engine, engine)
			buf := make([]byte, 64)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := client.Write(buf); err != nil {
					b.Fatal(err)
				}
				if _, err := io.ReadFull(client, buf); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
