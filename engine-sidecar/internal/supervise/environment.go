package supervise

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// EnvironmentRules decide which of the sidecar's variables reach the engine.
// They are patterns of names, where a star matches any text. Never and Named
// ignore case.
type EnvironmentRules struct {
	// Never lists variables that never reach the engine, even when named.
	Never []string
	// Named lists variables that may be secret. They reach the engine only
	// under their exact name. Named has priority over Default and prefixes.
	Named []string
	// Default lists variables that reach the engine without being named.
	Default []string
}

// Rules are the rules for every engine. Options.Env adds to them.
var Rules = EnvironmentRules{
	Never: []string{"MAYFLY_*", "ACTIONS_*", "FLY_API*", "FLY_ACCESS*", "FLY_*TOKEN*", notifyVariable},
	Named: []string{
		"*TOKEN*", "*SECRET*", "*_KEY", "*PASSWORD*", "*PASSWD*", "*CREDENTIAL*", "OTEL_EXPORTER_OTLP*_HEADERS",
		"AWS_*", "AZURE_*", "GOOGLE_*", "GCP_*", "CLOUDSDK_*", "FLY_*",
	},
	Default: []string{
		"PATH", "HOME", "USER", "LOGNAME", "HOSTNAME", "LANG", "LC_*", "TZ", "TMPDIR", "XDG_*",
		"DAGGER_*", "_DAGGER_ENGINE_*", "_EXPERIMENTAL_DAGGER_*", "BUILDKIT_*", "BUILDKITD_*", "CONTAINERD_*", "NVIDIA_*",
		"HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "ALL_PROXY", "NO_PROXY",
		"http_proxy", "https_proxy", "ftp_proxy", "all_proxy", "no_proxy",
		"SSL_CERT_*", "OTEL_*", "GODEBUG", "GOGC", "GOMAXPROCS", "GOMEMLIMIT", "GOTRACEBACK",
	},
}

// notifyVariable is the variable for the socket for READY=1 (sd_notify(3)).
// The sidecar sets it.
const notifyVariable = "NOTIFY_SOCKET"

// CheckEnvironment validates the entries of Options.Env. Its errors contain no
// value.
func CheckEnvironment(entries []string) error {
	for _, entry := range entries {
		if err := checkEntry(entry); err != nil {
			return err
		}
	}
	return nil
}

func checkEntry(entry string) error {
	name, _, given := strings.Cut(entry, "=")
	prefix, star := strings.CutSuffix(name, "*")
	upper := strings.ToUpper(name)
	switch {
	case name == "" || strings.ContainsRune(entry, 0):
		return errors.New("an entry has no name or holds a zero byte")
	case strings.Contains(prefix, "*") || star && (given || prefix == ""):
		return fmt.Errorf("%q is neither NAME, NAME=VALUE nor PREFIX*", name)
	case matches(Rules.Never, upper):
		return fmt.Errorf("%q never reaches the engine: it belongs to the sidecar or its platform", name)
	case star && matches(Rules.Named, upper):
		return fmt.Errorf("what %q stands for may be a secret and reaches the engine by exact name only: name each variable", name)
	}
	return nil
}

// environment returns the engine's environment, sorted, and the names of the
// variables that are not passed on. own is Options.Env, withhold is
// Options.Withhold, and environ is the sidecar's environment.
func environment(own, withhold, environ []string) (env, dropped []string, err error) {
	if err := CheckEnvironment(own); err != nil {
		return nil, nil, err
	}
	values := map[string]string{"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root"}
	seen := map[string]bool{}
	for _, variable := range environ {
		name, value, ok := strings.Cut(variable, "=")
		if !ok || name == "" || seen[name] {
			continue
		}
		seen[name] = true
		if !slices.Contains(withhold, name) && passes(name, own) {
			values[name] = value
		} else {
			dropped = append(dropped, name)
		}
	}
	for _, entry := range own {
		if name, value, given := strings.Cut(entry, "="); given {
			values[name] = value
		}
	}
	for _, name := range slices.Sorted(maps.Keys(values)) {
		env = append(env, name+"="+values[name])
	}
	slices.Sort(dropped)
	return env, dropped, nil
}

// passes reports whether the engine gets the sidecar's variable name.
func passes(name string, own []string) bool {
	upper := strings.ToUpper(name)
	switch {
	case matches(Rules.Never, upper):
		return false
	case slices.Contains(own, name):
		return true
	case matches(Rules.Named, upper):
		return false
	}
	return matches(Rules.Default, name) || slices.ContainsFunc(own, func(entry string) bool {
		prefix, star := strings.CutSuffix(entry, "*")
		return star && !strings.Contains(entry, "=") && strings.HasPrefix(name, prefix)
	})
}

// matches reports whether one of patterns matches name.
func matches(patterns []string, name string) bool {
	return slices.ContainsFunc(patterns, func(pattern string) bool {
		first, last, star := strings.Cut(pattern, "*")
		if !star {
			return name == pattern
		}
		rest, begins := strings.CutPrefix(name, first)
		middle := strings.Split(last, "*")
		rest, ends := strings.CutSuffix(rest, middle[len(middle)-1])
		for _, part := range middle[:len(middle)-1] {
			_, after, found := strings.Cut(rest, part)
			rest, ends = after, ends && found
		}
		return begins && ends
	})
}
