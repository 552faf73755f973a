package web

import (
	"slices"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/client/wire"
)

func TestMachineOf(t *testing.T) {
	t.Parallel()
	now := time.Now()
	const td = "spiffe://ci.example.com/engine/default/"
	for _, c := range []struct {
		name         string
		status       wire.MachineStatus
		where, short string
		stale, ended bool
	}{
		{"well", wire.MachineStatus{Machine: td + "fly/22/m1", State: wire.EngineAwake, SeenAt: now, FeedAt: now.Add(-5 * time.Minute), CertificateNotAfter: now.Add(time.Hour)}, "fly/22", "m1", false, false},
		{"stale and ended", wire.MachineStatus{Machine: td + "fly/22/m1", State: wire.EngineAwake, SeenAt: now, FeedAt: now.Add(-6 * time.Minute), CertificateNotAfter: now.Add(-time.Second)}, "fly/22", "m1", true, true},
		{"asleep", wire.MachineStatus{Machine: td + "kube/system_3Aserviceaccount", State: wire.EngineAsleep, SeenAt: now, FeedAt: now.Add(-time.Hour), CertificateNotAfter: now.Add(-time.Hour)}, "kube", "system_3Aserviceaccount", false, false},
		{"silent", wire.MachineStatus{Machine: "spiffe://x", State: wire.EngineSilent, SeenAt: now, FeedAt: now.Add(-time.Hour), CertificateNotAfter: now.Add(-time.Hour)}, "", "x", false, false},
		{"no identity", wire.MachineStatus{State: wire.EngineSilent}, "", "", false, false},
	} {
		m := machineOf(c.status)
		if m.Where != c.where || m.Name != c.short || m.FeedStale != c.stale || m.Ended != c.ended {
			t.Errorf("%s: %+v", c.name, m)
		}
	}
}

func TestMachinesKeepTheirPlaces(t *testing.T) {
	t.Parallel()
	m := func(name, state string) machine {
		return machine{MachineStatus: wire.MachineStatus{Machine: name, State: state}}
	}
	want := []machine{m("b", wire.EngineAwake), m("d", wire.EngineAwake), m("a", wire.EngineSilent), m("c", wire.EngineAsleep)}
	got := []machine{want[3], want[1], want[2], want[0]}
	slices.SortFunc(got, byState)
	if !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}
