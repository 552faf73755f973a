package cli

import "testing"

func TestMemoryReturn(t *testing.T) {
	t.Parallel()
	const mb = 1 << 20
	r := memoryReturn{allocated: 10 * mb}
	for _, look := range []struct {
		what string
		now  uint64
		want bool
	}{
		{"nothing has happened yet", 10 * mb, false},
		{"busy", 50 * mb, false},
		{"busy still", 90 * mb, false},
		{"idle", 90*mb + 100, true},
		{"idle, a second time", 90*mb + 200, true},
		{"busy again", 95 * mb, false},
		{"idle", 95 * mb, true},
		{"idle, a second time", 95*mb + 1, true},
		{"idle, a third time", 95*mb + 2, true},
		{"nothing is left to give", 95*mb + 3, false},
	} {
		if got := r.due(look.now, 8*mb); got != look.want {
			t.Fatalf("%s: %v, want %v", look.what, got, look.want)
		}
	}
}

// TestMemoryReturnOfMany: the idle bound depends on the memory in use.
func TestMemoryReturnOfMany(t *testing.T) {
	t.Parallel()
	const mb = 1 << 20
	r := memoryReturn{}
	if r.due(400*mb, 300*mb) || !r.due(410*mb, 300*mb) {
		t.Error("10 MB beside 300 in use are not little")
	}
}

func TestCollectorPercent(t *testing.T) {
	t.Parallel()
	const mb = 1 << 20
	for live, want := range map[uint64]int{0: 400, 4 * mb: 400, 8 * mb: 200, 16 * mb: 100, 500 * mb: 100} {
		if got := collectorPercent(live); got != want {
			t.Errorf("%d MB in use: %d %%, want %d %%", live/mb, got, want)
		}
	}
	if u := memory(); u.allocated == 0 || u.objects == 0 {
		t.Error("this Go does not tell what it allocates")
	}
}
