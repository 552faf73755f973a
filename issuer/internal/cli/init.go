package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/mayfly-ca/mayfly/ca"
	"github.com/mayfly-ca/mayfly/client/command"
	"github.com/mayfly-ca/mayfly/issuer"
	"github.com/mayfly-ca/mayfly/issuer/internal/policy"
)

type initCommand struct {
	Dir              string   `help:"Folder to make: its root goes offline, its issuer goes to the host." required:"" placeholder:"DIR"`
	TrustDomain      string   `help:"SPIFFE trust domain: a lower-case DNS name, such as ci.example.com." required:"" placeholder:"TD"`
	EngineDNS        []string `help:"DNS name that an engine will prove, or a parent domain; may be repeated." name:"engine-dns" required:"" placeholder:"NAME"`
	More             []string `arg:"" optional:"" name:"engine-dns" help:"More names for --engine-dns."`
	IssuerURL        string   `help:"How clients will reach the issuer, such as https://issuer.example.com." name:"issuer-url" default:"https://127.0.0.1:8443" placeholder:"URL"`
	RootPasswordFile string   `help:"File whose first line encrypts the root's key. Default: a password is made and printed." placeholder:"FILE"`
}

// Run makes a CA on the operator's own machine.
func (c *initCommand) Run(ctx context.Context, i *invocation) error {
	dns, err := names("engine-dns", append(c.EngineDNS, c.More...))
	if err != nil {
		return err
	}
	if os.Getenv("FLY_MACHINE_ID") != "" {
		return command.WithHint(errors.New("this is a Fly Machine, and the root's key must never be on a server"),
			"run init on your own machine, and bring only the folder issuer here")
	}
	if err := issuer.CheckPublicURL(c.IssuerURL); err != nil { // before a CA exists that no issuer could serve
		return fmt.Errorf("--issuer-url: %w", err)
	}
	opts := ca.InitOptions{Dir: c.Dir, TrustDomain: c.TrustDomain, EngineDNS: dns, IssuerURL: c.IssuerURL}
	if c.RootPasswordFile != "" {
		if opts.RootPassword, err = firstLine(c.RootPasswordFile); err != nil {
			return err
		}
	}
	res, err := ca.Init(ctx, opts)
	if errors.Is(err, ca.ErrInitialised) {
		return command.WithHint(err, "give --dir a new folder")
	}
	if err != nil {
		return err
	}
	config := filepath.Join(res.IssuerDir, "issuer.yaml")
	err = writeFirstConfig(config, res, c.TrustDomain, c.IssuerURL, dns[0])
	printInitResult(i.Out, res, config) // even if the config failed: the password is printed only once
	return err
}

// listenFor returns the address to listen on for an issuer at rawURL: all interfaces,
// with the port of rawURL or the scheme's default.
func listenFor(rawURL string) string {
	u, err := url.Parse(rawURL)
	switch {
	case err == nil && u.Port() != "":
		return ":" + u.Port()
	case err == nil && u.Scheme == "http":
		return ":80"
	}
	return ":443"
}

func firstLine(path string) ([]byte, error) {
	data, err := readFile(path, nil)
	if err != nil {
		return nil, err
	}
	return lineOf(data, path)
}

func lineOf(data []byte, from string) ([]byte, error) {
	line, _, _ := strings.Cut(string(data), "\n")
	if line = strings.TrimSuffix(line, "\r"); line == "" {
		return nil, fmt.Errorf("%s: the first line is empty", from)
	}
	return []byte(line), nil
}

// writeFirstConfig writes an issuer.yaml and an example policy, each with its schema
// for editors. It keeps files that exist.
func writeFirstConfig(config string, res *ca.InitResult, td, url, dns string) error {
	base := filepath.Base
	for path, text := range map[string]string{
		config: fmt.Sprintf(firstConfig, listenFor(url), url, base(res.Root), base(res.RootCRL), base(res.Intermediate), base(res.IntermediateKey), base(res.DSN), base(res.StateKey)),
		filepath.Join(res.IssuerDir, "policy.yaml"):        fmt.Sprintf(firstPolicy, td, dns, dns, dns),
		filepath.Join(res.IssuerDir, "issuer.schema.json"): issuer.ConfigSchema,
		filepath.Join(res.IssuerDir, "policy.schema.json"): policy.Schema,
	} {
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		if err != nil {
			return err
		}
		_, err = io.WriteString(f, text)
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
	return nil
}

const firstConfig = `# yaml-language-server: $schema=issuer.schema.json
# mayfly-issuer serve --config issuer.yaml
# Paths are relative to this file. Secrets are named, never written here.
listen: "%s"
public_url: %s
tls: {mode: self}          # a certificate of this CA; acme (Let's Encrypt), files, or off behind a TLS edge
# behind_proxy: true
# client_ip_header: Fly-Client-IP
ca:
  root: %s
  root_crl: %s
  intermediate: %s
  key: %s    # or env:NAME, or a KMS URI
store: %s                # a path, or postgres://..., or env:DATABASE_URL
state_key: [%s]      # signs logins; all issuers share it; or env:NAME
policy: policy.yaml
# metrics_listen: 127.0.0.1:9090
# retention: 2160h
# rate: {per_ip: 1000, per_identity: 600}   # per 10 s, 0 = off
# run_as: nobody
`

const firstPolicy = `# yaml-language-server: $schema=policy.schema.json
# mayfly-issuer policy check policy.yaml --config issuer.yaml
# The ids below admit nobody. In a job, "mayfly policy suggest" prints the rule
# that would admit it.
version: 1
trust_domain: %s
providers:
  github: {type: github, issuer: https://token.actions.githubusercontent.com}
  fly: {type: fly, issuer: https://oidc.fly.io/example-org}
engines:
  default: {endpoint: "tcp://%s:8080", server_name: %s}
rules:
  - name: app-main
    provider: github
    match: {repository_owner_id: "0", repository_id: "0", ref: refs/heads/main, event_name: [push, workflow_dispatch]}
    grant: {profile: client, engines: [default], ttl: 1h}
  - name: engine
    provider: fly
    match: {org_id: "0", app_id: "0"}
    grant: {profile: server, engines: [default], dns: ["%s"], ttl: 24h}
`

// printInitResult prints what was made, where each part belongs, and the next steps.
func printInitResult(w io.Writer, res *ca.InitResult, config string) {
	fmt.Fprintf(w, "made a CA; its trust anchor is sha256:%s\n\n", res.Fingerprint)
	fmt.Fprintf(w, "OFFLINE, on a medium that you lock away:\n  %s\n", res.RootDir)
	fmt.Fprintf(w, "    %s  the root's key, encrypted; rotate sign needs it, once a year\n", filepath.Base(res.RootKey))
	if res.RootPassword != "" {
		fmt.Fprintf(w, "    its password, shown this once and kept nowhere:\n      %s\n", res.RootPassword)
	}
	fmt.Fprintf(w, "\nTO THE ISSUER'S HOST:\n  %s\n", res.IssuerDir)
	fmt.Fprintf(w, "    %s  the issuing key: a secret (ca.key: env:NAME on Fly), never on a volume or in a backup\n", filepath.Base(res.IntermediateKey))
	fmt.Fprintf(w, "    %s         the key that signs admins' logins: a secret too (state_key: [env:NAME] on Fly), never in a backup\n", filepath.Base(res.StateKey))
	fmt.Fprintf(w, "    %s  the store, empty: the record of every certificate and revocation\n", filepath.Base(res.DSN))
	fmt.Fprintf(w, "\nNEXT\n  edit %s\n  mayfly-issuer serve --config %s\n  clients pin the root: --trust-anchor sha256:%s\n",
		filepath.Join(res.IssuerDir, "policy.yaml"), config, res.Fingerprint)
}
