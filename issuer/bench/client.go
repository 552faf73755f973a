package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"time"
)

// client is one caller with a key, its certificate request, and one connection at a
// time. It writes plain HTTP/1.1 itself, because it takes CPU time from the server
// under load.
type client struct {
	csr string // PEM, newlines escaped for JSON
	der string // the same PEM in base64, for bytes in protobuf's JSON

	conn    net.Conn
	reader  *bufio.Reader
	out     []byte
	scratch []byte
	answer  bytes.Buffer
}

func newClient() (*client, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, err
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
	return &client{
		csr:    strings.ReplaceAll(string(text), "\n", `\n`),
		der:    base64.StdEncoding.EncodeToString(text),
		reader: bufio.NewReaderSize(nil, 16<<10),
	}, nil
}

// callTimeout bounds one response.
const callTimeout = 30 * time.Second

// dial connects to v and closes the previous connection.
func (c *client) dial(ctx context.Context, v *server) error {
	c.hangUp()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", v.addr)
	if err != nil {
		return err
	}
	if v.tls != nil {
		secure := tls.Client(conn, v.tls)
		if err := secure.HandshakeContext(ctx); err != nil {
			return errors.Join(err, conn.Close())
		}
		conn = secure
	}
	c.conn = conn
	c.reader.Reset(conn)
	return nil
}

func (c *client) hangUp() {
	if c.conn != nil {
		_ = c.conn.Close() // an error means that the server has ended
		c.conn = nil
	}
}

// issue requests one certificate. The response is in c.answer until the next call.
func (c *client) issue(v *server, token string) error {
	c.out, c.scratch = v.request.append(c.out[:0], c.scratch, c, v.addr, token)
	if err := c.conn.SetDeadline(time.Now().Add(callTimeout)); err != nil {
		return err
	}
	if _, err := c.conn.Write(c.out); err != nil {
		return err
	}
	resp, err := http.ReadResponse(c.reader, nil)
	if err != nil {
		return err
	}
	c.answer.Reset()
	_, err = c.answer.ReadFrom(resp.Body)
	if err := errors.Join(err, resp.Body.Close()); err != nil {
		return err
	}
	if resp.StatusCode/100 != 2 || !bytes.Contains(c.answer.Bytes(), beginCertificate) {
		return fmt.Errorf("%s: %.500s", resp.Status, c.answer.Bytes())
	}
	return nil
}

var beginCertificate = []byte("-----BEGIN CERTIFICATE-----")
