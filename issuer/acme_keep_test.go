package issuer

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// failures counts the log lines about a failed attempt.
type failures struct{ atomic.Int64 }

func (f *failures) Write(line []byte) (int, error) {
	f.Add(int64(bytes.Count(line, []byte("no certificate from the ACME server"))))
	return len(line), nil
}

// TestACMEPauses checks the attempts for a name that cannot be proved: five in the
// first hour, as often as Let's Encrypt allows, and later one per hour.
func TestACMEPauses(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		var log failures
		a, err := newACMECertificate(Config{ACME: ACMEConfig{Dir: dir}}, "", "issuer.example.com", slog.New(slog.NewTextHandler(&log, nil)))
		if err != nil {
			t.Fatal(err)
		}
		a.stopped.Store(true) // every request to the ACME server fails
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); a.keep(ctx) }()
		for _, c := range []struct {
			after time.Duration
			want  int
		}{{time.Second, 1}, {time.Hour - time.Second, 5}, {9 * time.Hour, 14}} {
			time.Sleep(c.after)
			synctest.Wait()
			if got := int(log.Load()); got != c.want {
				t.Errorf("%d tries, want %d", got, c.want)
			}
		}
		cancel()
		<-done
	})
}

// TestACMERenewed checks that a renewed certificate is put into use. One that is not
// renewed stays in use, and the log says so.
func TestACMERenewed(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer
	a, err := newACMECertificate(Config{ACME: ACMEConfig{Dir: t.TempDir()}}, "", "issuer.example.com", slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	close(a.first)
	now := time.Now()
	certificate := func(id byte, from, until time.Duration) *tls.Certificate {
		return &tls.Certificate{Leaf: &x509.Certificate{Raw: []byte{id}, NotBefore: now.Add(from), NotAfter: now.Add(until)}}
	}
	const day = 24 * time.Hour
	for _, c := range []struct {
		name string
		cert *tls.Certificate
		want string // part of the only log line; "" means no line
	}{
		{"first", certificate(1, 0, 90*day), "certificate from the ACME server"},
		{"the same", certificate(1, 0, 90*day), ""},
		{"renewed", certificate(2, -60*day, 30*day), "certificate renewed by the ACME server"},
		{"soon renewed", certificate(2, -60*day, 30*day), ""},
		{"not renewed", certificate(2, -80*day, 10*day), "certificate is not renewed by the ACME server"},
	} {
		log.Reset()
		a.use(t.Context(), c.cert)
		if got := log.String(); strings.Count(got, "\n") != min(len(c.want), 1) || !strings.Contains(got, c.want) {
			t.Errorf("%s: the log says %q, want %q", c.name, got, c.want)
		}
		if got, err := a.get(&tls.ClientHelloInfo{ServerName: "issuer.example.com"}); err != nil || got != c.cert {
			t.Errorf("%s is not served: %v", c.name, err)
		}
	}
}

// TestACMEHint checks that the hint distinguishes an ACME server that this host cannot
// reach from a listener that the ACME server cannot reach.
func TestACMEHint(t *testing.T) {
	t.Parallel()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ln.Close()
	a, err := newACMECertificate(Config{ACME: ACMEConfig{Dir: t.TempDir(), DirectoryURL: "https://" + ln.Addr().String()}}, "", "issuer.example.com", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	_, err = a.manager.GetCertificate(&tls.ClientHelloInfo{ServerName: a.host, CipherSuites: []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256}})
	if hint := a.hint(err); err == nil || !strings.HasPrefix(hint, "let this host reach the ACME server") {
		t.Errorf("%v: the hint is %q", err, hint)
	}
	if hint := a.hint(errors.New("acme/autocert: unable to satisfy")); !strings.HasPrefix(hint, "it connects to issuer.example.com:443") {
		t.Errorf("the hint is %q", hint)
	}
}

// endless answers every request with a redirect or with an endless body.
type endless struct{ redirect bool }

func (e endless) RoundTrip(r *http.Request) (*http.Response, error) {
	resp := &http.Response{StatusCode: http.StatusOK, Header: http.Header{}, Body: io.NopCloser(zeros{}), Request: r}
	if e.redirect {
		resp.StatusCode = http.StatusFound
		resp.Header.Set("Location", "http://192.0.2.1/")
		resp.Body = http.NoBody
	}
	return resp, nil
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

// TestACMEAnswers checks that the responses of an ACME server are bounded, and that no
// redirect to another server is followed.
func TestACMEAnswers(t *testing.T) {
	t.Parallel()
	a, err := newACMECertificate(Config{ACME: ACMEConfig{Dir: t.TempDir()}}, "", "issuer.example.com", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	c := a.manager.Client.HTTPClient
	for _, e := range []endless{{}, {redirect: true}} {
		c.Transport.(*acmeTransport).RoundTripper = e
		resp, err := c.Get("https://acme.example.com/dir")
		if err != nil {
			t.Fatal(err)
		}
		n, err := io.Copy(io.Discard, resp.Body)
		if err != nil || n > maxPEMBytes || e.redirect != (resp.StatusCode == http.StatusFound) {
			t.Errorf("%+v: status %d, %d bytes, %v", e, resp.StatusCode, n, err)
		}
	}
}
