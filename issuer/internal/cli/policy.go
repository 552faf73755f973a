package cli

import (
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/mayfly-ca/mayfly/client/command"
	"github.com/mayfly-ca/mayfly/client/wire"
	"github.com/mayfly-ca/mayfly/issuer"
	"github.com/mayfly-ca/mayfly/issuer/internal/policy"
)

// maxFileBytes bounds what the policy commands read.
const maxFileBytes = 1 << 20

// policyOptions returns the options for checking FILE. --config or --intermediate adds
// the CA's trust domain and name constraints.
func policyOptions(file, config, intermediate string) (policy.Options, error) {
	if config != "" {
		cfg, err := issuer.LoadConfig(config)
		if err != nil {
			return policy.Options{}, err
		}
		intermediate = cfg.CA.Intermediate
	}
	if intermediate == "" {
		return policy.Options{File: file}, nil
	}
	text, err := readFile(intermediate, nil)
	if err != nil {
		return policy.Options{}, err
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return policy.Options{}, fmt.Errorf("%s holds no certificate in PEM", intermediate)
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return policy.Options{}, fmt.Errorf("%s: %w", intermediate, err)
	}
	o := issuer.PolicyOptionsOf(cert)
	o.File = file
	return o, nil
}

// loadPolicy parses FILE.
func loadPolicy(file string) (*policy.Set, error) {
	data, err := readFile(file, nil)
	if err != nil {
		return nil, err
	}
	return policy.Parse(data, policy.Options{File: file})
}

// readFile reads a file of bounded size, or in for "-".
func readFile(path string, in io.Reader) ([]byte, error) {
	if path != "-" || in == nil {
		f, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		in = f
	}
	data, err := io.ReadAll(io.LimitReader(in, maxFileBytes+1))
	if err == nil && len(data) > maxFileBytes {
		err = fmt.Errorf("%s is larger than %d bytes", path, maxFileBytes)
	}
	return data, err
}

type policyCommands struct {
	Check   policyCheckCommand   `cmd:"" help:"Find what is wrong with a policy file: 0 nothing, 1 errors."`
	Explain policyExplainCommand `cmd:"" help:"Say which rule matches, or why none does: 0 allowed, 3 denied."`
	Test    policyTestCommand    `cmd:"" help:"Run the tests that the policy file carries."`
}

// policyFile is the argument of the policy commands.
type policyFile struct {
	File string `arg:"" help:"The policy file."`
}

type policyCheckCommand struct {
	policyFile
	Config       string `help:"issuer.yaml, to check the trust domain and names against the CA's too." placeholder:"FILE"`
	Intermediate string `help:"The intermediate's certificate, for the same." placeholder:"FILE"`
	Strict       bool   `help:"Exit with 1 on warnings too."`
	JSON         bool   `help:"Print one JSON document." name:"json"`
}

// Run checks the file. It exits with 0 for a good file, 1 for errors, and with
// --strict 1 for warnings too. Without --json it reports on stderr.
func (c *policyCheckCommand) Run(i *invocation) error {
	o, err := policyOptions(c.File, c.Config, c.Intermediate)
	if err != nil {
		return err
	}
	data, err := readFile(c.File, nil)
	if err != nil {
		return err
	}
	report := checkPolicy(data, o)
	report.OK = report.OK && !(c.Strict && len(report.Problems) > 0)
	if err := report.print(i.Stdio, c.JSON); err != nil {
		return err
	}
	if !report.OK {
		return command.Exit(command.ExitFailed)
	}
	return nil
}

type policyExplainCommand struct {
	policyFile
	Claims    string `help:"File of the token's payload, JSON; - reads it from the input." placeholder:"FILE"`
	TokenFile string `help:"File of a token, whose signature is not checked; - reads it from the input." placeholder:"FILE"`
	Provider  string `help:"Provider. Default: the one whose issuer is iss." placeholder:"NAME"`
	Engine    string `help:"The one engine asked for." placeholder:"NAME"`
	Want      string `help:"certificate or role. Default: a certificate, and a role for a person whom no rule grants one." enum:"certificate,role," default:"" placeholder:"WANT"`
	JSON      bool   `help:"Print the API's answer." name:"json"`
}

// Run prints which rule matches. It exits with 0 if allowed, 3 if denied.
func (c *policyExplainCommand) Run(i *invocation) error {
	if (c.Claims == "") == (c.TokenFile == "") {
		return command.Usagef("want --claims or --token-file")
	}
	set, err := loadPolicy(c.File)
	if err != nil {
		return err
	}
	payload, err := readFile(c.Claims+c.TokenFile, i.In)
	if err != nil {
		return err
	}
	if c.TokenFile != "" {
		if payload, err = payloadOf(string(payload)); err != nil {
			return err
		}
	}
	req := wire.ExplainRequest{Provider: c.Provider, Claims: payload, Engine: c.Engine, Want: c.Want}
	if req.Provider == "" {
		if req.Provider, err = providerOf(set, payload); err != nil {
			return err
		}
	}
	x, err := issuer.ExplainClaims(set, req)
	if err != nil {
		return err
	}
	if err := printExplanation(i.Out, x, c.JSON); err != nil {
		return err
	}
	if !x.Allowed {
		return command.Exit(command.ExitDenied)
	}
	return nil
}

// payloadOf returns the payload of a compact JWS. It verifies nothing.
func payloadOf(token string) ([]byte, error) {
	parts := strings.Split(strings.TrimSpace(token), ".")
	if len(parts) != 3 {
		return nil, errors.New("the token is not a compact JWS: three parts with dots between")
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return nil, errors.New("the token's payload is not base64url")
	}
	return payload, nil
}

func providerOf(set *policy.Set, payload []byte) (string, error) {
	var claims struct {
		Issuer string `json:"iss"`
	}
	if json.Unmarshal(payload, &claims) != nil {
		return "", errors.New("the claims are not a token's payload: want a JSON object with iss, a text")
	}
	if claims.Issuer == "" {
		return "", errors.New("the claims have no iss; name the provider with --provider")
	}
	for _, p := range set.Providers() {
		if p.Issuer == claims.Issuer {
			return p.Name, nil
		}
	}
	return "", fmt.Errorf("no provider has the issuer %q; name one by --provider", claims.Issuer)
}

func printExplanation(w io.Writer, x *wire.ExplainResponse, asJSON bool) error {
	if asJSON {
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		return enc.Encode(x)
	}
	switch {
	case x.Allowed && x.Role != "":
		fmt.Fprintf(w, "allowed by rule %s: role %s\n", x.Rule, x.Role)
	case x.Allowed:
		fmt.Fprintf(w, "allowed by rule %s: profile %s, engines %s\n", x.Rule, x.Profile, strings.Join(x.Engines, ", "))
	default:
		fmt.Fprintln(w, "denied: no rule admits these claims")
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, r := range x.Rules {
		switch {
		case r.Matched:
			fmt.Fprintf(t, "  %s\tmatches\n", r.Rule)
		case r.Got == "":
			fmt.Fprintf(t, "  %s\t%s is missing\twants %s\n", r.Rule, r.Claim, issuer.Printable(r.Want))
		default:
			fmt.Fprintf(t, "  %s\t%s is %s\twants %s\n", r.Rule, r.Claim, issuer.Printable(r.Got), issuer.Printable(r.Want))
		}
	}
	return t.Flush()
}

type policyTestCommand struct{ policyFile }

// Run runs the tests in the policy file.
func (c *policyTestCommand) Run(i *invocation) error {
	set, err := loadPolicy(c.File)
	if err != nil {
		return err
	}
	results := set.RunTests()
	if len(results) == 0 {
		return fmt.Errorf("%s carries no tests: add a list tests: of recorded claims and what must come of them", c.File)
	}
	failed := 0
	for _, r := range results {
		if !r.OK {
			failed++
			fmt.Fprintf(i.Out, "FAIL  %s: got %s, want %s\n", issuer.Printable(r.Name), issuer.Printable(r.Got), issuer.Printable(r.Want))
			continue
		}
		fmt.Fprintf(i.Out, "ok    %s\n", issuer.Printable(r.Name))
	}
	fmt.Fprintf(i.Out, "%d of %d pass\n", len(results)-failed, len(results))
	if failed > 0 {
		return fmt.Errorf("%d tests fail", failed)
	}
	return nil
}
