package sqlstore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/mayfly-ca/mayfly/ca/store"
)

// maxRevokedEvents bounds the events of one revocation. This many certificates get
// one event each; all others share one.
const maxRevokedEvents = 1000

// target is a certificate that a revocation affects.
type target struct {
	id           int64
	serial       string
	raw, aki     []byte
	notAfter     int64
	profile      string
	tokenIssuer  string
	repository   string
	repositoryID string
	runID        string
	identity     string
	revoked      bool
}

// blockMatch returns the match that blocks the holder of t: the workflow run if t
// has one, else the identity.
func (t *target) blockMatch() store.Match {
	if t.profile == "client" && t.repositoryID != "" && t.runID != "" {
		return store.Match{TokenIssuer: t.tokenIssuer, RepositoryID: t.repositoryID, RunID: t.runID}
	}
	return store.Match{Identity: t.identity}
}

const targetColumns = `SELECT c.id, c.serial, c.aki, c.not_after, c.profile, c.token_issuer, c.repository, c.repository_id, c.run_id, c.identity,
	COALESCE(r.revoked_at, 0) FROM certificates c LEFT JOIN revocations r ON r.cert_id = c.id`

func scanTarget(r row) (*target, error) {
	var t target
	var revoked int64
	err := r.Scan(&t.id, &t.raw, &t.aki, &t.notAfter, &t.profile, &t.tokenIssuer, &t.repository, &t.repositoryID, &t.runID, &t.identity, &revoked)
	t.serial, t.revoked = fmt.Sprintf("%x", t.raw), revoked != 0
	return &t, err
}

// unexpired returns the unexpired certificates that m selects. The zero Match
// selects all of them.
func unexpired(ctx context.Context, r reader, m store.Match, now time.Time) ([]*target, error) {
	q := &query{}
	// Name both values of revoked, since every index by a value begins with it.
	q.where("c.id >= "+q.arg(idAt(now.Add(-maxLifetime))), "c.not_after >= "+q.arg(micro(now)), "c.revoked IN (0, 1)")
	whereMatch(q, m)
	return collect(ctx, r, scanTarget, targetColumns+q.conditions()+" ORDER BY c.id", q.args...)
}

// revocationPlan is the planned effect of one Revocation.
type revocationPlan struct {
	order    store.Revocation
	now      time.Time
	targets  []*target // without duplicates
	seen     map[int64]bool
	matches  []store.Match // to block
	floor    int64
	sessions int
	machines []string // SPIFFE IDs of unexpired targets of profile server
}

func (s *revocationPlan) add(targets []*target) {
	for _, t := range targets {
		if !s.seen[t.id] {
			s.seen[t.id] = true
			s.targets = append(s.targets, t)
		}
	}
}

// Revoke implements store.Store.
//
// A serial may also be that of an expired certificate, since a relay may outlive
// its certificate. A match and All revoke unexpired certificates.
//
// A block has no times: Since and Until select the revoked certificates, and the
// block compares the other fields of the match. If the match has no other fields,
// the holder of each revoked certificate is blocked, as with All. Every unexpired
// certificate that a block covers is revoked, whatever the times.
func (l *ledger) Revoke(ctx context.Context, r store.Revocation) (*store.RevocationResult, error) {
	if err := checkRevocation(&r); err != nil {
		return nil, fmt.Errorf("revoke: %w", err)
	}
	if r.DryRun {
		s, err := read(ctx, l, "revoke", func(rd reader) (*revocationPlan, error) { return plan(ctx, rd, r) })
		if err != nil {
			return nil, err
		}
		return s.result(nil), nil
	}
	var s *revocationPlan
	var blocks []store.Block
	err := l.update(ctx, "revoke", func(tx transaction, h *chainHead) (events []store.Event, err error) {
		if s, err = plan(ctx, tx, r); err != nil {
			return nil, err
		}
		if r.All {
			if s.floor, err = raiseFloor(ctx, tx, h, s.now); err != nil {
				return nil, err
			}
		}
		blocks = s.blocks()
		if err := insertBlocks(ctx, tx, h, blocks); err != nil {
			return nil, err
		}
		fresh, err := s.insert(ctx, tx, h)
		if err != nil {
			return nil, err
		}
		return s.events(fresh, blocks), nil
	})
	if err != nil {
		return nil, err
	}
	return s.result(blocks), nil
}

// checkRevocation refuses an order that names nothing, or more than one of serial,
// match and all.
func checkRevocation(r *store.Revocation) error {
	named := 0
	for _, is := range []bool{r.Serial != "", !r.Match.IsZero(), r.All} {
		if is {
			named++
		}
	}
	switch {
	case named != 1:
		return errors.New("exactly one of serial, match and all must be named")
	case r.Block < 0:
		return fmt.Errorf("block of %v", r.Block)
	case r.Match.Since != nil && r.Match.Until != nil && !r.Match.Since.Before(*r.Match.Until):
		return errors.New("match ends before it begins")
	}
	r.Reason, r.By = sanitize(r.Reason), sanitize(r.By)
	for _, v := range matchFields(r.Match) {
		if sanitize(v) != v {
			return errors.New("match holds NUL, no UTF-8 or too much")
		}
	}
	return nil
}

// plan returns the effect of r. It changes nothing.
func plan(ctx context.Context, rd reader, r store.Revocation) (*revocationPlan, error) {
	s := &revocationPlan{order: r, now: time.Now(), seen: make(map[int64]bool)}
	if err := s.find(ctx, rd); err != nil {
		return nil, err
	}
	if r.Block > 0 {
		s.choose()
		if !r.All { // All covers everything already
			for _, m := range s.matches {
				if m == r.Match { // without times, m is already done
					continue
				}
				covered, err := unexpired(ctx, rd, m, s.now)
				if err != nil {
					return nil, err
				}
				s.add(covered)
			}
		}
	}
	s.findMachines()
	return s, s.countSessions(ctx, rd)
}

// findMachines lists the machines whose own certificates are revoked.
func (s *revocationPlan) findMachines() {
	for _, t := range s.targets {
		if t.profile == "server" && t.notAfter >= micro(s.now) {
			s.machines = append(s.machines, t.identity)
		}
	}
	slices.Sort(s.machines)
	s.machines = slices.Compact(s.machines)
}

// machinesUntil returns the time until which the machines get no other certificate.
// A block of a serial or of a match includes machines; a block of every client does
// not.
func (s *revocationPlan) machinesUntil() time.Time {
	lasting := s.order.Match
	lasting.Since, lasting.Until = nil, nil
	if len(s.machines) == 0 || s.order.Block == 0 || s.order.Serial == "" && lasting.IsZero() {
		return time.Time{}
	}
	return s.now.Add(s.order.Block)
}

// find adds the certificates that the order names.
func (s *revocationPlan) find(ctx context.Context, rd reader) error {
	if s.order.Serial == "" {
		named, err := unexpired(ctx, rd, s.order.Match, s.now)
		s.add(named)
		return err
	}
	raw, err := parseSerial(s.order.Serial)
	if err != nil {
		return fmt.Errorf("%w: %w", store.ErrNotFound, err)
	}
	named, err := collect(ctx, rd, scanTarget, targetColumns+` WHERE c.serial = $1`, raw)
	if err == nil && len(named) == 0 {
		err = fmt.Errorf("certificate %s: %w", s.order.Serial, store.ErrNotFound)
	}
	s.add(named)
	return err
}

// choose selects the matches to block.
func (s *revocationPlan) choose() {
	lasting := s.order.Match
	lasting.Since, lasting.Until = nil, nil
	switch {
	case s.order.Serial != "":
		s.matches = []store.Match{s.targets[0].blockMatch()}
	case !lasting.IsZero():
		s.matches = []store.Match{lasting}
	default: // all, or only times: every client with a revoked certificate
		seen := make(map[store.Match]bool)
		for _, t := range s.targets {
			if m := t.blockMatch(); t.profile == "client" && !seen[m] {
				seen[m] = true
				s.matches = append(s.matches, m)
			}
		}
	}
}

func (s *revocationPlan) blocks() []store.Block {
	blocks := make([]store.Block, len(s.matches))
	for i, m := range s.matches {
		blocks[i] = store.Block{
			ID: newID(), CreatedAt: s.now, Until: s.now.Add(s.order.Block),
			Match: m, Reason: s.order.Reason, By: s.order.By,
		}
	}
	return blocks
}

// insert writes the new revocations and returns them.
func (s *revocationPlan) insert(ctx context.Context, tx transaction, h *chainHead) ([]*target, error) {
	var fresh []*target
	var rows [][]any
	before := h.revision
	for _, t := range s.targets {
		if t.revoked {
			continue
		}
		h.revision++ // the revision is also the revocation's seq
		fresh = append(fresh, t)
		rows = append(rows, []any{h.revision, t.id, t.raw, t.aki, t.notAfter, micro(s.now), s.order.By, s.order.Reason})
	}
	if len(rows) == 0 {
		return nil, nil
	}
	if err := tx.insert(ctx, tableRevocations, rows); err != nil {
		return nil, err
	}
	return fresh, flagRevoked(ctx, tx, before)
}

// flagRevoked sets the column revoked of the certificates whose revocations come
// after seq.
func flagRevoked(ctx context.Context, tx transaction, seq int64) error {
	return tx.do(ctx, `UPDATE certificates SET revoked = 1 WHERE id IN (SELECT cert_id FROM revocations WHERE seq > $1)`, seq)
}

// events returns the events of the revocation: one for All, one per certificate and
// one per block.
func (s *revocationPlan) events(fresh []*target, blocks []store.Block) []store.Event {
	var out []store.Event
	if s.order.All {
		out = append(out, store.Event{
			Type: store.EventRevoked, Time: s.now, By: s.order.By, Reason: s.order.Reason, Count: int64(max(1, len(fresh))),
			Detail: map[string]string{"all": "true", "floor": fromMicro(s.floor).Format(time.RFC3339), "certificates": strconv.Itoa(len(fresh)), "blocks": strconv.Itoa(len(blocks))},
		})
	}
	for i, t := range fresh {
		if i == maxRevokedEvents {
			out = append(out, store.Event{
				Type: store.EventRevoked, Time: s.now, By: s.order.By, Reason: s.order.Reason, Count: int64(len(fresh) - i),
				Detail: map[string]string{"certificates": "the others of this revocation"},
			})
			break
		}
		out = append(out, store.Event{
			Type: store.EventRevoked, Time: s.now, By: s.order.By, Reason: s.order.Reason,
			Serial: t.serial, Identity: t.identity, Repository: t.repository, RunID: t.runID,
		})
	}
	for i, b := range blocks {
		if i == maxRevokedEvents {
			break
		}
		out = append(out, store.Event{
			Type: store.EventBlocked, Time: s.now, By: s.order.By, Reason: s.order.Reason,
			Identity: b.Match.Identity, Repository: b.Match.Repository, RunID: b.Match.RunID,
			Detail: map[string]string{"block": b.ID, "until": b.Until.UTC().Format(time.RFC3339)},
		})
	}
	return out
}

// fewTargets bounds the certificates whose live sessions are counted one
// certificate at a time. For more certificates, all live sessions are read once.
const fewTargets = 32

// countSessions counts the live sessions of the targets, and all live sessions at
// the machines among them, since the sidecars there cut all sessions.
func (s *revocationPlan) countSessions(ctx context.Context, rd reader) error {
	since := micro(s.now.Add(-liveWindow))
	if len(s.targets) <= fewTargets {
		count := func(column, value string, others []string) error {
			q := &query{}
			q.where(column+" = "+q.arg(value), "closed_at = 0", "seen_at >= "+q.arg(since))
			for _, machine := range others {
				q.where("machine <> " + q.arg(machine))
			}
			n := 0
			_, err := queryRow(ctx, rd, "SELECT COUNT(*) FROM sessions"+q.conditions(), q.args, &n)
			s.sessions += n
			return err
		}
		for _, machine := range s.machines {
			if err := count("machine", machine, nil); err != nil {
				return err
			}
		}
		for _, t := range s.targets {
			if err := count("serial", t.serial, s.machines); err != nil {
				return err
			}
		}
		return nil
	}
	serials := make(map[string]bool, len(s.targets))
	for _, t := range s.targets {
		serials[t.serial] = true
	}
	live, err := collect(ctx, rd, func(r row) (ends [2]string, err error) {
		err = r.Scan(&ends[0], &ends[1])
		return ends, err
	}, `SELECT serial, machine FROM sessions WHERE closed_at = 0 AND seen_at >= $1`, since)
	for _, ends := range live {
		if _, own := slices.BinarySearch(s.machines, ends[1]); own || serials[ends[0]] {
			s.sessions++
		}
	}
	return err
}

// result lists the serials that this call revoked, or that the order named.
func (s *revocationPlan) result(blocks []store.Block) *store.RevocationResult {
	out := &store.RevocationResult{Sessions: s.sessions, Serials: []string{}, BlockIDs: []string{}, Machines: s.machines, MachinesUntil: s.machinesUntil()}
	for _, t := range s.targets {
		if !t.revoked || t.serial == s.order.Serial {
			out.Serials = append(out.Serials, t.serial)
		}
	}
	for _, b := range blocks {
		out.BlockIDs = append(out.BlockIDs, b.ID)
	}
	if s.floor != 0 {
		out.Floor = fromMicro(s.floor)
	}
	return out
}

// raiseFloor sets the floor to the next whole second after the later of now and the
// newest recorded issuance. It never lowers the floor.
func raiseFloor(ctx context.Context, tx transaction, h *chainHead, now time.Time) (int64, error) {
	var newest int64
	if _, err := queryRow(ctx, tx, `SELECT COALESCE(MAX(id), 0) FROM certificates`, nil, &newest); err != nil {
		return 0, err
	}
	latest := max(micro(now), newest>>idShift)
	h.floor = max(h.floor, (latest/int64(time.Second/time.Microsecond)+1)*int64(time.Second/time.Microsecond))
	h.revision++
	return h.floor, nil
}

// Floor implements store.Store.
func (l *ledger) Floor(ctx context.Context) (time.Time, error) {
	return read(ctx, l, "read floor", func(r reader) (time.Time, error) {
		h, err := readHead(ctx, r)
		if err != nil {
			return time.Time{}, err
		}
		return fromMicro(h.floor), nil
	})
}

// RaiseFloor implements store.Store. It also revokes unexpired certificates, so
// that lists and CRLs agree with the floor for readers that do not know the floor.
func (l *ledger) RaiseFloor(ctx context.Context, ev store.Event) (time.Time, error) {
	var floor time.Time
	err := l.update(ctx, "raise floor", func(tx transaction, h *chainHead) (events []store.Event, err error) {
		floor, events, err = raiseAll(ctx, tx, h, ev)
		return events, err
	})
	return floor, err
}

func raiseAll(ctx context.Context, tx transaction, h *chainHead, ev store.Event) (time.Time, []store.Event, error) {
	s, err := plan(ctx, tx, store.Revocation{All: true, By: sanitize(ev.By), Reason: sanitize(ev.Reason)})
	if err != nil {
		return time.Time{}, nil, err
	}
	if s.floor, err = raiseFloor(ctx, tx, h, s.now); err != nil {
		return time.Time{}, nil, err
	}
	fresh, err := s.insert(ctx, tx, h)
	if err != nil {
		return time.Time{}, nil, err
	}
	if ev.Type == "" {
		ev.Type = store.EventRestored
	}
	detail := map[string]string{"floor": fromMicro(s.floor).Format(time.RFC3339), "certificates": strconv.Itoa(len(fresh))}
	for k, v := range ev.Detail {
		detail[k] = v
	}
	ev.Detail = detail
	return fromMicro(s.floor), []store.Event{ev}, nil
}
