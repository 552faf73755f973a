package policy

import (
	"fmt"

	"go.yaml.in/yaml/v3"

	"github.com/mayfly-ca/mayfly/client/configfile"
)

// Bounds of a policy file.
const (
	// MaxFileBytes bounds the file.
	MaxFileBytes  = configfile.MaxBytes
	maxNodes      = 200_000
	maxDepth      = 16
	maxProviders  = 64
	maxEngines    = 1000
	maxRules      = 10_000
	maxTests      = 10_000
	maxMatchKeys  = 64
	maxValues     = 1000
	maxValueBytes = 1024
)

// file is the policy file as it is written. Every key is listed here; any
// other is an error.
type file struct {
	// Version is 1.
	Version int `yaml:"version" jsonschema:"required,enum=1"`
	// TrustDomain is the SPIFFE trust domain: a lower-case DNS name of two
	// labels or more, the CA's own.
	TrustDomain string `yaml:"trust_domain" jsonschema:"required"`
	// Providers are the token issuers, by name.
	Providers map[string]fileProvider `yaml:"providers" jsonschema:"required"`
	// Engines are the build engines, by name.
	Engines map[string]fileEngine `yaml:"engines"`
	// Rules are tried in order; the first that fits and matches decides.
	Rules []fileRule `yaml:"rules" jsonschema:"required"`
	// Tests are recorded claims and what must come of them, for
	// mayfly-issuer policy test.
	Tests []fileTest `yaml:"tests"`
}

type fileProvider struct {
	// Type is github, fly, oidc or people.
	Type string `yaml:"type" jsonschema:"required,enum=github,enum=fly,enum=oidc,enum=people"`
	// Issuer is iss, exactly.
	Issuer string `yaml:"issuer" jsonschema:"required"`
	// ClientID is the audience; type people only, where it is required.
	ClientID string `yaml:"client_id"`
	// JWKSURI pins where the keys are. Default: as discovery says.
	JWKSURI string `yaml:"jwks_uri"`
	// Algorithms are those of RS256, ES256 and EdDSA that the provider signs
	// by. Default: RS256.
	Algorithms []string `yaml:"algorithms" jsonschema:"enum=RS256,enum=ES256,enum=EdDSA"`
	// ServerURL begins the URIs of a github provider's certificates. Default:
	// derived from issuer.
	ServerURL string `yaml:"server_url"`
	// UnsafeHTTP allows http on loopback. Default: false.
	UnsafeHTTP bool `yaml:"unsafe_http"`
	// UnsafeAllowPrivate allows keys from private addresses. Default: false.
	UnsafeAllowPrivate bool `yaml:"unsafe_allow_private"`
}

type fileEngine struct {
	// Endpoint is tcp://host:port, or edge://host:port behind a TLS edge.
	Endpoint string `yaml:"endpoint" jsonschema:"required"`
	// ServerName is the DNS name that the engine's certificate proves.
	ServerName string `yaml:"server_name" jsonschema:"required"`
}

type fileRule struct {
	// Name is in the certificate, the log and every denial.
	Name string `yaml:"name" jsonschema:"required"`
	// Provider is a name of providers.
	Provider string `yaml:"provider" jsonschema:"required"`
	// Match is claim: value or claim: [value, ...]; all keys must match.
	Match yaml.Node `yaml:"match" jsonschema:"required"`
	// Grant is what a matching token gets: a certificate or a role.
	Grant fileGrant `yaml:"grant" jsonschema:"required"`
	// AllRepositories says that a github rule without repository_id means
	// every repository of its owner. Default: false.
	AllRepositories bool `yaml:"all_repositories"`
	// UnsafeAllowPrivilegedEvents allows events that run with the base
	// repository's trust on input of strangers. Default: false.
	UnsafeAllowPrivilegedEvents bool `yaml:"unsafe_allow_privileged_events"`
}

type fileGrant struct {
	// Profile is client or server; or there is a role.
	Profile string `yaml:"profile" jsonschema:"enum=client,enum=server"`
	// Role is viewer or admin; type people only.
	Role string `yaml:"role" jsonschema:"enum=viewer,enum=admin"`
	// Engines are names of engines; a server has one.
	Engines []string `yaml:"engines"`
	// DNS is the server's engine's server_name; profile server only.
	DNS []string `yaml:"dns"`
	// TTL is the certificate's lifetime, like 1h or 30m: at most 1h for
	// clients, 24h for servers.
	TTL string `yaml:"ttl"`
}

type fileTest struct {
	// Name is for people.
	Name string `yaml:"name"`
	// Provider is whose token the claims were recorded from.
	Provider string `yaml:"provider" jsonschema:"required"`
	// Claims is the token's payload, or the part of it that the rules look at.
	Claims yaml.Node `yaml:"claims" jsonschema:"required"`
	// Want is certificate or role. Default: certificate.
	Want string `yaml:"want" jsonschema:"enum=certificate,enum=role"`
	// Engine is the engine asked for. Default: none.
	Engine string `yaml:"engine"`
	// Rule is the rule that must admit the claims. Write it or Denied.
	Rule string `yaml:"rule"`
	// Denied is the claim that the denial must name. Write it or Rule.
	Denied string `yaml:"denied"`
}

// readFile decodes data strictly: one document, known keys, no key twice, and
// no anchors, aliases, merges or tags.
func readFile(name string, data []byte) (*configfile.Document, *file, error) {
	if name == "" {
		name = "policy.yaml"
	}
	doc, err := configfile.Parse(name, data)
	if err != nil {
		return nil, nil, err
	}
	if doc.Root == nil {
		return nil, nil, fmt.Errorf("%s: the file is empty", name)
	}
	nodes := 0
	if err := plain(doc, doc.Root, 0, &nodes); err != nil {
		return nil, nil, err
	}
	var f file
	if err := doc.Decode(&f); err != nil {
		return nil, nil, err
	}
	return doc, &f, nil
}

// plain refuses anchors, aliases, merge keys, explicit tags, keys that are not
// plain strings, and more than the bounds.
func plain(doc *configfile.Document, n *yaml.Node, depth int, nodes *int) error {
	if *nodes++; *nodes > maxNodes {
		return doc.ErrorAt(n, "the file has more than %d values", maxNodes)
	}
	if depth > maxDepth {
		return doc.ErrorAt(n, "nested deeper than %d", maxDepth)
	}
	if n.Kind == yaml.AliasNode || n.Anchor != "" {
		return doc.ErrorAt(n, "anchors and aliases are not accepted")
	}
	if n.Style&yaml.TaggedStyle != 0 {
		return doc.ErrorAt(n, "tags are not accepted")
	}
	if n.Kind == yaml.MappingNode {
		for i := 0; i < len(n.Content); i += 2 {
			key := n.Content[i]
			if key.Kind != yaml.ScalarNode || key.Tag != "!!str" {
				return doc.ErrorAt(key, "a key is not a string")
			}
		}
	}
	for _, c := range n.Content {
		if err := plain(doc, c, depth+1, nodes); err != nil {
			return err
		}
	}
	return nil
}
