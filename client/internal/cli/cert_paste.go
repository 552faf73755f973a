package cli

import (
	"encoding/json"
	"fmt"
	"net"
	"net/url"
	"path/filepath"
	"strings"

	"github.com/mayfly-ca/mayfly/client/wire"
)

// snippets returns the lines for tools that need files.
type snippets struct {
	engine       wire.Engine
	address      string // host:port
	key, crt, ca string
	edge         bool
}

func newPaste(dir string, e wire.Engine) snippets {
	if abs, err := filepath.Abs(dir); err == nil {
		dir = abs
	}
	scheme, address, _ := strings.Cut(e.Endpoint, "://")
	return snippets{engine: e, address: address, edge: scheme == "edge",
		key: filepath.Join(dir, keyName), crt: filepath.Join(dir, certName), ca: filepath.Join(dir, caName)}
}

func (s snippets) dagger() string {
	return "tls://" + s.address + "?cert_path=" + url.QueryEscape(s.crt) + "&key_path=" + url.QueryEscape(s.key) + "&ca_path=" + url.QueryEscape(s.ca)
}

func (s snippets) buildkit() string { return "tcp://" + s.address }

func (s snippets) buildx() string {
	options := fmt.Sprintf("cacert=%s,cert=%s,key=%s,servername=%s", s.ca, s.crt, s.key, s.engine.ServerName)
	return "docker buildx create --name " + shellQuote("mayfly-"+s.engine.Name) + " --driver remote --driver-opt " + shellQuote(options) + " " + shellQuote(s.buildkit())
}

func (s snippets) print(p *program) {
	if s.edge {
		p.warn("engine %s is behind a TLS edge (%s), which tools with files do not pass: use mayfly exec or mayfly proxy", s.engine.Name, s.engine.Endpoint)
	}
	host, _, err := net.SplitHostPort(s.address)
	if err == nil && host != s.engine.ServerName {
		p.warn("the engine's name is %s, and Dagger verifies the host of its URL, %s: use mayfly exec for Dagger", s.engine.ServerName, host)
	}
	lines := []string{
		"# Dagger",
		"export " + daggerVariable + "=" + shellQuote(s.dagger()),
		"# docker buildx",
		s.buildx(),
		"# buildctl",
		fmt.Sprintf("buildctl --addr %s --tlsservername %s --tlscacert %s --tlscert %s --tlskey %s", shellQuote(s.buildkit()), shellQuote(s.engine.ServerName), shellQuote(s.ca), shellQuote(s.crt), shellQuote(s.key)),
		"# ghostunnel: reads the files again every 5 minutes",
		fmt.Sprintf("ghostunnel client --listen unix:engine.sock --target %s --override-server-name %s --cert %s --key %s --cacert %s --timed-reload 5m", shellQuote(s.address), shellQuote(s.engine.ServerName), shellQuote(s.crt), shellQuote(s.key), shellQuote(s.ca)),
		"# Envoy: a file of secrets, and the cluster's transport socket, which follows it; set no idle_timeout, a build may be silent for minutes",
		"printf '%s\\n' " + shellQuote(s.envoySecrets()) + " >" + shellQuote(s.envoyFile()),
		"transport_socket: " + s.envoySocket(),
	}
	for _, l := range lines {
		p.printf("%s\n", escapeText(l))
	}
}

// envoyFile returns the path for Envoy's secrets.
func (s snippets) envoyFile() string { return filepath.Join(filepath.Dir(s.crt), "envoy-sds.json") }

// envoyTLS is the package name of Envoy's TLS messages.
const envoyTLS = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3."

// object is a JSON object.
type object map[string]any

// envoySecrets returns a resource file for Envoy's secret discovery. Only in such a file
// can Envoy watch the folder, so that it notices the exchange of a set.
func (s snippets) envoySecrets() string {
	return oneLine(object{"resources": []object{{
		"@type": envoyTLS + "Secret", "name": "mayfly",
		"tls_certificate": object{
			"certificate_chain": object{"filename": s.crt}, "private_key": object{"filename": s.key},
			"watched_directory": object{"path": filepath.Dir(s.crt)},
		},
	}}})
}

// envoySocket returns the transport socket of an Envoy cluster.
func (s snippets) envoySocket() string {
	return oneLine(object{"name": "envoy.transport_sockets.tls", "typed_config": object{
		"@type": envoyTLS + "UpstreamTlsContext", "sni": s.engine.ServerName,
		"common_tls_context": object{
			"tls_params": object{"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
			"tls_certificate_sds_secret_configs": []object{{
				"name": "mayfly", "sds_config": object{"path_config_source": object{"path": s.envoyFile()}},
			}},
			"validation_context": object{
				"trusted_ca":                    object{"filename": s.ca},
				"match_typed_subject_alt_names": []object{{"san_type": "DNS", "matcher": object{"exact": s.engine.ServerName}}},
			},
		},
	}})
}

func oneLine(o object) string {
	var b strings.Builder
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(o); err != nil { // maps, lists and strings do not fail
		return ""
	}
	return strings.TrimSpace(b.String())
}
