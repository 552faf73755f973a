package flytest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"
)

// App is a fly.toml. It has only the keys that mayfly's files use; any other key is
// an error. flyctl itself silently drops unknown keys inside services, mounts and
// vm.
type App struct {
	// Path is the path of the file.
	Path string `toml:"-"`

	Name          string `toml:"app"`
	PrimaryRegion string `toml:"primary_region"`
	// KillSignal is the signal that stops the main process.
	KillSignal string `toml:"kill_signal"`
	// KillTimeoutRaw is a number of seconds, or a string with a unit; see
	// KillTimeout.
	KillTimeoutRaw any               `toml:"kill_timeout"`
	Build          *Build            `toml:"build"`
	Deploy         *Deploy           `toml:"deploy"`
	Env            map[string]string `toml:"env"`
	Mounts         []Mount           `toml:"mounts"`
	HTTPService    *HTTPService      `toml:"http_service"`
	Services       []Service         `toml:"services"`
	Restart        []Restart         `toml:"restart"`
	VM             []VM              `toml:"vm"`
	Metrics        []Metrics         `toml:"metrics"`
	Files          []File            `toml:"files"`
	// Checks are reported. Unlike a service's checks, they do not change routing.
	Checks map[string]Check `toml:"checks"`
}

// Build names the image.
type Build struct {
	Image      string            `toml:"image"`
	Dockerfile string            `toml:"dockerfile"`
	IgnoreFile string            `toml:"ignorefile"`
	Target     string            `toml:"build-target"`
	Args       map[string]string `toml:"args"`
}

// Deploy says how a new version replaces the old one.
type Deploy struct {
	Strategy    string `toml:"strategy"`
	WaitTimeout string `toml:"wait_timeout"`
}

// Mount is a volume.
type Mount struct {
	Source                  string `toml:"source"`
	Destination             string `toml:"destination"`
	InitialSize             string `toml:"initial_size"`
	SnapshotRetention       int    `toml:"snapshot_retention"`
	ScheduledSnapshots      *bool  `toml:"scheduled_snapshots"` // nil: Fly takes snapshots
	AutoExtendSizeThreshold int    `toml:"auto_extend_size_threshold"`
	AutoExtendSizeIncrement string `toml:"auto_extend_size_increment"`
	AutoExtendSizeLimit     string `toml:"auto_extend_size_limit"`
}

// Service is a TCP service behind Fly Proxy.
type Service struct {
	Protocol           string       `toml:"protocol"`
	InternalPort       int          `toml:"internal_port"`
	AutoStopMachines   string       `toml:"auto_stop_machines"`
	AutoStartMachines  *bool        `toml:"auto_start_machines"` // nil: true
	MinMachinesRunning int          `toml:"min_machines_running"`
	Ports              []Port       `toml:"ports"`
	Concurrency        *Concurrency `toml:"concurrency"`
	TCPChecks          []TCPCheck   `toml:"tcp_checks"`
	HTTPChecks         []HTTPCheck  `toml:"http_checks"`
}

// Port is one public port. Without handlers, bytes pass unchanged.
type Port struct {
	Port              int                `toml:"port"`
	Handlers          []string           `toml:"handlers"`
	ForceHTTPS        bool               `toml:"force_https"`
	TLSOptions        *TLSOptions        `toml:"tls_options"`
	ProxyProtoOptions *ProxyProtoOptions `toml:"proxy_proto_options"`
}

// TLSOptions are the options of the tls handler.
type TLSOptions struct {
	ALPN     []string `toml:"alpn"`
	Versions []string `toml:"versions"`
}

// ProxyProtoOptions are the options of the proxy_proto handler. Without a version,
// the header is the text of version 1.
type ProxyProtoOptions struct {
	Version string `toml:"version"`
}

// HTTPService is one service with ports 80 (http) and 443 (http over tls).
type HTTPService struct {
	InternalPort       int          `toml:"internal_port"`
	ForceHTTPS         bool         `toml:"force_https"`
	AutoStopMachines   string       `toml:"auto_stop_machines"`
	AutoStartMachines  *bool        `toml:"auto_start_machines"`
	MinMachinesRunning int          `toml:"min_machines_running"`
	Concurrency        *Concurrency `toml:"concurrency"`
	Checks             []HTTPCheck  `toml:"checks"`
}

// Concurrency bounds the load of one machine. At SoftLimit the proxy prefers
// another machine; at HardLimit it sends nothing more. Zero means no limit.
type Concurrency struct {
	Type      string `toml:"type"`
	SoftLimit int    `toml:"soft_limit"`
	HardLimit int    `toml:"hard_limit"`
}

// TCPCheck opens and closes a connection.
type TCPCheck struct {
	Interval    string `toml:"interval"`
	Timeout     string `toml:"timeout"`
	GracePeriod string `toml:"grace_period"`
}

// HTTPCheck expects a 2xx status.
type HTTPCheck struct {
	Interval    string            `toml:"interval"`
	Timeout     string            `toml:"timeout"`
	GracePeriod string            `toml:"grace_period"`
	Method      string            `toml:"method"`
	Path        string            `toml:"path"`
	Protocol    string            `toml:"protocol"`
	Headers     map[string]string `toml:"headers"`
}

// Check is a top-level check.
type Check struct {
	Type        string `toml:"type"`
	Port        int    `toml:"port"`
	Method      string `toml:"method"`
	Path        string `toml:"path"`
	Interval    string `toml:"interval"`
	Timeout     string `toml:"timeout"`
	GracePeriod string `toml:"grace_period"`
}

// Restart says what happens after the main process ends.
type Restart struct {
	Policy  string `toml:"policy"`
	Retries int    `toml:"retries"`
}

// VM is the machine's size.
type VM struct {
	Size     string `toml:"size"`
	Memory   string `toml:"memory"`
	CPUKind  string `toml:"cpu_kind"`
	CPUs     int    `toml:"cpus"`
	MemoryMB int    `toml:"memory_mb"`
}

// Metrics is a Prometheus endpoint that Fly scrapes.
type Metrics struct {
	Port int    `toml:"port"`
	Path string `toml:"path"`
}

// File is written into the machine when it starts.
type File struct {
	GuestPath  string `toml:"guest_path"`
	LocalPath  string `toml:"local_path"`
	SecretName string `toml:"secret_name"`
	RawValue   string `toml:"raw_value"`
}

// maxFileBytes bounds a fly.toml.
const maxFileBytes = 1 << 20

// LoadApp reads a fly.toml, strictly, and checks what flyctl does not.
func LoadApp(path string) (*App, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFileBytes+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	app, err := ParseApp(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	app.Path = path
	return app, nil
}

// ParseApp parses and checks a fly.toml as LoadApp does.
func ParseApp(data []byte) (*App, error) {
	if len(data) > maxFileBytes {
		return nil, fmt.Errorf("larger than %d bytes", maxFileBytes)
	}
	decoder := toml.NewDecoder(bytes.NewReader(data)).DisallowUnknownFields()
	var app App
	if err := decoder.Decode(&app); err != nil {
		if unknown, ok := errors.AsType[*toml.StrictMissingError](err); ok {
			return nil, fmt.Errorf("unknown keys:\n%s", unknown.String())
		}
		return nil, err
	}
	if err := app.check(); err != nil {
		return nil, err
	}
	return &app, nil
}

// KillTimeout returns how long a stop waits between the signal and the kill. The
// default is 5 s.
func (a *App) KillTimeout() time.Duration {
	d, _ := killTimeout(a.KillTimeoutRaw)
	return d
}

func killTimeout(raw any) (time.Duration, error) {
	switch v := raw.(type) {
	case nil:
		return 5 * time.Second, nil
	case int64:
		return time.Duration(v) * time.Second, nil
	case string:
		return time.ParseDuration(v)
	}
	return 0, errors.New("neither seconds nor a duration")
}

// RestartPolicy returns the file's policy, or Fly's default.
func (a *App) RestartPolicy() Restart {
	if len(a.Restart) == 0 {
		return Restart{Policy: "on-failure", Retries: 10}
	}
	r := a.Restart[0]
	if r.Policy == "on-failure" && r.Retries == 0 {
		r.Retries = 10
	}
	return r
}

// AllServices returns the file's services. [http_service] is included as the
// service that it abbreviates.
func (a *App) AllServices() []Service {
	services := append([]Service(nil), a.Services...)
	if h := a.HTTPService; h != nil {
		services = append(services, Service{
			Protocol: "tcp", InternalPort: h.InternalPort,
			AutoStopMachines: h.AutoStopMachines, AutoStartMachines: h.AutoStartMachines,
			MinMachinesRunning: h.MinMachinesRunning, Concurrency: h.Concurrency, HTTPChecks: h.Checks,
			Ports: []Port{
				{Port: 80, Handlers: []string{"http"}, ForceHTTPS: h.ForceHTTPS},
				{Port: 443, Handlers: []string{"http", "tls"}},
			},
		})
	}
	return services
}

// Hostname returns the app's public name.
func (a *App) Hostname() string { return strings.ToLower(a.Name) + ".fly.dev" }
