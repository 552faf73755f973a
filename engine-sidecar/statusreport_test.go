package sidecar

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mayfly-ca/mayfly/client/wire"
)

// TestWhenStatusesAreSent: a status is sent when the sidecar begins to listen,
// every minute, and when it stops. After one that the issuer could not parse,
// none is sent for an hour.
func TestWhenStatusesAreSent(t *testing.T) {
	t.Parallel()
	const end = 100*time.Minute + 10*time.Second
	for _, c := range []struct {
		name     string
		listened bool
		answer   func(sent int) (string, error)
		want     []time.Duration // after the start
		stopped  bool            // whether the last one reports the stop
	}{
		{"listens", true, func(int) (string, error) { return "", nil }, []time.Duration{80 * time.Second, 2 * time.Minute, 3 * time.Minute, end}, true},
		{"never listened", false, func(int) (string, error) { return "", nil }, nil, false},
		{"refused", true, func(int) (string, error) { return "version is missing", nil }, []time.Duration{80 * time.Second, 2 * time.Minute, 3 * time.Minute, end}, true},
		{"away", true, func(int) (string, error) { return "", errors.New("connection refused") }, []time.Duration{80 * time.Second, 2 * time.Minute, 3 * time.Minute, end}, true},
		{"not understood", true, func(int) (string, error) { return "", &wire.Problem{Status: 400} }, []time.Duration{80 * time.Second, 62 * time.Minute}, false},
		{"replaced meanwhile", true, func(sent int) (string, error) {
			if sent == 1 {
				return "", &wire.Problem{Status: 400}
			}
			return "", nil
		}, []time.Duration{80 * time.Second, 62 * time.Minute, 63 * time.Minute, end}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				start := time.Now()
				var log strings.Builder
				r := newReporter(&sidecar{log: slog.New(slog.NewTextHandler(&log, nil))})
				var sent []time.Duration
				stopped := false
				r.status.send = func(_ context.Context, stops bool) (string, error) {
					sent, stopped = append(sent, time.Since(start).Truncate(time.Second)), stops
					return c.answer(len(sent))
				}
				ctx, cancel := context.WithCancel(t.Context())
				done := make(chan struct{})
				go func() { r.run(ctx); close(done) }()
				time.Sleep(80 * time.Second)
				if c.listened {
					r.announce()
				}
				time.Sleep(end - 80*time.Second)
				synctest.Wait()
				cancel()
				<-done
				// The statuses between the first ones and the last are sent every minute.
				if n := len(c.want); len(sent) > n && n > 0 {
					sent = slices.Delete(sent, n-1, len(sent)-1)
				}
				if !slices.Equal(sent, c.want) || stopped != c.stopped {
					t.Errorf("sent at %v, the last of a stop: %v; want %v, %v", sent, stopped, c.want, c.stopped)
				}
				if n := strings.Count(log.String(), "status is not reported"); n > 1 || (n == 1) == (c.name == "listens" || c.name == "never listened") {
					t.Errorf("%d warnings:\n%s", n, log.String())
				}
			})
		})
	}
}

func TestReportedVersion(t *testing.T) {
	t.Parallel()
	digest := strings.Repeat("0123456789abcdef", 4)
	for value, want := range map[string]string{
		"": "", "v0.21.8": "v0.21.8", "0.21.8+build.1": "0.21.8+build.1",
		"registry.dagger.io/engine:v0.21.8": "engine:v0.21.8", "engine:v0.21.8": "engine:v0.21.8", "localhost:5000/engine": "engine",
		"docker.io/moby/buildkit:v0.34.2@sha256:" + digest: "buildkit:v0.34.2", "registry.dagger.io/engine@sha256:" + digest: "engine@sha256:0123456789ab",
		"engine@": "engine@:", "@": "@:", "a/": "",
	} {
		if got := reportedVersion(value); got != want {
			t.Errorf("reportedVersion(%q) = %q, want %q", value, got, want)
		}
		if !validVersion(value) {
			t.Errorf("%q is not valid", value)
		}
	}
	for _, value := range []string{"v0.21.8 ", "v0 21", "v\x1b[31m", "vé", strings.Repeat("v", maxReportedVersion+1), "a/" + strings.Repeat("b/", maxEngineVersion)} {
		if validVersion(value) {
			t.Errorf("%q is valid", value)
		}
		if _, err := ParseConfig([]byte(minimal), []string{EnvPrefix + "ENGINE_VERSION=" + value}); err == nil || !strings.Contains(err.Error(), "engine_version") {
			t.Errorf("%q: %v", value, err)
		}
	}
}
