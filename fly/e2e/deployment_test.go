// Package e2e tests the whole system: the deployed files with the configurations of
// the programs that read them, and the programs together.
package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/pelletier/go-toml/v2"
	"go.yaml.in/yaml/v3"

	sidecar "github.com/mayfly-ca/mayfly/engine-sidecar"
	"github.com/mayfly-ca/mayfly/fly/flytest"
	"github.com/mayfly-ca/mayfly/issuer"
)

func load(t *testing.T, path string) *flytest.App {
	t.Helper()
	app, err := flytest.LoadApp(filepath.Join("..", path))
	if err != nil {
		t.Fatal(err)
	}
	return app
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("..", path))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// sidecarConfig returns the sidecar's configuration from the image's file and
// [env].
func sidecarConfig(t *testing.T, app *flytest.App) sidecar.Config {
	t.Helper()
	var environ []string
	for name, value := range app.Env {
		environ = append(environ, name+"="+value)
	}
	dir := filepath.Base(filepath.Dir(app.Path))
	c, err := sidecar.ParseConfig(read(t, dir+"/sidecar.yaml"), environ)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// connectionsPerSession counts Dagger's four connections and mayfly's control
// connection.
const connectionsPerSession = 5

// TestEngineFiles checks the settings on which an engine's safety, cache and price
// depend.
func TestEngineFiles(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		file     string
		public   int
		handlers []string
		state    string
	}{
		{"engine/fly.toml", 8080, []string{"proxy_proto"}, "/var/lib/dagger"},
		{"engine/fly.edge.toml", 443, []string{"tls", "proxy_proto"}, "/var/lib/dagger"},
		{"buildkit/fly.toml", 8080, []string{"proxy_proto"}, "/var/lib/buildkit"},
	} {
		t.Run(c.file, func(t *testing.T) {
			t.Parallel()
			app := load(t, c.file)
			conf := sidecarConfig(t, app)
			must := mustOf(t)

			must(app.KillSignal == "SIGTERM", "kill_signal is said: Fly's documents disagree on the default")
			must(app.KillTimeout() == 300*time.Second, "kill_timeout is Fly's longest")
			must(conf.DrainTimeout+3*time.Second+conf.KillTimeout < app.KillTimeout(), "the sidecar is done before Fly kills it")
			must(app.RestartPolicy().Policy == "on-failure", "an idle exit with 0 stays down")

			must(len(app.Services) == 1 && app.HTTPService == nil, "one service")
			s := app.Services[0]
			must(s.AutoStopMachines == "stop", "stop, not suspend: 4 GB, and clocks")
			must(s.AutoStartMachines != nil && *s.AutoStartMachines && s.MinMachinesRunning == 0, "scales to zero and back")
			must(len(s.TCPChecks)+len(s.HTTPChecks) == 0, "no service check delays a wake-up")
			must(len(s.Ports) == 1 && s.Ports[0].Port == c.public, "one public port")
			must(cmp.Equal(s.Ports[0].Handlers, c.handlers), "handlers")
			must(s.Ports[0].ProxyProtoOptions != nil && s.Ports[0].ProxyProtoOptions.Version == "v2", "PROXY v2, binary")
			must(conf.ProxyProtocol == sidecar.ProxyRequired, "and the sidecar insists on it")
			must(s.Ports[0].TLSOptions == nil, "the outer TLS offers no ALPN")
			must(strings.HasSuffix(conf.Listen, ":8080") && s.InternalPort == 8080, "the sidecar listens where Fly looks")
			must(s.Concurrency != nil && s.Concurrency.Type == "connections" && s.Concurrency.SoftLimit == s.Concurrency.HardLimit,
				"soft_limit asks for no second machine")
			must(s.Concurrency.HardLimit >= 4*connectionsPerSession && s.Concurrency.HardLimit%connectionsPerSession == 0, "whole sessions fit")

			must(len(app.Mounts) == 1 && app.Mounts[0].Destination == c.state, "the cache is on the volume")
			m := app.Mounts[0]
			must(m.ScheduledSnapshots != nil && !*m.ScheduledSnapshots, "no snapshots of a cache")
			must(m.AutoExtendSizeThreshold > 0, "the volume grows")
			must(len(app.VM) == 1 && strings.HasPrefix(app.VM[0].Size, "performance-"), "no throttled CPU")

			must(conf.StatusListen == ":9091" && app.Checks["ready"].Port == 9091 && app.Metrics[0].Port == 9091, "status is where Fly looks")
			must(conf.TokenSource == "fly", "the machine's own identity")
			must(strings.HasPrefix(conf.TrustAnchor, "sha256:") && strings.HasPrefix(conf.Issuer, "https://"), "the root is pinned")
			must(!conf.UnsafeNoIsolation && conf.IdleExit > 0 && conf.IdleExit <= 2*time.Minute, "isolated, and a short tail")
			must(!strings.Contains(strings.Join(keys(app.Env), " "), "TOKEN"), "no secrets in [env]")
		})
	}
	raw, edge := load(t, "engine/fly.toml"), load(t, "engine/fly.edge.toml")
	if diff := cmp.Diff(raw, edge, cmpopts.IgnoreFields(flytest.App{}, "Path", "Services")); diff != "" {
		t.Errorf("fly.edge.toml differs in more than its port:\n%s", diff)
	}
}

// TestCacheFitsTheVolume compares the engines' garbage collection with the volume's
// size limit and its growth threshold.
func TestCacheFitsTheVolume(t *testing.T) {
	t.Parallel()
	var dagger struct {
		LogLevel string `json:"logLevel"`
		GC       struct {
			MaxUsedSpace  string `json:"maxUsedSpace"`
			ReservedSpace string `json:"reservedSpace"`
			MinFreeSpace  string `json:"minFreeSpace"`
			SweepSize     string `json:"sweepSize"`
		} `json:"gc"`
		Security struct {
			InsecureRootCapabilities *bool `json:"insecureRootCapabilities"`
		} `json:"security"`
	}
	decoder := json.NewDecoder(strings.NewReader(string(read(t, "engine/engine.json"))))
	decoder.DisallowUnknownFields() // as the engine does
	if err := decoder.Decode(&dagger); err != nil {
		t.Fatal(err)
	}
	if p := dagger.Security.InsecureRootCapabilities; p == nil || *p {
		t.Error("an engine's user would be root on the machine")
	}
	var buildkit struct {
		Root   string `toml:"root"`
		Worker struct {
			OCI struct {
				NetworkMode  string `toml:"networkMode"`
				MaxUsedSpace string `toml:"maxUsedSpace"`
				MinFreeSpace string `toml:"minFreeSpace"`
			} `toml:"oci"`
		} `toml:"worker"`
	}
	if err := toml.Unmarshal(read(t, "buildkit/buildkitd.toml"), &buildkit); err != nil {
		t.Fatal(err)
	}
	if buildkit.Worker.OCI.NetworkMode != "bridge" {
		t.Error("build steps share the machine's network")
	}
	for _, c := range []struct{ file, most, free string }{
		{"engine/fly.toml", dagger.GC.MaxUsedSpace, dagger.GC.MinFreeSpace},
		{"buildkit/fly.toml", buildkit.Worker.OCI.MaxUsedSpace, buildkit.Worker.OCI.MinFreeSpace},
	} {
		m := load(t, c.file).Mounts[0]
		most, err1 := gigabytes(c.most)
		free, err2 := gigabytes(c.free)
		limit, err3 := gigabytes(m.AutoExtendSizeLimit)
		initial, err4 := gigabytes(m.InitialSize)
		if err1 != nil || err2 != nil || err3 != nil || err4 != nil {
			t.Fatal(err1, err2, err3, err4)
		}
		if most*100 > limit*m.AutoExtendSizeThreshold {
			t.Errorf("%s: a cache of %d GB does not fit a volume of %d GB", c.file, most, limit)
		}
		if free*100 >= initial*(100-m.AutoExtendSizeThreshold) {
			t.Errorf("%s: the collector keeps %d GB free, so a volume of %d GB never grows", c.file, free, initial)
		}
	}
}

func TestIssuerFiles(t *testing.T) {
	t.Parallel()
	app := load(t, "issuer/fly.toml")
	conf, err := issuer.ParseConfig(read(t, "issuer/issuer.yaml"), "/etc/mayfly")
	if err != nil {
		t.Fatal(err)
	}
	must := mustOf(t)
	h := app.HTTPService
	if h == nil {
		t.Fatal("fly/issuer/fly.toml has no [http_service]")
	}
	must(len(app.Services) == 0, "HTTPS by Fly's edge")
	must(h.ForceHTTPS && h.InternalPort == 8080 && conf.Listen == ":8080", "and plain HTTP behind it")
	must(conf.TLS.Mode == issuer.TLSOff && conf.BehindProxy && conf.ClientIPHeader == "Fly-Client-IP", "which the issuer knows")
	must(h.AutoStopMachines == "stop" && h.MinMachinesRunning == 0, "scales to zero by stop, never by suspend")
	must(h.AutoStartMachines != nil && *h.AutoStartMachines, "and back")
	must(h.Concurrency.SoftLimit >= 256, "a 256-job matrix calls for no second machine")
	must(app.Deploy.Strategy == "immediate", "never two stores at one time")
	must(len(app.Mounts) == 1 && app.Mounts[0].ScheduledSnapshots != nil && !*app.Mounts[0].ScheduledSnapshots, "no snapshot can roll the store back")
	must(filepath.Dir(conf.Store) == app.Mounts[0].Destination, "the store is on the volume")
	must(conf.CA.Key == "env:MAYFLY_CA_KEY", "the key is a secret, not a file")
	must(slices.Equal(conf.StateKey, []string{"env:MAYFLY_STATE_KEY"}), "the state key is a secret, not a file")
	must(conf.RunAs == "65532:65532", "not as root")
	must(conf.PublicURL == "https://"+app.Hostname(), "one name")
	must(app.KillSignal == "SIGTERM" && app.KillTimeout() >= 10*time.Second, "a clean stop")
	must(app.Checks["ready"].Port == 8080 && app.Metrics[0].Port == 9091 && conf.MetricsListen == ":9091", "where Fly looks")
	must(len(app.Env) == 0, "no secrets in [env]")

	if code, _, errs := output(t, "mayfly-issuer", "policy", "check", "../issuer/policy.yaml"); code != 0 {
		t.Fatalf("policy check: %d: %s", code, errs)
	}
	var rules struct {
		Engines map[string]struct {
			Endpoint   string `yaml:"endpoint"`
			ServerName string `yaml:"server_name"`
		} `yaml:"engines"`
	}
	if err := yaml.Unmarshal(read(t, "issuer/policy.yaml"), &rules); err != nil {
		t.Fatal(err)
	}
	engine := load(t, "engine/fly.toml")
	named := rules.Engines[engine.Env["MAYFLY_SIDECAR_ENGINE"]]
	must(named.Endpoint == "tcp://"+engine.Hostname()+":8080" && named.ServerName == engine.Hostname(), "the policy names the engine of fly/engine")
	must(engine.Env["MAYFLY_SIDECAR_ISSUER"] == conf.PublicURL, "and asks this issuer")
}

var goBuild = regexp.MustCompile(`\["go", "build".*\]`)

// TestDockerfilesBuildCommand runs the go build of each Dockerfile on this
// machine's sources, with another output path.
func TestDockerfilesBuildCommand(t *testing.T) {
	t.Parallel()
	for dir, program := range map[string]string{
		"engine": "./engine-sidecar/cmd/mayfly-sidecar", "buildkit": "./engine-sidecar/cmd/mayfly-sidecar", "issuer": "./issuer/cmd/mayfly-issuer",
	} {
		text := read(t, dir+"/Dockerfile")
		var args []string
		if err := json.Unmarshal(goBuild.Find(text), &args); err != nil {
			t.Fatalf("%s: %v", dir, err)
		}
		must := mustOf(t)
		must(args[len(args)-1] == program, dir+": builds its program")
		must(slices.Contains(args, "nobadger,nomysql,nopgx,nobbolt") && slices.Contains(args, "-trimpath"), dir+": as a release")
		must(strings.Contains(string(text), "CGO_ENABLED=0"), dir+": static")
		if _, err := os.Stat(filepath.Join("..", "..", program)); err != nil {
			t.Error(err)
		}
		ignore := string(read(t, dir+"/Dockerfile.dockerignore"))
		must(strings.Contains(ignore, "\n**\n") && strings.Contains(ignore, "\n**/*.key\n"), dir+": keys are never sent")
	}
}

// gigabytes parses "32GB" and "40gb".
func gigabytes(s string) (int, error) {
	return strconv.Atoi(strings.TrimSuffix(strings.ToLower(s), "gb"))
}

func mustOf(t *testing.T) func(ok bool, what string) {
	return func(ok bool, what string) {
		t.Helper()
		if !ok {
			t.Errorf("not so: %s", what)
		}
	}
}

func keys(m map[string]string) []string {
	var all []string
	for k := range m {
		all = append(all, k)
	}
	return all
}
