package sidecar

import (
	"bytes"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/pires/go-proxyproto"

	"github.com/mayfly-ca/mayfly/engine-sidecar/internal/admission"
)

const minimal = "issuer: https://issuer.example.com\nengine: default\n"

func TestParseConfig(t *testing.T) {
	t.Parallel()
	c, err := ParseConfig([]byte(minimal+"limits: {connections: 7}\nidle_exit: 90s\n"), []string{
		"HOME=/root", "MAYFLY_ISSUER=https://other.example.com",
		"MAYFLY_SIDECAR_ENGINE=big", "MAYFLY_SIDECAR_MAX_STALENESS=2m", "MAYFLY_SIDECAR_LIMITS_HANDSHAKE_RATE=9",
		"MAYFLY_SIDECAR_TRUSTED_PROXIES=172.16.0.0/12, fdaa::1", "MAYFLY_SIDECAR_PROXY_PROTOCOL=required",
		"MAYFLY_SIDECAR_UNSAFE_NO_ISOLATION=true", "MAYFLY_SIDECAR_LISTEN=",
	})
	if err != nil {
		t.Fatal(err)
	}
	want := Config{
		Issuer: "https://issuer.example.com", Engine: "big", Listen: ":8080", ProxyProtocol: "required",
		TrustedProxies: []string{"172.16.0.0/12", "fdaa::1"}, EngineSocket: "/run/dagger/engine.sock",
		EngineProbe: "answer", UnsafeNoIsolation: true, TokenSource: "auto", MaxStaleness: 2 * time.Minute,
		OnStale: "refuse", MaxConnectionAge: 24 * time.Hour, IdleExit: 90 * time.Second, BootGrace: time.Minute,
		BootTimeout: 10 * time.Minute, DrainTimeout: 30 * time.Second, KillTimeout: 2 * time.Minute,
		Limits: Limits{
			Connections: 7, ConnectionsPerRun: 256, Handshakes: 512, HandshakesPerAddress: 64,
			HandshakeTimeout: 10 * time.Second, HandshakeRate: 9,
		},
	}
	if diff := cmp.Diff(want, c); diff != "" {
		t.Fatal(diff)
	}
	if _, err := ParseConfig(nil, []string{"MAYFLY_SIDECAR_ISSUER=https://issuer.example.com", "MAYFLY_SIDECAR_ENGINE=default"}); err != nil {
		t.Fatalf("by variables alone: %v", err)
	}
}

// TestListsInVariables: each list key accepts items separated by commas.
func TestListsInVariables(t *testing.T) {
	t.Parallel()
	base := []string{"MAYFLY_SIDECAR_ISSUER=https://issuer.example.com", "MAYFLY_SIDECAR_ENGINE=default", "MAYFLY_SIDECAR_PROXY_PROTOCOL=required"}
	for _, tc := range []struct {
		value string
		want  []string
	}{
		{"A=1", []string{"A=1"}},
		{" A=1 ,, B ", []string{"A=1", "B"}},
		{`A="x" y`, []string{`A="x" y`}},
		{`["NO_PROXY=localhost,10.0.0.0/8", 'A= 1 ', B]`, []string{"NO_PROXY=localhost,10.0.0.0/8", "A= 1 ", "B"}},
		{" [\n \"A=[1,2]\"]\n", []string{"A=[1,2]"}},
		{"[]", []string{}},
	} {
		c, err := ParseConfig(nil, append(slices.Clone(base), "MAYFLY_SIDECAR_ENGINE_ENV="+tc.value))
		if diff := cmp.Diff(tc.want, c.EngineEnv); err != nil || diff != "" {
			t.Errorf("%s: %v %s", tc.value, err, diff)
		}
	}
	c, err := ParseConfig(nil, append(slices.Clone(base), `MAYFLY_SIDECAR_ENGINE_HIDE=["/a,b","/c"]`, `MAYFLY_SIDECAR_TRUSTED_PROXIES=["10.0.0.1"]`))
	if err != nil || !slices.Equal(c.EngineHide, []string{"/a,b", "/c"}) || !slices.Equal(c.TrustedProxies, []string{"10.0.0.1"}) {
		t.Errorf("engine_hide %q, trusted_proxies %q, %v", c.EngineHide, c.TrustedProxies, err)
	}
	for _, value := range []string{`["A=1"`, `[{A: 1}]`, `["A"] B`, `[[A]]`} {
		if _, err := ParseConfig(nil, append(slices.Clone(base), "MAYFLY_SIDECAR_ENGINE_ENV="+value)); err == nil || !strings.Contains(err.Error(), "MAYFLY_SIDECAR_ENGINE_ENV: begins with [ and is no list") {
			t.Errorf("%s: %v", value, err)
		}
	}
}

func TestParseConfigRefuses(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct{ yaml, env, want string }{
		"nothing":              {"", "", "issuer is required"},
		"unknown key":          {minimal + "isuer: x\n", "", `sidecar.yaml:3:1: unknown key "isuer"; did you mean "issuer"?`},
		"unknown limit":        {minimal + "limits: {conections: 1}\n", "", `sidecar.yaml:3:10: unknown key "conections" in limits; did you mean "connections"?`},
		"duplicate key":        {minimal + "engine: b\n", "", `sidecar.yaml:3:1: key "engine" occurs twice, first on line 2; keep one`},
		"second document":      {minimal + "---\nengine: b\n", "", "sidecar.yaml:3:1: a second document"},
		"unknown variable":     {minimal, "MAYFLY_SIDECAR_ENGIN=x", "there is no key for the variable MAYFLY_SIDECAR_ENGIN; did you mean MAYFLY_SIDECAR_ENGINE?"},
		"unknown limit's var":  {minimal, "MAYFLY_SIDECAR_LIMITS_CONECTIONS=1", "did you mean MAYFLY_SIDECAR_LIMITS_CONNECTIONS?"},
		"variable of nothing":  {minimal, "MAYFLY_SIDECAR_XYZZY=1", "MAYFLY_SIDECAR_XYZZY; unset it"},
		"issuer over http":     {strings.Replace(minimal, "https://", "http://", 1), "", "is http, which is for loopback only"},
		"trust anchor":         {minimal + "trust_anchor: abcd\n", "", "trust anchor is not sha256:"},
		"audience of another":  {minimal + "audience: sts.amazonaws.com\n", "", "audience \"sts.amazonaws.com\" does not begin with \"mayfly:\""},
		"token source":         {minimal + "token_source: floppy\n", "", "token_source: token source \"floppy\" is none of"},
		"bad duration":         {minimal, "MAYFLY_SIDECAR_IDLE_EXIT=90", `MAYFLY_SIDECAR_IDLE_EXIT: want a duration like 90s, 5m or 24h, not "90"`},
		"staleness of a day":   {minimal + "max_staleness: 24h\n", "", "max_staleness"},
		"age over a day":       {minimal + "max_connection_age: 25h\n", "", "max_connection_age"},
		"negative idle":        {minimal + "idle_exit: -1s\n", "", "idle_exit"},
		"relative socket":      {minimal + "engine_socket: engine.sock\n", "", "engine_socket"},
		"proxy_protocol":       {minimal + "proxy_protocol: v2\n", "", "proxy_protocol"},
		"on_stale":             {minimal + "on_stale: ignore\n", "", "on_stale"},
		"proxies without":      {minimal + "trusted_proxies: [10.0.0.0/8]\n", "", "needs proxy_protocol"},
		"proxy that is a name": {minimal + "proxy_protocol: required\ntrusted_proxies: [edge.example.com]\n", "", "neither an address"},
		"address":              {minimal + "listen: 8080\n", "", "8080"},
		"negative limit":       {minimal + "limits: {connections: -1}\n", "", "limits"},
		"negative drain":       {minimal + "drain_timeout: -1s\n", "", "drain_timeout"},
		"limit of no machine":  {minimal, "MAYFLY_SIDECAR_LIMITS_HANDSHAKE_RATE=9223372036854775807", "limits.handshake_rate"},
		"empty listen":         {minimal + "listen: ''\n", "", "listen is required"},
		"empty token_source":   {minimal + "token_source: ''\n", "", "token_source is required"},
	} {
		var env []string
		if tc.env != "" {
			env = []string{tc.env}
		}
		_, err := ParseConfig([]byte(tc.yaml), env)
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q", name, err, tc.want)
		}
	}
}

// TestZero: an explicit zero, in the file or in the environment, is zero or an
// error, and never the default.
func TestZero(t *testing.T) {
	t.Parallel()
	allowed := map[string]bool{"drain_timeout": true, "idle_exit": true}
	var keys []string
	var walk func(typ reflect.Type, prefix string)
	walk = func(typ reflect.Type, prefix string) {
		for i := range typ.NumField() {
			f := typ.Field(i)
			key := prefix + f.Tag.Get("yaml")
			switch {
			case f.Tag.Get("yaml") == "-":
			case f.Type.Kind() == reflect.Struct:
				walk(f.Type, key+".")
			case f.Type == reflect.TypeFor[time.Duration](), f.Type.Kind() == reflect.Int:
				keys = append(keys, key)
			}
		}
	}
	walk(reflect.TypeFor[Config](), "")
	if !slices.Contains(keys, "drain_timeout") || !slices.Contains(keys, "limits.handshake_rate") {
		t.Fatalf("only %q", keys)
	}
	for _, key := range keys {
		zero := "0s"
		line := key + ": 0s\n"
		if limit, ok := strings.CutPrefix(key, "limits."); ok {
			if limit != "handshake_timeout" {
				zero = "0"
			}
			line = "limits: {" + limit + ": " + zero + "}\n"
		}
		_, inFile := ParseConfig([]byte(minimal+line), nil)
		_, inEnv := ParseConfig([]byte(minimal), []string{EnvPrefix + strings.ToUpper(strings.ReplaceAll(key, ".", "_")) + "=" + zero})
		for where, err := range map[string]error{"file": inFile, "environment": inEnv} {
			switch {
			case allowed[key] && err != nil:
				t.Errorf("%s in the %s: %v", key, where, err)
			case !allowed[key] && (err == nil || !strings.Contains(err.Error(), key+": 0 is")):
				t.Errorf("%s in the %s: %v, want a refusal", key, where, err)
			}
		}
	}
	c, err := ParseConfig([]byte(minimal+"drain_timeout: 0s\n"), nil)
	if err != nil || c.DrainTimeout != 0 {
		t.Errorf("drain_timeout 0s became %v, %v", c.DrainTimeout, err)
	}
	c, err = ParseConfig([]byte(minimal+"idle_exit: 1m\n"), []string{"MAYFLY_SIDECAR_IDLE_EXIT=0s", "MAYFLY_SIDECAR_DRAIN_TIMEOUT=0s"})
	if err != nil || c.IdleExit != 0 || c.DrainTimeout != 0 {
		t.Errorf("by variables: idle_exit %v, drain_timeout %v, %v", c.IdleExit, c.DrainTimeout, err)
	}
}

// TestEveryKeyIsDocumented: each key has a doc comment and a variable.
func TestEveryKeyIsDocumented(t *testing.T) {
	t.Parallel()
	src, err := os.ReadFile("config.go")
	if err != nil {
		t.Fatal(err)
	}
	var walk func(typ reflect.Type)
	walk = func(typ reflect.Type) {
		for i := range typ.NumField() {
			f := typ.Field(i)
			if f.Tag.Get("yaml") == "-" {
				continue
			}
			if !bytes.Contains(src, []byte("// "+f.Name+" ")) {
				t.Errorf("%s has no doc comment", f.Name)
			}
			if f.Type.Kind() == reflect.Struct {
				walk(f.Type)
			}
		}
	}
	walk(reflect.TypeFor[Config]())
}

// TestHidden: the folders of secrets are hidden. A secret in a folder that the
// engine needs is refused.
func TestHidden(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	secrets, elsewhere := filepath.Join(dir, "secrets"), filepath.Join(dir, "elsewhere")
	for _, folder := range []string{secrets, elsewhere} {
		if err := os.Mkdir(folder, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(elsewhere, "jwt"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(elsewhere, "jwt"), filepath.Join(secrets, "link")); err != nil {
		t.Fatal(err)
	}
	base := DefaultConfig()
	base.EngineHide = []string{"/srv/secret"}
	for _, tc := range []struct {
		name   string
		change func(*Config)
		hidden []string // in addition to /srv/secret
		says   string   // in the error
	}{
		{"Fly's socket", func(*Config) {}, []string{"/.fly"}, ""},
		{"another socket, and no token file", func(c *Config) { c.FlyAPISocket = "/run/fly/api" }, []string{"/run/fly"}, ""},
		{"a token file", func(c *Config) { c.TokenSource = "file:" + secrets + "/jwt" }, []string{"/.fly", secrets}, ""},
		{"a token file that is a link", func(c *Config) { c.TokenSource = "file:" + secrets + "/link" }, []string{"/.fly", secrets, elsewhere}, ""},
		{"a path that is not clean", func(c *Config) { c.TokenSource = "file:" + secrets + "//../secrets/jwt" }, []string{"/.fly", secrets}, ""},
		{"a folder that is not there", func(c *Config) { c.TokenSource = "file:" + dir + "/none/jwt" }, nil, "token_source: stat " + dir + "/none: no such file"},
		{"/tmp", func(c *Config) { c.TokenSource = "file:/tmp/jwt" }, nil, "token_source: /tmp/jwt cannot be hidden from the engine, because /tmp belongs to the system"},
		{"the root", func(c *Config) { c.TokenSource = "file:/jwt" }, nil, "because / belongs to the system"},
		{"/run, for the socket", func(c *Config) { c.FlyAPISocket = "/run/api" }, nil, "fly_api_socket: /run/api cannot be hidden"},
		{"the socket's folder", func(c *Config) { c.EngineSocket, c.TokenSource = secrets+"/engine/e.sock", "file:"+secrets+"/jwt" }, nil, "because engine_socket is in " + secrets},
		{"the engine's folder", func(c *Config) {
			c.TokenSource, c.Program.Command = "file:"+secrets+"/jwt", []string{"buildkitd", "--root=" + secrets + "/state"}
		}, nil, "because the engine's command names " + secrets},
		{"a link into the engine's folder", func(c *Config) {
			c.TokenSource, c.Program.Command = "file:"+secrets+"/link", []string{elsewhere + "/engine"}
		}, nil, "because the engine's command names " + elsewhere},
	} {
		c := base
		c.FlyAPISocket = "/.fly/api"
		tc.change(&c)
		got, err := c.hidden()
		if tc.says != "" {
			if err == nil || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("%s: error %v, want %q in it", tc.name, err, tc.says)
			}
			continue
		}
		if diff := cmp.Diff(append([]string{"/srv/secret"}, tc.hidden...), got); err != nil || diff != "" {
			t.Errorf("%s: %v %s", tc.name, err, diff)
		}
	}
}

func TestIdle(t *testing.T) {
	t.Parallel()
	now := time.Now()
	i := newIdle(Config{IdleExit: time.Minute, BootGrace: 2 * time.Minute}, now)
	for name, tc := range map[string]struct {
		counts admission.Counts
		after  time.Duration
		over   bool
	}{
		"nobody yet":    {admission.Counts{}, time.Minute + time.Second, false},
		"nobody":        {admission.Counts{}, 2 * time.Minute, true},
		"somebody":      {admission.Counts{HadRelay: true, Relays: 1}, time.Hour, false},
		"just gone":     {admission.Counts{HadRelay: true, IdleSince: now.Add(time.Hour)}, time.Hour + 59*time.Second, false},
		"gone":          {admission.Counts{HadRelay: true, IdleSince: now.Add(time.Hour)}, time.Hour + time.Minute, true},
		"only controls": {admission.Counts{HadRelay: true, Controls: 3, IdleSince: now}, time.Minute, true},
	} {
		if got := i.exitReason(tc.counts, now.Add(tc.after)) != ""; got != tc.over {
			t.Errorf("%s: %v", name, got)
		}
	}
	if newIdle(Config{BootGrace: time.Second}, now).exitReason(admission.Counts{}, now.Add(time.Hour)) != "" {
		t.Error("idle_exit 0 ended it")
	}
}

func TestExpiry(t *testing.T) {
	t.Parallel()
	for token, want := range map[string]int64{
		"e30.eyJleHAiOjE3MDAwMDAwMDB9.c2ln": 1700000000,
		"e30.e30.c2ln":                      0,
		"e30.%%.c2ln":                       0,
		"nothing":                           0,
		"e30.eyJleHAiOi0xfQ.c2ln":           0,
	} {
		got := expiry(token)
		if want == 0 && !got.IsZero() || want != 0 && got.Unix() != want {
			t.Errorf("%s: %v", token, got)
		}
	}
}

// FuzzProxyHeader: exactly the header is read. A returned address has the
// header that a proxy would write for it.
func FuzzProxyHeader(f *testing.F) {
	for _, from := range []string{"203.0.113.9:4711", "[2001:db8::1]:1"} {
		src := netip.MustParseAddrPort(from)
		h := proxyproto.Header{
			Version: 2, Command: proxyproto.PROXY, TransportProtocol: proxyproto.TCPv4,
			SourceAddr: net.TCPAddrFromAddrPort(src), DestinationAddr: net.TCPAddrFromAddrPort(src),
		}
		if src.Addr().Is6() {
			h.TransportProtocol = proxyproto.TCPv6
		}
		b, err := h.Format()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
		f.Add(append(b, "more"...))
	}
	f.Add([]byte("PROXY TCP4 1.2.3.4 1.2.3.4 1 1\r\n"))
	f.Add(append(bytes.Clone(proxySignature), 0x20, 0, 0, 0))
	f.Fuzz(func(t *testing.T, data []byte) {
		r := bytes.NewReader(data)
		addr, err := readProxyHeader(r)
		if err != nil {
			return
		}
		if !bytes.HasPrefix(data, proxySignature) {
			t.Fatal("no signature")
		}
		n := proxyHeaderFixed + int(data[14])<<8 + int(data[15])
		if read := len(data) - r.Len(); read != n {
			t.Fatalf("read %d bytes of a header of %d", read, n)
		}
		if addr.IsValid() && addr.Addr().Is4In6() {
			t.Fatalf("%v has two spellings", addr)
		}
	})
}

// TestEveryKeyIsAVariable sets each key by its variable alone, to a value
// other than its default.
func TestEveryKeyIsAVariable(t *testing.T) {
	t.Parallel()
	values := map[string]string{ // for the keys that do not accept any text
		"MAYFLY_SIDECAR_LISTEN": "127.0.0.1:1", "MAYFLY_SIDECAR_STATUS_LISTEN": "127.0.0.1:2", "MAYFLY_SIDECAR_PROXY_PROTOCOL": ProxyRequired,
		"MAYFLY_SIDECAR_TRUSTED_PROXIES": "10.0.0.1, 10.0.0.2", "MAYFLY_SIDECAR_ENGINE_SOCKET": "/s", "MAYFLY_SIDECAR_ENGINE_PROBE": ProbeConnect,
		"MAYFLY_SIDECAR_ENGINE_HIDE": "/a,/b", "MAYFLY_SIDECAR_ON_STALE": StaleCut,
		"MAYFLY_SIDECAR_ISSUER": "https://issuer.example.com", "MAYFLY_SIDECAR_TRUST_ANCHOR": "sha256:" + strings.Repeat("ab", 32),
		"MAYFLY_SIDECAR_AUDIENCE": "mayfly:ci.example.com", "MAYFLY_SIDECAR_TOKEN_SOURCE": "fly",
	}
	given := map[string]string{}
	var walk func(typ reflect.Type, prefix string)
	walk = func(typ reflect.Type, prefix string) {
		for i := range typ.NumField() {
			f := typ.Field(i)
			key := f.Tag.Get("yaml")
			name := prefix + strings.ToUpper(key)
			switch {
			case key == "-":
			case f.Type.Kind() == reflect.Struct:
				walk(f.Type, name+"_")
			case values[name] != "":
				given[name] = values[name]
			case f.Type == reflect.TypeFor[time.Duration]():
				given[name] = "7s"
			case f.Type.Kind() == reflect.Int:
				given[name] = "7"
			case f.Type.Kind() == reflect.Bool:
				given[name] = "true"
			default:
				given[name] = "text"
			}
		}
	}
	walk(reflect.TypeFor[Config](), EnvPrefix)
	var environ []string
	for name, value := range given {
		environ = append(environ, name+"="+value)
	}
	c, err := ParseConfig(nil, environ)
	if err != nil {
		t.Fatal(err)
	}
	defaults := DefaultConfig()
	var check func(got, other reflect.Value)
	check = func(got, other reflect.Value) {
		for i := range got.NumField() {
			f := got.Type().Field(i)
			switch {
			case f.Tag.Get("yaml") == "-":
			case f.Type.Kind() == reflect.Struct:
				check(got.Field(i), other.Field(i))
			case reflect.DeepEqual(got.Field(i).Interface(), other.Field(i).Interface()):
				t.Errorf("%s is not set by its variable", f.Name)
			}
		}
	}
	check(reflect.ValueOf(c), reflect.ValueOf(defaults))
}
