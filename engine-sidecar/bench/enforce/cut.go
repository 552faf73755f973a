package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/mayfly-ca/mayfly/client"
	"github.com/mayfly-ca/mayfly/client/mtls"
	"github.com/mayfly-ca/mayfly/client/wire"
)

// cut revokes certificates of live relays, one after the other. The measured
// time begins when the admin's call has returned.
func cut(ctx context.Context, o options, out io.Writer) error {
	s, err := newStand(ctx, o, 24*time.Hour)
	if err != nil {
		return err
	}
	defer s.close()
	at, err := s.startSidecar(ctx, standIn)
	if err != nil {
		return err
	}
	defer at.stop()
	bystander, err := s.relay(ctx, at, "bystander")
	if err != nil {
		return err
	}
	defer bystander.close()
	var cuts, refusals, calls []time.Duration
	for i := range o.count {
		r, err := s.relay(ctx, at, fmt.Sprint(1000+i))
		if err != nil {
			return err
		}
		m, err := r.revoked(ctx, s, at)
		r.close()
		if err != nil {
			return fmt.Errorf("certificate %d: %w", i+1, err)
		}
		cuts, refusals, calls = append(cuts, m.cut), append(refusals, m.refused), append(calls, m.call)
	}
	if err := bystander.ping(); err != nil {
		return fmt.Errorf("a relay that nobody revoked: %w", err)
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "%d certificates\tp50\tp99\tmax\tbound (p99)\n", o.count)
	row := func(name string, all []time.Duration, bound string) {
		slices.Sort(all)
		fmt.Fprintf(w, "%s\t%v\t%v\t%v\t%s\n", name, micro(all[len(all)/2]), micro(all[len(all)*99/100]), micro(all[len(all)-1]), bound)
	}
	row("the revoke call itself", calls, "")
	row("its return -> the job's relay is cut", cuts, "1s")
	row("its return -> a new handshake is refused", refusals, "1s")
	return w.Flush()
}

func micro(d time.Duration) time.Duration { return d.Round(10 * time.Microsecond) }

// relayed is a job with one relay.
type relayed struct {
	client *client.Client
	conn   net.Conn
}

func (s *stand) relay(ctx context.Context, at *sidecar, run string) (*relayed, error) {
	c, err := s.client(ctx, at, run)
	if err != nil {
		return nil, err
	}
	conn, err := c.DialContext(ctx, "tcp", "default")
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	r := &relayed{c, conn}
	return r, r.ping()
}

func (r *relayed) close() {
	_ = r.conn.Close()
	_ = r.client.Close()
}

func (r *relayed) ping() error { return ping(r.conn) }

func ping(conn net.Conn) error {
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		return err
	}
	if _, err := conn.Write([]byte("ping")); err != nil {
		return err
	}
	var b [4]byte
	if _, err := io.ReadFull(conn, b[:]); err != nil {
		return err
	}
	return conn.SetDeadline(time.Time{})
}

type measured struct{ call, cut, refused time.Duration }

// revoked revokes the job's certificate and waits for both effects.
func (r *relayed) revoked(ctx context.Context, s *stand, at *sidecar) (measured, error) {
	cred := r.client.Credential()
	ended := make(chan error, 1)
	var endedAt time.Time
	go func() {
		_, err := r.conn.Read(make([]byte, 1))
		endedAt = time.Now()
		ended <- err
	}()
	began := time.Now()
	if err := s.revoke(cred.Serial()); err != nil {
		return measured{}, err
	}
	returned := time.Now()
	m := measured{call: returned.Sub(began)}
	for {
		// A connection that is cut between its handshake and its verdict has an
		// error.
		reason, err := verdict(ctx, cred, at.addr)
		if reason == wire.ReasonRevoked {
			break
		}
		if time.Since(returned) > time.Minute {
			return m, fmt.Errorf("still admitted, or refused for %q: %w", reason, err)
		}
	}
	m.refused = time.Since(returned)
	select {
	case err := <-ended:
		var told *client.CutError
		if !errors.As(err, &told) || told.Reason != wire.ReasonRevoked {
			return m, fmt.Errorf("the relay ended with %v", err)
		}
	case <-time.After(time.Minute):
		return m, errors.New("the relay lives")
	}
	m.cut = max(endedAt.Sub(returned), 0)
	return m, nil
}

// verdict makes one handshake and reads the sidecar's verdict: "" admits.
func verdict(ctx context.Context, cred *client.Credential, addr string) (string, error) {
	tcp, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
	if err != nil {
		return "", err
	}
	defer tcp.Close()
	conn := tls.Client(tcp, mtls.ClientConfig(cred, cred.TrustDomain, serverName, []string{wire.ALPNRelay}, func(mtls.Peer) error { return nil }))
	if err := conn.HandshakeContext(ctx); err != nil {
		return "", err
	}
	line, err := bufio.NewReader(io.LimitReader(conn, wire.MaxVerdictBytes)).ReadString('\n')
	if err != nil {
		return "", err
	}
	return wire.ParseVerdict(line)
}
