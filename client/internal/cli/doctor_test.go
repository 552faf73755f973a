package cli_test

import (
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/client/wire"
)

// doctorSteps are doctor's steps, in order.
var doctorSteps = []string{"variables", "issuer", "clock", "token", "claims", "policy", "ca", "engine", "tls"}

// tokenWith makes the token endpoint return tokens with these claims changed.
func (s *stand) tokenWith(claims map[string]any) {
	all := map[string]any{}
	for k, v := range standClaims {
		all[k] = v
	}
	for k, v := range claims {
		all[k] = v
	}
	s.token = func(w http.ResponseWriter, r *http.Request) bool {
		json.NewEncoder(w).Encode(map[string]any{"value": fakeToken(all, r.URL.Query().Get("audience"))})
		return true
	}
}

// TestDoctorStopsAtEachStep breaks each step in turn. doctor must stop there, say
// what to change, and exit with that step's code.
func TestDoctorStopsAtEachStep(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		break_ func(s *stand)
		step   string // the step that fails; empty for none
		code   int
		remedy []string
	}{
		{name: "nothing"},
		{name: "no issuer", step: "variables", code: 2, remedy: []string{"MAYFLY_ISSUER"},
			break_: func(s *stand) { s.env = append(s.env, "MAYFLY_ISSUER=") }},
		{name: "a trust anchor that is none", step: "variables", code: 2, remedy: []string{"sha256:", "--trust-anchor"},
			break_: func(s *stand) { s.env = append(s.env, "MAYFLY_TRUST_ANCHOR=abc") }},
		{name: "a CA file that is not there", step: "variables", code: 2, remedy: []string{"/nowhere.pem", "--ca-file"},
			break_: func(s *stand) { s.env = append(s.env, "MAYFLY_CA_FILE=/nowhere.pem") }},
		{name: "issuer down", step: "issuer", code: 4, remedy: []string{"connection refused", "correct the port in --issuer"},
			break_: func(s *stand) { s.issuer.Close() }},
		{name: "another service", step: "issuer", code: 1, remedy: []string{"no trust domain", "--issuer"},
			break_: func(s *stand) { s.api = answer(200, "application/json", `{}`) }},
		{name: "clock", step: "clock", code: 1, remedy: []string{"clock", "apart", "NTP"}, break_: func(s *stand) {
			s.api = func(w http.ResponseWriter, r *http.Request) bool {
				if r.URL.Path != wire.PathHealth {
					return false
				}
				w.Header().Set("Date", time.Now().Add(-time.Hour).UTC().Format(http.TimeFormat))
				io.WriteString(w, "ok")
				return true
			}
		}},
		{name: "no permission", step: "token", code: 1, remedy: []string{"id-token: write"},
			break_: func(s *stand) { s.env = append(s.env, "ACTIONS_ID_TOKEN_REQUEST_URL=", "GITHUB_ACTIONS=true") }},
		{name: "no platform", step: "token", code: 1, remedy: []string{"neither a GitHub Actions job", "set --token-source to file:PATH"},
			break_: func(s *stand) { s.env = append(s.env, "ACTIONS_ID_TOKEN_REQUEST_URL=") }},
		{name: "token refused", step: "token", code: 1, remedy: []string{"403", "id-token: write"},
			break_: func(s *stand) { s.token = answer(403, "text/plain", "no") }},
		{name: "token expired", step: "claims", code: 1, remedy: []string{"expired", "fresh token"},
			break_: func(s *stand) { s.tokenWith(map[string]any{"exp": time.Now().Add(-time.Hour).Unix()}) }},
		{name: "token of the future", step: "claims", code: 1, remedy: []string{"in the future", "clock"},
			break_: func(s *stand) { s.tokenWith(map[string]any{"iat": time.Now().Add(time.Hour).Unix()}) }},
		{name: "token for another", step: "claims", code: 1, remedy: []string{"mayfly:other.example.com", "mayfly:" + standDomain},
			break_: func(s *stand) { s.tokenWith(map[string]any{"aud": "mayfly:other.example.com"}) }},
		{name: "signature", step: "policy", code: 1, remedy: []string{"signature", "401"},
			break_: func(s *stand) { s.issue = problem(wire.ProblemBadToken, "signature does not verify") }},
		{name: "denied", step: "policy", code: 3, remedy: []string{"policy.yaml", `- name: "acme-app-main"`, `repository_id: "1339936803"`},
			break_: func(s *stand) { s.issue = problem(wire.ProblemDenied, "no rule admits it", "app-main", "ref") }},
		{name: "another engine", step: "policy", code: 3, remedy: []string{"--engine"},
			break_: func(s *stand) { s.issue = problem(wire.ProblemDenied, "no rule grants it", "app-main", "engine") }},
		{name: "blocked", step: "policy", code: 3, remedy: []string{"blocks list"},
			break_: func(s *stand) { s.issue = problem(wire.ProblemBlocked, "blocked until noon") }},
		{name: "an engine without a host", step: "engine", code: 5, remedy: []string{"endpoint of engine default", "policy"},
			break_: func(s *stand) { s.endpoint = "tcp://engine.invalid:8080" }},
		{name: "engine asleep", step: "tls", code: 5, remedy: []string{"did not answer within", "nothing listens at"},
			break_: func(s *stand) { s.engine.Close() }},
		{name: "engine refuses", step: "tls", code: 5, remedy: []string{"certificate revoked", "certs show"},
			break_: func(s *stand) { s.verdict = wire.ReasonRevoked }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := newStand(t)
			if tt.break_ != nil {
				s.set(func() { tt.break_(s) })
			}
			o := s.run("doctor", "--wake-timeout", "1s")
			t.Logf("exit code %d\n%s%s", o.code, o.stdout, o.stderr)
			o.check(t, tt.code, tt.remedy...)
			reached := true
			for _, step := range doctorSteps {
				want := "ok    " + step
				switch {
				case step == tt.step:
					want = "fail  " + step
				case !reached:
					want = ""
				}
				if want == "" && strings.Contains(o.stdout, "  "+step+" ") || !strings.Contains(o.stdout, want) {
					t.Errorf("step %s is not as it should be (%q)", step, want)
				}
				reached = reached && step != tt.step
			}
		})
	}
}

// TestDoctorInJSON checks the JSON: one line for each step, claims, no signature.
func TestDoctorInJSON(t *testing.T) {
	t.Parallel()
	s := newStand(t)
	s.set(func() { s.verdict = wire.ReasonWrongEngine })
	o := s.run("--json", "doctor")
	o.check(t, 5)
	var steps []string
	for line := range strings.Lines(o.stdout) {
		var step struct {
			Step   string
			OK     bool
			Claims map[string]any
			Error  string
			Hints  []string
		}
		if err := json.Unmarshal([]byte(line), &step); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		steps = append(steps, step.Step)
		if step.OK == (step.Step == "tls") || step.OK == (step.Error != "") || step.OK == (len(step.Hints) > 0) {
			t.Errorf("step %s", line)
		}
		if step.Step == "claims" && step.Claims["repository_id"] != "1339936803" {
			t.Errorf("claims %v", step.Claims)
		}
	}
	if strings.Join(steps, " ") != strings.Join(doctorSteps, " ") {
		t.Errorf("steps %v", steps)
	}
}
