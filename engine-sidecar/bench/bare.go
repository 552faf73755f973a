package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
)

// bareCommand runs this program as the bare server.
const bareCommand = "__bare"

// bare is a minimal relay: crypto/tls with verified client certificates, and
// two io.Copy. args are the address, the engine's socket, the chain, the key
// and the roots.
func bare(args []string, stderr io.Writer) int {
	if err := serveBare(args); err != nil {
		fmt.Fprintln(stderr, err)
	}
	return 1 // it serves until it is killed
}

func serveBare(args []string) error {
	if len(args) != 5 {
		return errors.New("want ADDRESS SOCKET CHAIN KEY ROOTS")
	}
	cert, err := tls.LoadX509KeyPair(args[2], args[3])
	if err != nil {
		return err
	}
	pem, err := os.ReadFile(args[4])
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	conf := &tls.Config{
		Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13, SessionTicketsDisabled: true,
		ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: roots,
	}
	ln, err := net.Listen("tcp", args[0])
	if err != nil {
		return err
	}
	for {
		tcp, err := ln.Accept()
		if err != nil {
			return err
		}
		go relayBare(tls.Server(tcp, conf), args[1])
	}
}

func relayBare(client *tls.Conn, socket string) {
	defer client.Close()
	if client.Handshake() != nil {
		return
	}
	conn, err := net.Dial("unix", socket)
	if err != nil {
		return
	}
	defer conn.Close()
	engine := conn.(*net.UnixConn)
	done := make(chan struct{})
	go func() {
		_, _ = io.Copy(engine, client)
		_ = engine.CloseWrite()
		close(done)
	}()
	_, _ = io.Copy(client, engine)
	_ = client.CloseWrite()
	<-done
}
