package flytest

import (
	"errors"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Values that Fly accepts. flyctl does not check them.
var (
	killSignals = []string{"SIGINT", "SIGTERM", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGKILL", "SIGSTOP"}
	handlers    = []string{"http", "tls", "pg_tls", "proxy_proto"}
	policies    = []string{"always", "never", "on-failure"}
	strategies  = []string{"", "rolling", "immediate", "canary", "bluegreen"}
	stops       = []string{"off", "stop", "suspend"}
	vmSize      = regexp.MustCompile(`^(shared-cpu|performance)-(1|2|4|6|8|10|12|14|16)x$`)
)

// maxKillTimeout is the longest kill_timeout of Fly.
const maxKillTimeout = 300 * time.Second

// check refuses values that flyctl accepts but Fly refuses or ignores.
func (a *App) check() error {
	var errs []error
	note := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if a.Name == "" {
		note("app: missing")
	}
	if a.KillSignal != "" && !slices.Contains(killSignals, a.KillSignal) {
		note("kill_signal %q: Fly knows %s", a.KillSignal, strings.Join(killSignals, ", "))
	}
	if d, err := killTimeout(a.KillTimeoutRaw); err != nil || d <= 0 || d > maxKillTimeout {
		note("kill_timeout %v: not between 1 s and %s", a.KillTimeoutRaw, maxKillTimeout)
	}
	if a.Deploy != nil && !slices.Contains(strategies, a.Deploy.Strategy) {
		note("deploy.strategy %q: unknown", a.Deploy.Strategy)
	}
	if a.Deploy != nil && len(a.Mounts) > 0 && (a.Deploy.Strategy == "canary" || a.Deploy.Strategy == "bluegreen") {
		note("deploy.strategy %q: not with a volume", a.Deploy.Strategy)
	}
	for name := range a.Env {
		if strings.HasPrefix(name, "FLY_") {
			note("env %s: names that begin with FLY_ are Fly's", name)
		}
	}
	for _, r := range a.Restart {
		if !slices.Contains(policies, r.Policy) {
			note("restart.policy %q: unknown", r.Policy)
		}
	}
	if len(a.Mounts) > 1 {
		note("mounts: a machine has one volume")
	}
	for _, m := range a.Mounts {
		errs = append(errs, m.check())
	}
	for _, s := range a.AllServices() {
		errs = append(errs, s.check())
	}
	for _, v := range a.VM {
		errs = append(errs, v.check())
	}
	for _, m := range a.Metrics {
		if !isPort(m.Port) || !path.IsAbs(m.Path) {
			note("metrics: port %d, path %q", m.Port, m.Path)
		}
	}
	for name, c := range a.Checks {
		if !isPort(c.Port) || c.Type != "tcp" && (c.Type != "http" || !path.IsAbs(c.Path)) {
			note("checks.%s: type %q, port %d, path %q", name, c.Type, c.Port, c.Path)
		}
		errs = append(errs, checkTimes(c.Interval, c.Timeout, c.GracePeriod))
	}
	for _, f := range a.Files {
		errs = append(errs, f.check())
	}
	return errors.Join(errs...)
}

func (m Mount) check() error {
	switch {
	case m.Source == "":
		return errors.New("mounts.source: missing")
	case !path.IsAbs(m.Destination) || path.Clean(m.Destination) == "/":
		return fmt.Errorf("mounts.destination %q: not an absolute path below /", m.Destination)
	case m.SnapshotRetention < 0 || m.SnapshotRetention > 60:
		return fmt.Errorf("mounts.snapshot_retention %d: not 1 to 60", m.SnapshotRetention)
	}
	if _, err := gigabytes(m.InitialSize, 1, 500); m.InitialSize != "" && err != nil {
		return fmt.Errorf("mounts.initial_size: %w", err)
	}
	if m.AutoExtendSizeThreshold == 0 && m.AutoExtendSizeIncrement == "" && m.AutoExtendSizeLimit == "" {
		return nil
	}
	if m.AutoExtendSizeThreshold < 50 || m.AutoExtendSizeThreshold > 99 {
		return fmt.Errorf("mounts.auto_extend_size_threshold %d: not 50 to 99 percent", m.AutoExtendSizeThreshold)
	}
	if _, err := gigabytes(m.AutoExtendSizeIncrement, 1, 100); err != nil {
		return fmt.Errorf("mounts.auto_extend_size_increment: %w", err)
	}
	if _, err := gigabytes(m.AutoExtendSizeLimit, 1, 500); err != nil {
		return fmt.Errorf("mounts.auto_extend_size_limit: %w", err)
	}
	return nil
}

// gigabytes parses "20gb".
func gigabytes(s string, least, most int) (int, error) {
	number, ok := strings.CutSuffix(strings.ToLower(s), "gb")
	n, err := strconv.Atoi(number)
	if !ok || err != nil || n < least || n > most {
		return 0, fmt.Errorf("%q: not %d to %d gb", s, least, most)
	}
	return n, nil
}

func (s Service) check() error {
	var errs []error
	note := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf("service %d: "+format, append([]any{s.InternalPort}, args...)...))
	}
	if s.Protocol != "tcp" && s.Protocol != "udp" {
		note("protocol %q", s.Protocol)
	}
	if !isPort(s.InternalPort) {
		note("internal_port is not 1 to 65535")
	}
	if s.AutoStopMachines != "" && !slices.Contains(stops, s.AutoStopMachines) {
		note("auto_stop_machines %q: not off, stop or suspend", s.AutoStopMachines)
	}
	if stopping := s.AutoStopMachines == "stop" || s.AutoStopMachines == "suspend"; stopping && s.AutoStartMachines != nil && !*s.AutoStartMachines {
		note("auto_stop_machines without auto_start_machines leaves the machine down for good")
	}
	if len(s.Ports) == 0 {
		note("no ports")
	}
	for _, p := range s.Ports {
		if !isPort(p.Port) {
			note("port %d is not 1 to 65535", p.Port)
		}
		for _, h := range p.Handlers {
			if !slices.Contains(handlers, h) {
				note("port %d: handler %q is unknown", p.Port, h)
			}
		}
		if p.ProxyProtoOptions != nil && (!slices.Contains(p.Handlers, "proxy_proto") || p.ProxyProtoOptions.Version != "v2") {
			note("port %d: proxy_proto_options want the handler, and version \"v2\"", p.Port)
		}
	}
	if c := s.Concurrency; c != nil {
		if c.Type != "connections" && c.Type != "requests" {
			note("concurrency.type %q", c.Type)
		}
		if c.SoftLimit < 0 || c.HardLimit < 0 || c.HardLimit > 0 && c.SoftLimit > c.HardLimit {
			note("concurrency: soft_limit %d over hard_limit %d", c.SoftLimit, c.HardLimit)
		}
	}
	for _, c := range s.TCPChecks {
		errs = append(errs, checkTimes(c.Interval, c.Timeout, c.GracePeriod))
	}
	for _, c := range s.HTTPChecks {
		errs = append(errs, checkTimes(c.Interval, c.Timeout, c.GracePeriod))
	}
	return errors.Join(errs...)
}

// checkTimes requires a unit in each time: Fly reads a bare number as milliseconds.
func checkTimes(interval, timeout, grace string) error {
	for name, s := range map[string]string{"interval": interval, "timeout": timeout, "grace_period": grace} {
		if s == "" {
			continue
		}
		if d, err := time.ParseDuration(s); err != nil || d < time.Second || d > time.Minute {
			return fmt.Errorf("check %s %q: not 1s to 1m", name, s)
		}
	}
	return nil
}

func (v VM) check() error {
	if v.Size == "" {
		if (v.CPUKind != "shared" && v.CPUKind != "performance") || v.CPUs < 1 {
			return errors.New("vm: neither size nor cpu_kind and cpus")
		}
		return nil
	}
	m := vmSize.FindStringSubmatch(v.Size)
	if m == nil {
		return fmt.Errorf("vm.size %q: unknown", v.Size)
	}
	cpus, _ := strconv.Atoi(m[2])
	if m[1] == "shared-cpu" && cpus > 8 {
		return fmt.Errorf("vm.size %q: unknown", v.Size)
	}
	least, most := 256*cpus, 2048*cpus
	if m[1] == "performance" {
		least, most = 2048*cpus, 8192*cpus
	}
	if v.Memory == "" {
		return nil
	}
	if got, err := megabytes(v.Memory); err != nil || got < least || got > most {
		return fmt.Errorf("vm.memory %q: %s has %d to %d mb", v.Memory, v.Size, least, most)
	}
	return nil
}

// megabytes parses "512mb" and "4gb".
func megabytes(s string) (int, error) {
	lower, factor := strings.ToLower(s), 1
	number, ok := strings.CutSuffix(lower, "mb")
	if !ok {
		number, ok = strings.CutSuffix(lower, "gb")
		factor = 1024
	}
	n, err := strconv.Atoi(number)
	if !ok || err != nil || n < 1 {
		return 0, fmt.Errorf("%q: no size", s)
	}
	return n * factor, nil
}

func (f File) check() error {
	given := 0
	for _, s := range []string{f.LocalPath, f.SecretName, f.RawValue} {
		if s != "" {
			given++
		}
	}
	if !path.IsAbs(f.GuestPath) || given != 1 {
		return fmt.Errorf("files %q: wants an absolute guest_path and one of local_path, secret_name, raw_value", f.GuestPath)
	}
	return nil
}

func isPort(n int) bool { return n > 0 && n < 1<<16 }
