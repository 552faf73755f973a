package issuer_test

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/client/wire"
	"github.com/mayfly-ca/mayfly/issuer/issuertest"
)

// TestHeaderLimitIsExact checks that a header of 32 KiB is accepted, and one byte more
// is refused: by mayfly with a problem, as far as http.Server reads, and by
// http.Server beyond that.
func TestHeaderLimitIsExact(t *testing.T) {
	t.Parallel()
	i := issuertest.Start(t, issuertest.Options{})
	u, err := url.Parse(i.URL)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(i.Root)
	for _, tc := range []struct {
		name   string
		bytes  int
		status int
		media  string
	}{
		{"the limit", wire.MaxHeaderBytes, http.StatusOK, "application/json"},
		{"one more", wire.MaxHeaderBytes + 1, http.StatusRequestEntityTooLarge, wire.ProblemMediaType},
		{"far more", 3 * wire.MaxHeaderBytes, http.StatusRequestHeaderFieldsTooLarge, "text/plain; charset=utf-8"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			conn, err := tls.Dial("tcp", u.Host, &tls.Config{RootCAs: roots, NextProtos: []string{"http/1.1"}})
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
				t.Fatal(err)
			}
			head := fmt.Sprintf("GET %s HTTP/1.1\r\nHost: %s\r\nX-Pad: \r\n", wire.PathInfo, u.Host)
			head = strings.Replace(head, "X-Pad: ", "X-Pad: "+strings.Repeat("a", tc.bytes-len(head)), 1) + "\r\n"
			// The server may answer before it has read the whole request.
			go func() { _, _ = io.WriteString(conn, head) }()
			resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			if resp.StatusCode != tc.status || resp.Header.Get("Content-Type") != tc.media {
				t.Errorf("%s as %s, want %d as %s", resp.Status, resp.Header.Get("Content-Type"), tc.status, tc.media)
			}
		})
	}
}
