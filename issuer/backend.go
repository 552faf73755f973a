package issuer

import (
	"context"
	"encoding/hex"
	"errors"
	"net/url"
	"time"

	"github.com/mayfly-ca/mayfly/ca/store"
	"github.com/mayfly-ca/mayfly/client/wire"
)

// The API's admin calls and the admin page share the methods in this file. The methods
// use the wire's types; their callers have authorized the request.

// Certificates returns a page of the issued certificates, newest first. The filters
// are those of GET /v1/certificates. Errors: bad-request, unavailable.
func (s *Server) Certificates(ctx context.Context, v url.Values) (wire.List[wire.Certificate], error) {
	f, err := certificateFilter(v)
	if err != nil {
		return wire.List[wire.Certificate]{}, err
	}
	items, next, err := s.authority.Store().Certificates(ctx, f)
	if err != nil {
		return wire.List[wire.Certificate]{}, unavailable("list certificates", err)
	}
	list := wire.List[wire.Certificate]{Items: make([]wire.Certificate, 0, len(items)), NextCursor: next}
	for i := range items {
		list.Items = append(list.Items, wireCertificate(&items[i], f.Now))
	}
	return list, nil
}

// Certificate returns the full record of one certificate. PEM and Chain are empty
// except for records of earlier versions, which hold the signature; reading never
// signs. Errors: not-found, unavailable.
func (s *Server) Certificate(ctx context.Context, serial string) (*wire.CertificateDetail, error) {
	st := s.authority.Store()
	rec, err := st.Certificate(ctx, serial)
	if err != nil {
		return nil, unavailable("read certificate", err)
	}
	now := time.Now().UTC()
	sessions, err := s.sessions(ctx, store.SessionFilter{Serial: serial, Limit: wire.MaxListLimit, Now: now})
	if err != nil {
		return nil, err
	}
	d := &wire.CertificateDetail{
		Certificate: wireCertificate(rec, now),
		IssuedAt:    rec.IssuedAt.UTC(),
		Provider:    rec.Provider,
		TokenIssuer: rec.TokenIssuer,
		TokenID:     rec.TokenID,
		Run:         rec.Run,
		SPKI:        hex.EncodeToString(rec.SPKI),
		Issuer:      rec.AKI,
		Claims:      rec.Claims,
		RevokedBy:   rec.RevokedBy,
		Reason:      rec.Reason,
		TBS:         rec.TBS,
		Sessions:    sessions.Items,
	}
	if chain := s.authority.Chain(rec); chain != nil {
		d.PEM, d.Chain = pemOf(chain[0]), pemOf(chain...)
	}
	if rec.RevokedAt != nil {
		d.RevokedAt = utc(*rec.RevokedAt)
	}
	return d, nil
}

// maxBlock bounds how long a revocation may block its subject.
const maxBlock = 90 * 24 * time.Hour

// defaultBlock is how long a revocation blocks its subject by default.
const defaultBlock = 24 * time.Hour

// maxReasonBytes bounds the reason of a revocation.
const maxReasonBytes = 1024

// Revoke performs a revocation that by ordered. It returns when a committed CRL holds
// the serials. Errors: bad-request, not-found, unavailable.
func (s *Server) Revoke(ctx context.Context, by string, req wire.RevokeRequest) (*wire.RevokeResponse, error) {
	order, err := ParseRevocation(req)
	if err != nil {
		return nil, err
	}
	order.By = by
	res, number, err := s.authority.Revoke(ctx, order)
	if err != nil {
		if errors.Is(err, store.ErrNotFound) {
			return nil, &Error{Name: wire.ProblemNotFound, Detail: "no certificate with this serial was issued here", Err: err}
		}
		return nil, unavailable("revoke", err)
	}
	if !req.DryRun {
		s.metrics.revoked(len(res.Serials))
		s.logger.InfoContext(ctx, "revoked", "by", by, "certificates", len(res.Serials), "crl_number", number, "reason", req.Reason)
	}
	out := &wire.RevokeResponse{Revoked: orEmpty(res.Serials), BlockIDs: orEmpty(res.BlockIDs), CRLNumber: number, Sessions: res.Sessions, Machines: res.Machines}
	if !res.MachinesUntil.IsZero() {
		out.MachinesUntil = utc(res.MachinesUntil)
	}
	if !res.Floor.IsZero() {
		out.Floor = utc(res.Floor)
	}
	return out, nil
}

// ParseRevocation checks that req has exactly one of serial, match and all. Its error
// is an *Error of type bad-request.
func ParseRevocation(req wire.RevokeRequest) (store.Revocation, error) {
	order := store.Revocation{Serial: req.Serial, All: req.All, Reason: req.Reason, DryRun: req.DryRun, Block: defaultBlock}
	named := 0
	for _, set := range []bool{req.Serial != "", req.Match != nil, req.All} {
		if set {
			named++
		}
	}
	switch {
	case named != 1:
		return order, badRequest("want exactly one of serial, match and all")
	case req.Serial != "" && !isHex(req.Serial, 32, 32):
		return order, badRequest("serial: want 32 lower-case hex digits")
	case len(req.Reason) > maxReasonBytes:
		return order, badRequest("reason: longer than %d bytes", maxReasonBytes)
	}
	if req.Match != nil {
		m, err := matchOf(*req.Match)
		if err != nil {
			return order, badRequest("match: %v", err)
		}
		if m.IsZero() {
			return order, badRequest("match: is empty and would cover everything; say all: true for that")
		}
		order.Match = m
	}
	switch req.Block {
	case "":
	case wire.BlockNone:
		order.Block = 0
	default:
		d, err := time.ParseDuration(req.Block)
		if err != nil || d <= 0 || d > maxBlock {
			return order, badRequest(`block: want a duration such as 24h, at most %v, or "none"`, maxBlock)
		}
		order.Block = d
	}
	return order, nil
}

// Blocks returns the blocks in force.
func (s *Server) Blocks(ctx context.Context) (wire.List[wire.Block], error) {
	blocks, err := s.authority.Store().Blocks(ctx, time.Now().UTC())
	if err != nil {
		return wire.List[wire.Block]{}, unavailable("list blocks", err)
	}
	list := wire.List[wire.Block]{Items: make([]wire.Block, 0, len(blocks))}
	for _, b := range blocks {
		m := b.Match
		list.Items = append(list.Items, wire.Block{
			ID: b.ID, CreatedAt: b.CreatedAt.UTC(), Until: b.Until.UTC(), TokenIssuer: m.TokenIssuer, Reason: b.Reason, By: b.By,
			Match: wire.Match{
				Repository: m.Repository, RepositoryID: m.RepositoryID, RunID: m.RunID, Actor: m.Actor,
				Identity: m.Identity, Profile: m.Profile, Since: m.Since, Until: m.Until,
			},
		})
	}
	return list, nil
}

// Unblock ends a block before its time.
func (s *Server) Unblock(ctx context.Context, id, by string) error {
	if err := s.authority.Store().Unblock(ctx, id, by); err != nil {
		return unavailable("remove block", err)
	}
	return nil
}

// Sessions returns a page of relayed connections, newest first. The filters are
// those of GET /v1/sessions. Errors: bad-request, unavailable.
func (s *Server) Sessions(ctx context.Context, v url.Values) (wire.List[wire.Session], error) {
	f, err := sessionFilter(v)
	if err != nil {
		return wire.List[wire.Session]{}, err
	}
	return s.sessions(ctx, f)
}

func (s *Server) sessions(ctx context.Context, f store.SessionFilter) (wire.List[wire.Session], error) {
	items, next, err := s.authority.Store().Sessions(ctx, f)
	if err != nil {
		return wire.List[wire.Session]{}, unavailable("list sessions", err)
	}
	list := wire.List[wire.Session]{Items: make([]wire.Session, 0, len(items)), NextCursor: next}
	for _, i := range items {
		w := wire.Session{
			ID: i.ID, Engine: i.Engine, Machine: i.Machine, Serial: i.Serial, Run: i.Run, Repository: i.Repository,
			Identity: i.Identity, RemoteAddr: i.RemoteAddr, Reason: i.Reason, OpenedAt: i.OpenedAt.UTC(), SeenAt: i.SeenAt.UTC(),
			BytesIn: i.BytesIn, BytesOut: i.BytesOut,
		}
		if i.ClosedAt != nil {
			w.ClosedAt = utc(*i.ClosedAt)
		}
		list.Items = append(list.Items, w)
	}
	return list, nil
}

// Events returns a page of the record: newest first, or in order from the
// sequence number after. The filters are those of GET /v1/events. Errors:
// bad-request, unavailable.
func (s *Server) Events(ctx context.Context, v url.Values) (wire.List[wire.Event], error) {
	f, err := eventFilter(v)
	if err != nil {
		return wire.List[wire.Event]{}, err
	}
	items, next, err := s.authority.Store().Events(ctx, f)
	if err != nil {
		return wire.List[wire.Event]{}, unavailable("list events", err)
	}
	list := wire.List[wire.Event]{Items: make([]wire.Event, 0, len(items)), NextCursor: next}
	for _, e := range items {
		list.Items = append(list.Items, wire.Event{
			Seq: e.Seq, Time: e.Time.UTC(), Type: e.Type, By: e.By, Serial: e.Serial, Identity: e.Identity, Repository: e.Repository,
			RunID: e.RunID, Rule: e.Rule, Reason: e.Reason, Count: e.Count, Detail: e.Detail,
		})
	}
	return list, nil
}

// wireCertificate returns c as an item of a list. A revoked certificate keeps the
// status revoked after it has expired.
func wireCertificate(c *store.Certificate, now time.Time) wire.Certificate {
	status := wire.StatusValid
	switch {
	case c.RevokedAt != nil:
		status = wire.StatusRevoked
	case now.After(c.NotAfter):
		status = wire.StatusExpired
	}
	return wire.Certificate{
		Serial: c.Serial, Status: status, NotBefore: c.NotBefore.UTC(), NotAfter: c.NotAfter.UTC(),
		Repository: c.Repository, RepositoryID: c.RepositoryID, RunID: c.RunID, Actor: c.Actor,
		Identity: c.Identity, Profile: c.Profile, Rule: c.Rule, Engines: orEmpty(c.Engines),
	}
}

// orEmpty returns s, or an empty slice for nil, so that JSON has [].
func orEmpty(s []string) []string {
	if s == nil {
		return []string{}
	}
	return s
}

// encodeBundle encodes, once, the parts that all responses share.
func (s *Server) encodeBundle() error {
	b, err := newBundles(s.authority.TrustDomain(), s.authority.TrustBundle())
	if err != nil {
		return err
	}
	s.bundle = b
	s.texts, err = newTexts(b.pem, s.authority.Intermediates())
	return err
}
