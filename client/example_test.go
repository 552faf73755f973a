package client_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"

	"github.com/mayfly-ca/mayfly/client"
	"github.com/mayfly-ca/mayfly/client/tokensource"
	"github.com/mayfly-ca/mayfly/client/wire"
)

// A pipeline reaches its engine through its own listener.
func Example() {
	ctx := context.Background()
	c, err := client.New(ctx, client.Config{
		Issuer: "https://issuer.example.com",
		Engine: "default",
		Progress: func(e client.Event) {
			if e.Kind == client.EventWaking {
				log.Printf("engine %s is waking up (%v)", e.Engine, e.Elapsed)
			}
		},
	})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()

	ln, err := net.Listen("unix", os.TempDir()+"/engine.sock")
	if err != nil {
		log.Fatal(err)
	}
	// Dagger: _EXPERIMENTAL_DAGGER_RUNNER_HOST=unix://..., BuildKit: BUILDKIT_HOST.
	log.Fatal(c.Proxy(ctx, ln))
}

// A program that takes a dialer needs no listener.
func ExampleClient_DialContext() {
	ctx := context.Background()
	c, err := client.New(ctx, client.Config{Issuer: "https://issuer.example.com"})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	engine := &http.Client{Transport: &http.Transport{DialContext: c.DialContext}}
	resp, err := engine.Get("http://default/")
	if err != nil {
		log.Fatal(err)
	}
	_ = resp.Body.Close()
}

// The error types distinguish the engine's refusal from the client's and the issuer's.
func ExampleRejectedError() {
	err := fmt.Errorf("build: %w", &client.RejectedError{
		Engine: "default", Endpoint: "tcp://engine.example.com:8080",
		Reason: wire.ReasonWrongEngine, Serial: "1f00000000000000000000000000000a",
	})
	var rejected *client.RejectedError
	if errors.As(err, &rejected) {
		fmt.Println(rejected.Reason, rejected.Retryable())
		fmt.Println(err)
		fmt.Println(client.Hint(err))
	}
	// Output:
	// wrong_engine false
	// build: engine default: certificate is not granted for this engine, serial 1f00000000000000000000000000000a: tcp://engine.example.com:8080 refused it
	// name an engine that the rule grants with --engine, or add this engine to the rule's engines in the issuer's policy
}

// Without the permission, the error says what to write into the workflow.
func ExampleConfig_source() {
	source, err := tokensource.Parse("github")
	if err != nil {
		fmt.Println(err)
		return
	}
	_ = client.Config{Issuer: "https://issuer.example.com", Source: source}
}
