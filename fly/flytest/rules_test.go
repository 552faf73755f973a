package flytest

import (
	"strings"
	"testing"
)

const goodApp = `
app = "example"
kill_signal = "SIGTERM"
kill_timeout = "5m"
[env]
NAME = "value"
[[mounts]]
source = "data"
destination = "/data"
initial_size = "10gb"
auto_extend_size_threshold = 80
auto_extend_size_increment = "5gb"
auto_extend_size_limit = "50gb"
[[services]]
protocol = "tcp"
internal_port = 8080
auto_stop_machines = "stop"
auto_start_machines = true
[services.concurrency]
type = "connections"
soft_limit = 5
hard_limit = 10
[[services.ports]]
port = 8080
handlers = ["proxy_proto"]
proxy_proto_options = { version = "v2" }
[[services.tcp_checks]]
interval = "15s"
timeout = "2s"
[[vm]]
size = "performance-2x"
memory = "4gb"
[[restart]]
policy = "on-failure"
[[files]]
guest_path = "/etc/file"
raw_value = "text"
`

// TestRules checks that each fault that flyctl accepts is refused, and that the
// file without the fault is accepted.
func TestRules(t *testing.T) {
	t.Parallel()
	if _, err := ParseApp([]byte(goodApp)); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ name, old, new, want string }{
		{"signal", `"SIGTERM"`, `"SIGNOPE"`, "kill_signal"},
		{"kill timeout", `"5m"`, `9999`, "kill_timeout"},
		{"kill timeout type", `"5m"`, `true`, "kill_timeout"},
		{"no app", `app = "example"`, ``, "app"},
		{"Fly's names", `NAME =`, `FLY_NAME =`, "FLY_NAME"},
		{"unknown key", `app =`, "bogus = 1\napp =", "bogus"},
		{"unknown key in services", `internal_port = 8080`, "internal_port = 8080\nport = 1", "port"},
		{"unknown key in ports", `port = 8080`, "port = 8080\nalpn = 1", "alpn"},
		{"unknown key in checks", `timeout = "2s"`, "timeout = \"2s\"\nport = 1", "port"},
		{"unknown key in mounts", `source =`, "snapshots = false\nsource =", "snapshots"},
		{"unknown key in vm", `size = "perf`, "cpu = 1\nsize = \"perf", "cpu"},
		{"protocol", `"tcp"`, `"sctp"`, "protocol"},
		{"internal port", `internal_port = 8080`, `internal_port = 70000`, "internal_port"},
		{"port", "\nport = 8080", "\nport = 99999", "port 99999"},
		{"handler", `["proxy_proto"]`, `["bogus"]`, "bogus"},
		{"PROXY v1 by number", `"v2"`, `"2"`, "proxy_proto_options"},
		{"PROXY options without handler", `["proxy_proto"]`, `["tls"]`, "proxy_proto_options"},
		{"concurrency type", `"connections"`, `"donuts"`, "donuts"},
		{"soft over hard", `soft_limit = 5`, `soft_limit = 11`, "soft_limit"},
		{"stop word", `"stop"`, `"yes"`, "auto_stop_machines"},
		{"stop without start", `auto_start_machines = true`, `auto_start_machines = false`, "for good"},
		{"vm size", `"performance-2x"`, `"huge-1x"`, "huge-1x"},
		{"vm memory", `"4gb"`, `"2gb"`, "memory"},
		{"mount at the root", `"/data"`, `"/"`, "destination"},
		{"relative mount", `"/data"`, `"data"`, "destination"},
		{"two mounts", "[[services]]", "[[mounts]]\nsource = \"b\"\ndestination = \"/b\"\n[[services]]", "one volume"},
		{"volume growth", `"50gb"`, `"5000gb"`, "limit"},
		{"bare milliseconds", `"15s"`, `"15"`, "interval"},
		{"restart", `"on-failure"`, `"sometimes"`, "restart"},
		{"relative file", `"/etc/file"`, `"etc/file"`, "guest_path"},
		{"two sources of a file", `raw_value =`, "secret_name = \"X\"\nraw_value =", "one of"},
		{"canary with a volume", "[env]", "[deploy]\nstrategy = \"canary\"\n[env]", "volume"},
		{"second value", `app = "example"`, "app = \"example\"\napp = \"other\"", "app"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			text := strings.Replace(goodApp, c.old, c.new, 1)
			if text == goodApp {
				t.Fatal("the case changes nothing")
			}
			_, err := ParseApp([]byte(text))
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want one with %q", err, c.want)
			}
		})
	}
}

// FuzzParseApp: an accepted file names an app and follows the rules.
func FuzzParseApp(f *testing.F) {
	f.Add([]byte(goodApp))
	f.Add([]byte(rawApp))
	f.Fuzz(func(t *testing.T, data []byte) {
		app, err := ParseApp(data)
		if err != nil {
			return
		}
		if app.Name == "" || app.check() != nil || app.KillTimeout() <= 0 || app.KillTimeout() > maxKillTimeout {
			t.Errorf("accepted %+v", app)
		}
	})
}
