package issuer

import (
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/ca/store"
	"github.com/mayfly-ca/mayfly/client/wire"
)

func TestMachineState(t *testing.T) {
	t.Parallel()
	seen := time.Now()
	for _, c := range []struct {
		sidecar string
		after   time.Duration
		want    string
	}{
		{wire.SidecarListening, 0, wire.EngineAwake},
		{wire.SidecarPaused, wire.StatusEvery, wire.EngineAwake},
		{wire.SidecarListening, 3 * wire.StatusEvery, wire.EngineAwake},
		{wire.SidecarListening, 4 * wire.StatusEvery, wire.EngineSilent},
		{wire.SidecarPaused, 4 * wire.StatusEvery, wire.EngineSilent},
		{wire.SidecarStopped, 0, wire.EngineAsleep},
		{wire.SidecarStopped, 1000 * time.Hour, wire.EngineAsleep},
	} {
		if got := machineState(store.MachineStatus{State: c.sidecar, SeenAt: seen}, seen.Add(c.after)); got != c.want {
			t.Errorf("%s, %v later: %s, want %s", c.sidecar, c.after, got, c.want)
		}
	}
}
