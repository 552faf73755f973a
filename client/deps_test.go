package client

import (
	"encoding/hex"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/mayfly-ca/mayfly/client/mtls"
	"github.com/mayfly-ca/mayfly/client/wire"
)

// TestDependencies checks the dependencies of a pipeline that imports this package:
// the standard library, spiffeid, golang.org/x and mayfly's own small packages.
func TestDependencies(t *testing.T) {
	t.Parallel()
	const module = "github.com/mayfly-ca/mayfly/"
	arrows := map[string][]string{
		"client":              {"client/wire", "client/mtls", "client/tokensource", "ca/identity"},
		"client/mtls":         {"ca/identity"},
		"client/internal/api": {"client/wire"},
		"client/wire":         nil,
		"client/tokensource":  nil,
		"ca/identity":         nil,
	}
	for pkg, may := range arrows {
		for _, os := range []string{"linux", "darwin"} {
			cmd := exec.Command("go", "list", "-deps", "-f", "{{if not .Standard}}{{.ImportPath}}{{end}}", module+pkg)
			cmd.Env = append(cmd.Environ(), "GOOS="+os, "CGO_ENABLED=0")
			out, err := cmd.Output()
			if err != nil {
				t.Fatalf("go list: %v", err)
			}
			for dep := range strings.FieldsSeq(string(out)) {
				local, isOwn := strings.CutPrefix(dep, module)
				switch {
				case isOwn && local == pkg:
				case isOwn && slices.Contains(may, local):
				case !isOwn && dep == "github.com/spiffe/go-spiffe/v2/spiffeid":
				case !isOwn && strings.HasPrefix(dep, "golang.org/x/"):
				default:
					t.Errorf("%s (%s) imports %s", pkg, os, dep)
				}
			}
		}
	}
}

// Packages that may not import package wire have copies of its constants.
func TestConstantsAgree(t *testing.T) {
	t.Parallel()
	server := mtls.ServerConfig(nil, spiffeid.TrustDomain{}, nil)
	if got := strings.Join(server.NextProtos, " "); got != wire.ALPNRelay+" "+wire.ALPNControl+" h2" {
		t.Errorf("mtls negotiates %q", got)
	}
	if mtls.MaxFeedBytes != wire.MaxResponseBytes {
		t.Error("a feed that the issuer may answer is too large to parse")
	}
	w := newWorld(t, loopback{})
	c := w.client()
	conn := dialed(t, c)
	defer conn.Close()
	state := conn.(*relay).conn.ConnectionState()
	want, err := state.ExportKeyingMaterial(wire.ExporterLabel, nil, wire.ExporterLength)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := mtls.RelayName(state); err != nil || got != hex.EncodeToString(want) {
		t.Errorf("mtls names relays otherwise: %q, %v", got, err)
	}
}
