package issuer

import (
	"net/http"

	"github.com/go-chi/chi/v5"

	"github.com/mayfly-ca/mayfly/client/wire"
	"github.com/mayfly-ca/mayfly/issuer/internal/policy"
)

// revoke handles POST /v1/revocations.
func (s *Server) revoke(w http.ResponseWriter, r *http.Request) error {
	p, err := s.requireRole(w, r, policy.Admin)
	if err != nil {
		return err
	}
	var req wire.RevokeRequest
	if err := decode(r, &req); err != nil {
		return err
	}
	res, err := s.Revoke(r.Context(), p.Name, req)
	if err != nil {
		return err
	}
	infoOf(r.Context()).serial = req.Serial
	return writeJSON(w, http.StatusOK, res)
}

// listBlocks handles GET /v1/blocks.
func (s *Server) listBlocks(w http.ResponseWriter, r *http.Request) error {
	if _, err := s.requireRole(w, r, policy.Admin); err != nil {
		return err
	}
	if err := noQuery(r); err != nil {
		return err
	}
	list, err := s.Blocks(r.Context())
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, list)
}

// deleteBlock handles DELETE /v1/blocks/{id}.
func (s *Server) deleteBlock(w http.ResponseWriter, r *http.Request) error {
	p, err := s.requireRole(w, r, policy.Admin)
	if err != nil {
		return err
	}
	id := chi.URLParam(r, "id")
	if !isHex(id, 32, 32) {
		return badRequest("id: want 32 lower-case hex digits")
	}
	if err := s.Unblock(r.Context(), id, p.Name); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}
