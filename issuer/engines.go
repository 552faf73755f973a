package issuer

import (
	"context"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mayfly-ca/mayfly/ca/store"
	"github.com/mayfly-ca/mayfly/client/wire"
	"github.com/mayfly-ca/mayfly/issuer/internal/policy"
)

const (
	// maxVersionBytes bounds a version in a status.
	maxVersionBytes = 128
	// maxFeedAge bounds the age of a feed in a status.
	maxFeedAge = 90 * 24 * time.Hour
	// maxCertificateLife bounds how far in the future a sidecar's certificate may end:
	// the longest life of a server certificate plus an hour.
	maxCertificateLife = 25 * time.Hour
	// maxCertificateAge bounds how far in the past it may end.
	maxCertificateAge = 90 * 24 * time.Hour
	// silentAfter is how long after its last status a machine counts as silent: three
	// statuses are missing.
	silentAfter = 3*wire.StatusEvery + 30*time.Second
)

// reportStatus stores the status of a sidecar, or returns why it is refused.
func (s *Server) reportStatus(ctx context.Context, by store.SessionReporter, st wire.SidecarStatus) (refused string, err error) {
	now := time.Now()
	if why := badStatus(st, now); why != "" {
		return why, nil
	}
	err = s.authority.Store().PutStatus(ctx, by, store.MachineStatus{
		State: st.State, Version: st.Version, EngineVersion: st.EngineVersion, EngineSocket: st.EngineSocket,
		CertificateNotAfter: st.CertificateNotAfter.UTC(), FeedAt: now.Add(-time.Duration(st.FeedAgeSeconds) * time.Second).UTC(),
	})
	if err != nil {
		return "", unavailable("store status", err)
	}
	s.versions.expire()
	return "", nil
}

// badStatus returns what is wrong with a status, or "".
func badStatus(s wire.SidecarStatus, now time.Time) string {
	switch {
	case s.State != wire.SidecarListening && s.State != wire.SidecarPaused && s.State != wire.SidecarStopped:
		return "state is none of listening, paused, stopped"
	case s.EngineSocket != wire.SocketOK && s.EngineSocket != wire.SocketUnreachable:
		return "engine_socket is none of ok, unreachable"
	case s.Version == "":
		return "version is missing"
	case !isVersion(s.Version):
		return "version is not 1 to 128 printable ASCII characters"
	case !isVersion(s.EngineVersion):
		return "engine_version is not 1 to 128 printable ASCII characters"
	case s.FeedAgeSeconds < 0 || s.FeedAgeSeconds > int64(maxFeedAge/time.Second):
		return "feed_age_seconds is negative, or more than 90 days"
	case s.CertificateNotAfter.After(now.Add(maxCertificateLife)) || s.CertificateNotAfter.Before(now.Add(-maxCertificateAge)):
		return "certificate_not_after is missing, more than 25 hours ahead, or more than 90 days ago"
	}
	return ""
}

// isVersion reports whether s is empty or has the form of a version.
func isVersion(s string) bool {
	return len(s) <= maxVersionBytes && strings.IndexFunc(s, func(r rune) bool { return r <= ' ' || r > '~' }) < 0
}

// listEngines handles GET /v1/engines.
func (s *Server) listEngines(w http.ResponseWriter, r *http.Request) error {
	if _, err := s.requireRole(w, r, policy.Viewer); err != nil {
		return err
	}
	if err := noQuery(r); err != nil {
		return err
	}
	list, err := s.Engines(r.Context())
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, list)
}

// Engines returns the engines of the policy, by name, with the machines that reported
// for them. Errors: unavailable.
func (s *Server) Engines(ctx context.Context) (wire.List[wire.EngineStatus], error) {
	statuses, err := s.authority.Store().Statuses(ctx)
	if err != nil {
		return wire.List[wire.EngineStatus]{}, unavailable("list engines", err)
	}
	now := time.Now()
	engines := s.policies.Set().Engines()
	list := wire.List[wire.EngineStatus]{Items: make([]wire.EngineStatus, 0, len(engines))}
	for _, e := range engines {
		w := wire.EngineStatus{Name: e.Name, Endpoint: e.Endpoint, ServerName: e.ServerName, State: wire.EngineUnknown, Machines: []wire.MachineStatus{}}
		for _, m := range statuses {
			if m.Engine != e.Name {
				continue
			}
			state := machineState(m, now)
			if len(w.Machines) == 0 || state == wire.EngineAwake {
				w.State = state
			}
			w.LiveSessions += m.LiveSessions
			w.Machines = append(w.Machines, wire.MachineStatus{
				Machine: m.Machine, State: state, Sidecar: m.State, SeenAt: m.SeenAt, Version: m.Version, EngineVersion: m.EngineVersion,
				EngineSocket: m.EngineSocket, CertificateNotAfter: m.CertificateNotAfter, FeedAt: m.FeedAt, LiveSessions: m.LiveSessions,
			})
		}
		list.Items = append(list.Items, w)
	}
	return list, nil
}

func machineState(m store.MachineStatus, now time.Time) string {
	switch {
	case m.State == wire.SidecarStopped:
		return wire.EngineAsleep
	case now.Sub(m.SeenAt) > silentAfter:
		return wire.EngineSilent
	}
	return wire.EngineAwake
}

// engineVersions caches the versions of the engines, by name, for the responses to
// certificate requests. They are read from the store at most every versionsFor, and
// after this replica has stored a status.
type engineVersions struct {
	known   atomic.Pointer[knownVersions]
	reading sync.Mutex
}

type knownVersions struct {
	readAt time.Time
	byName map[string]string
}

const versionsFor = 10 * time.Second

// read returns the versions that the machines last reported, by engine. It returns the
// cached versions while another request reads the store, or when the store fails. After
// a failure, it does not read the store again within versionsFor.
func (v *engineVersions) read(ctx context.Context, st store.Store) map[string]string {
	known := v.known.Load()
	if known == nil {
		known = &knownVersions{}
	}
	if time.Since(known.readAt) < versionsFor || !v.reading.TryLock() {
		return known.byName
	}
	defer v.reading.Unlock()
	next := &knownVersions{readAt: time.Now(), byName: known.byName}
	if statuses, err := st.Statuses(ctx); err == nil {
		next.byName = make(map[string]string)
		for _, m := range statuses { // sorted by engine, latest status first
			if next.byName[m.Engine] == "" {
				next.byName[m.Engine] = m.EngineVersion
			}
		}
	}
	v.known.Store(next)
	return next.byName
}

// expire makes the next read query the store.
func (v *engineVersions) expire() {
	if known := v.known.Load(); known != nil {
		v.known.Store(&knownVersions{byName: known.byName})
	}
}
