package flytest

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"
)

// Folders within MachineConfig.Dir.
const (
	apiFolder  = "fly"
	rootFolder = "root"
)

// APISocket returns the path of the machine's /.fly/api on this host.
func (m *Machine) APISocket() string { return filepath.Join(m.cfg.Dir, apiFolder, "api") }

// serveAPI opens the socket. Fly's is only for root; this one is only for the user
// that made the machine.
func (m *Machine) serveAPI() error {
	dir := filepath.Dir(m.APISocket())
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	_ = os.Remove(m.APISocket()) // of a killed machine
	ln, err := net.Listen("unix", m.APISocket())
	if err != nil {
		return fmt.Errorf("machine API (a shorter Dir helps where the path is too long): %w", err)
	}
	if err := os.Chmod(m.APISocket(), 0o600); err != nil {
		ln.Close()
		return err
	}
	m.api = &http.Server{
		Handler: m.apiHandler(), ReadTimeout: 10 * time.Second, WriteTimeout: 30 * time.Second,
		IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10,
		ErrorLog: slog.NewLogLogger(m.log.Handler(), slog.LevelWarn),
	}
	m.tasks.Go(func() { _ = m.api.Serve(ln) })
	return nil
}

func (m *Machine) apiHandler() http.Handler {
	own := "/v1/apps/" + m.cfg.App.Name + "/machines/" + m.cfg.ID
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/tokens/oidc", m.handleToken)
	mux.HandleFunc("GET "+own, func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, http.StatusOK, map[string]any{
			"id": m.cfg.ID, "name": m.cfg.ID, "state": m.State(), "region": m.cfg.Region, "private_ip": m.cfg.PrivateIP,
		})
	})
	mux.HandleFunc("POST "+own+"/stop", func(w http.ResponseWriter, _ *http.Request) {
		m.orderHalt((*halt).order)
		writeJSON(w, http.StatusOK, map[string]any{"ok": true})
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, http.StatusNotFound, map[string]any{"error": "not found"})
	})
	return mux
}

// handleToken answers with the bare token, as Fly does.
func (m *Machine) handleToken(w http.ResponseWriter, r *http.Request) {
	body := struct {
		Audience string `json:"aud"`
	}{Audience: "https://fly.io/" + m.cfg.Organization}
	data, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 64<<10))
	if err == nil && len(data) > 0 {
		err = json.Unmarshal(data, &body)
	}
	if err != nil {
		writeJSON(w, http.StatusBadRequest, map[string]any{"error": "invalid request"})
		return
	}
	if m.cfg.OIDC == nil {
		writeJSON(w, http.StatusNotFound, map[string]any{"error": "no tokens here"})
		return
	}
	claims := map[string]any{
		"machine_id": m.cfg.ID, "machine_name": m.cfg.ID, "machine_version": machineVersion, "region": m.cfg.Region,
	}
	maps.Copy(claims, m.cfg.Claims)
	claims["aud"] = body.Audience
	token, err := m.cfg.OIDC.Mint(claims)
	if err != nil {
		m.log.Error("token not minted", "error", err)
		writeJSON(w, http.StatusInternalServerError, map[string]any{"error": "internal error"})
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = io.WriteString(w, token)
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v)
}
