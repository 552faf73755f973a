package issuer

import (
	"fmt"
	"net/http"
	"net/netip"
	"time"

	"github.com/mayfly-ca/mayfly/ca/store"
	"github.com/mayfly-ca/mayfly/client/wire"
	"github.com/mayfly-ca/mayfly/issuer/internal/policy"
)

// maxSessionReason bounds the reason in a report.
const maxSessionReason = 256

// sessionSkew bounds how far in the future a report's time may lie. Old reports are
// accepted: a sidecar keeps them while it cannot reach the issuer.
const sessionSkew = 5 * time.Minute

// reportSessions handles POST /v1/sessions.
func (s *Server) reportSessions(w http.ResponseWriter, r *http.Request) error {
	by, err := s.requireMachine(w, r)
	if err != nil {
		return err
	}
	var req wire.SessionsRequest
	if err := decode(r, &req); err != nil {
		return err
	}
	if n := len(req.Reports); n > wire.MaxSessionReports || n == 0 && req.Status == nil {
		return badRequest("reports: want 1 to %d of them, or a status", wire.MaxSessionReports)
	}
	reports, refused := sessionReports(req.Reports, time.Now())
	out := wire.SessionsResponse{Refused: refused}
	if len(reports) > 0 {
		accepted, no, err := s.authority.Store().ReportSessions(r.Context(), by, reports)
		if err != nil {
			return unavailable("report sessions", err)
		}
		out.Accepted = accepted
		for _, n := range no {
			out.Refused = append(out.Refused, wire.SessionRefusal{ID: n.ID, Reason: n.Reason})
		}
	}
	if req.Status != nil {
		if out.StatusRefused, err = s.reportStatus(r.Context(), by, *req.Status); err != nil {
			return err
		}
	}
	return writeJSON(w, http.StatusOK, out)
}

// requireMachine verifies a machine's token for the sessions audience, which never
// allows a certificate, and returns the engine that its rule serves.
func (s *Server) requireMachine(w http.ResponseWriter, r *http.Request) (store.SessionReporter, error) {
	raw, err := bearer(r)
	if err != nil {
		return store.SessionReporter{}, err
	}
	ctx := r.Context()
	rules := s.policies.load()
	claims, err := rules.verifier.Verify(ctx, raw, rules.set.SessionsAudience())
	if err != nil {
		return store.SessionReporter{}, err
	}
	infoOf(ctx).identity = subjectName(claims)
	if err := s.perID.take(w, r, limitKey(claims)); err != nil {
		return store.SessionReporter{}, err
	}
	d, err := rules.set.Decide(claims, policy.Request{Want: policy.WantSessions})
	if err != nil {
		return store.SessionReporter{}, s.recordDenial(ctx, claims, err)
	}
	if len(d.Engines) != 1 {
		return store.SessionReporter{}, fmt.Errorf("rule %s admits %d engines", d.Rule, len(d.Engines))
	}
	infoOf(ctx).rule = d.Rule
	return store.SessionReporter{Machine: d.Identity.String(), Engine: d.Engines[0].Name}, nil
}

// sessionReports checks the form of each report. A malformed report is refused
// permanently, so that a sidecar does not send it forever.
func sessionReports(in []wire.SessionReport, now time.Time) ([]store.SessionReport, []wire.SessionRefusal) {
	out := make([]store.SessionReport, 0, len(in))
	var refused []wire.SessionRefusal
	for _, i := range in {
		if why := badReport(i, now); why != "" {
			refused = append(refused, wire.SessionRefusal{ID: truncate(i.ID), Reason: why})
			continue
		}
		out = append(out, store.SessionReport{
			Kind: i.Kind, ID: i.ID, Serial: i.Serial, RemoteAddr: i.RemoteAddr, Reason: i.Reason,
			At: i.At.UTC(), BytesIn: i.BytesIn, BytesOut: i.BytesOut,
		})
	}
	return out, refused
}

func badReport(r wire.SessionReport, now time.Time) string {
	switch {
	case r.Kind != wire.SessionOpen && r.Kind != wire.SessionProgress && r.Kind != wire.SessionClose && r.Kind != wire.SessionFeedStale:
		return "kind is none of open, progress, close, feed_stale"
	case !isHex(r.ID, 32, 32):
		return "id is not 32 lower-case hex digits"
	case !isHex(r.Serial, 32, 32) && r.Kind != wire.SessionFeedStale:
		return "serial is not 32 lower-case hex digits"
	case r.At.IsZero() || r.At.After(now.Add(sessionSkew)):
		return "at is missing or in the future"
	case r.BytesIn < 0 || r.BytesOut < 0:
		return "bytes are negative"
	case len(r.Reason) > maxSessionReason:
		return "reason is too long"
	case r.RemoteAddr != "" && !isAddress(r.RemoteAddr):
		return "remote_addr is not an address"
	}
	return ""
}

// isAddress reports whether s is an address, with or without a port. It must have no
// zone: a peer's address has none, and a zone may hold any text.
func isAddress(s string) bool {
	a, err := netip.ParseAddr(s)
	if ap, perr := netip.ParseAddrPort(s); perr == nil {
		a, err = ap.Addr(), nil
	}
	return err == nil && a.Zone() == ""
}

// listSessions handles GET /v1/sessions.
func (s *Server) listSessions(w http.ResponseWriter, r *http.Request) error {
	if _, err := s.requireRole(w, r, policy.Viewer); err != nil {
		return err
	}
	list, err := s.Sessions(r.Context(), r.URL.Query())
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, list)
}
