package web

import (
	"cmp"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/mayfly-ca/mayfly/client/wire"
)

// staleFeed is the age at which an engine's revocation feed is too old: the default of
// a sidecar's max_staleness.
const staleFeed = 5 * time.Minute

// machine is a row of an engine's table.
type machine struct {
	wire.MachineStatus
	Name, Where string // the last part of its identity, and the part before it
	FeedAge     time.Duration
	FeedStale   bool
	Ended       bool // its certificate has expired
}

// engine is a section of the page.
type engine struct {
	wire.EngineStatus
	Machines []machine
}

// engines handles GET /engines.
func (p *Page) engines(w http.ResponseWriter, r *http.Request, who visitor) error {
	list, err := p.backend.Engines(r.Context())
	if err != nil {
		return err
	}
	engines := make([]engine, len(list.Items))
	for i, e := range list.Items {
		engines[i].EngineStatus = e
		for _, m := range e.Machines {
			engines[i].Machines = append(engines[i].Machines, machineOf(m))
		}
		slices.SortFunc(engines[i].Machines, byState)
	}
	return p.show(w, r, http.StatusOK, "engines", &who, view{Title: "Engines", Here: "/engines", Reload: true, Data: engines})
}

// machineOf adds display fields to a status. Only an awake machine should have a fresh
// feed and a valid certificate.
func machineOf(s wire.MachineStatus) machine {
	m := machine{MachineStatus: s, FeedAge: s.SeenAt.Sub(s.FeedAt)}
	m.Where, m.Name = machineName(s.Machine)
	awake := s.State == wire.EngineAwake
	m.FeedStale = awake && m.FeedAge > staleFeed
	m.Ended = awake && time.Now().After(s.CertificateNotAfter)
	return m
}

// byState sorts awake machines first, then silent ones, then the others, each by name.
// Rows keep their place from one report to the next.
func byState(a, b machine) int {
	rank := map[string]int{wire.EngineAwake: 1, wire.EngineSilent: 2, wire.EngineAsleep: 3}
	return cmp.Or(cmp.Compare(rank[a.State], rank[b.State]), strings.Compare(a.Machine, b.Machine))
}

// machineName splits the SPIFFE ID spiffe://TD/engine/ENGINE/PROVIDER/.../NAME of a
// machine into PROVIDER/... and NAME.
func machineName(id string) (where, name string) {
	parts := strings.SplitN(id, "/", 6) // spiffe: "" TD engine ENGINE and the rest
	rest := parts[len(parts)-1]
	if i := strings.LastIndexByte(rest, '/'); i >= 0 {
		return rest[:i], rest[i+1:]
	}
	return "", rest
}
