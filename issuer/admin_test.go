package issuer_test

import (
	"crypto/tls"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/client/wire"
	"github.com/mayfly-ca/mayfly/issuer/issuertest"
)

// TestRoles is ATTACKS 48 and 58: every admin call with every kind of token.
func TestRoles(t *testing.T) {
	t.Parallel()
	i := issuertest.Start(t, issuertest.Options{})
	issued, err := i.Issue(i.GitHubToken(nil))
	if err != nil {
		t.Fatal(err)
	}
	unknown := strings.Repeat("ab", 16)
	calls := []struct {
		method, path string
		in           any
		admin        bool // requires role admin
		good         string
	}{
		{"GET", wire.PathCertificates, nil, false, ""},
		{"GET", wire.PathCertificates + "/" + issued.Serial, nil, false, ""},
		{"GET", wire.PathSessions, nil, false, ""},
		{"GET", wire.PathEngines, nil, false, ""},
		{"GET", wire.PathEvents, nil, false, ""},
		{"GET", wire.PathWhoami, nil, false, ""},
		{"POST", wire.PathPolicyExplain, wire.ExplainRequest{Provider: "github", Claims: []byte(`{}`)}, false, ""},
		{"GET", wire.PathBlocks, nil, true, ""},
		{"DELETE", wire.PathBlocks + "/" + unknown, nil, true, wire.ProblemNotFound},
		{"POST", wire.PathRevocations, wire.RevokeRequest{Serial: unknown}, true, wire.ProblemNotFound},
	}
	tokens := []struct{ name, token, viewer, admin string }{
		{"nobody", "", wire.ProblemBadToken, wire.ProblemBadToken},
		{"admin", i.AdminToken(), "", ""},
		{"viewer", i.ViewerToken(), "", wire.ProblemForbiddenRole},
		{"stranger", i.PersonToken(map[string]any{"email": "eve@example.com"}), wire.ProblemForbiddenRole, wire.ProblemForbiddenRole},
		{"unverified email", i.PersonToken(map[string]any{"email_verified": false}), wire.ProblemForbiddenRole, wire.ProblemForbiddenRole},
		{"job", i.GitHubToken(nil), wire.ProblemForbiddenRole, wire.ProblemForbiddenRole},
		{"machine", i.FlyToken(nil), wire.ProblemForbiddenRole, wire.ProblemForbiddenRole},
		{"machine's sessions token", i.SessionsToken(nil), wire.ProblemBadToken, wire.ProblemBadToken},
		{"another client's azp", i.PersonToken(map[string]any{"azp": "other"}), wire.ProblemBadToken, wire.ProblemBadToken},
		{"logout token", i.PersonToken(map[string]any{"events": map[string]any{"http://schemas.openid.net/event/backchannel-logout": map[string]any{}}}), wire.ProblemBadToken, wire.ProblemBadToken},
		{"login of two hours ago", i.PersonToken(map[string]any{"iat": time.Now().Add(-2 * time.Hour).Unix(), "exp": time.Now().Add(time.Hour).Unix()}), wire.ProblemBadToken, wire.ProblemBadToken},
	}
	for _, call := range calls {
		for _, who := range tokens {
			t.Run(call.method+" "+call.path+" "+who.name, func(t *testing.T) {
				t.Parallel()
				want := who.viewer
				if call.admin {
					want = who.admin
				}
				if want == "" {
					want = call.good
				}
				err := i.Call(call.method, call.path, who.token, call.in, nil)
				if want == "" {
					if err != nil {
						t.Error(err)
					}
					return
				}
				wantProblem(t, err, want)
			})
		}
	}
}

// TestWhoami checks the person and the end of a token.
func TestWhoami(t *testing.T) {
	t.Parallel()
	i := issuertest.Start(t, issuertest.Options{})
	now := time.Now().Truncate(time.Second)
	for _, tc := range []struct {
		name, token, role string
		until             time.Time
	}{
		{"an hour after its issue", i.PersonToken(map[string]any{"iat": now.Unix(), "exp": now.Add(8 * time.Hour).Unix()}), "admin", now.Add(time.Hour)},
		{"its own end", i.PersonToken(map[string]any{"iat": now.Unix(), "exp": now.Add(10 * time.Minute).Unix()}), "admin", now.Add(10 * time.Minute)},
		{"viewer", i.ViewerToken(), "viewer", time.Time{}},
	} {
		var got wire.Whoami
		if err := i.Call("GET", wire.PathWhoami, tc.token, nil, &got); err != nil {
			t.Fatalf("%s: %v", tc.name, err)
		}
		if got.Role != tc.role || got.Provider != "staff" || got.Subject == "" || got.Rule == "" || !strings.HasPrefix(got.Name, "staff/") {
			t.Errorf("%s: %+v", tc.name, got)
		}
		if !tc.until.IsZero() && !got.Until.Equal(tc.until) {
			t.Errorf("%s: until %v, want %v", tc.name, got.Until, tc.until)
		}
	}
	wantProblem(t, i.Call("GET", wire.PathWhoami+"?x=1", i.ViewerToken(), nil, nil), wire.ProblemBadRequest)
}

func TestForbiddenIsAnEvent(t *testing.T) {
	t.Parallel()
	i := issuertest.Start(t, issuertest.Options{})
	err := i.Call("POST", wire.PathRevocations, i.ViewerToken(), wire.RevokeRequest{All: true}, nil)
	wantProblem(t, err, wire.ProblemForbiddenRole)
	evs := events(t, i, "forbidden")
	if len(evs) != 1 || evs[0].By != "staff/viewer" || evs[0].Reason != "POST /v1/revocations" {
		t.Errorf("events %+v", evs)
	}
	if out, err := i.Issue(i.GitHubToken(nil)); err != nil || out.Serial == "" {
		t.Errorf("the viewer's attempt had an effect: %v", err)
	}
}

// TestRecordedName checks that events name no person by an unverified address. A
// person whom the rule identifies by sub could otherwise name another.
func TestRecordedName(t *testing.T) {
	t.Parallel()
	i := issuertest.Start(t, issuertest.Options{Policy: func(text string) string {
		return strings.Replace(text, "match: {email: ["+issuertest.Admin+"], email_verified: true}", `match: {sub: "person-7"}`, 1)
	}})
	for verified, want := range map[bool]string{true: "staff/mallory@example.com", false: "staff/person-7"} {
		token := i.PersonToken(map[string]any{"sub": "person-7", "email": "mallory@example.com", "email_verified": verified})
		err := i.Call("POST", wire.PathRevocations, token, wire.RevokeRequest{Match: &wire.Match{RunID: want}}, nil)
		if err != nil {
			t.Fatal(err)
		}
		if evs := events(t, i, "blocked"); len(evs) == 0 || evs[0].By != want {
			t.Errorf("verified %v: %+v, want %s", verified, evs, want)
		}
	}
}

// TestTokenOfAnotherKind sends a machine's token to a person's call and the reverse.
func TestTokenOfAnotherKind(t *testing.T) {
	t.Parallel()
	i := issuertest.Start(t, issuertest.Options{})
	report := wire.SessionsRequest{Reports: []wire.SessionReport{{Kind: "open", ID: strings.Repeat("0", 31) + "1", Serial: strings.Repeat("a", 32), At: time.Now()}}}
	for name, token := range map[string]string{"admin": i.AdminToken()} {
		err := i.Call("POST", wire.PathSessions, token, report, nil)
		if p := problem(t, err); p.Status != http.StatusForbidden {
			t.Errorf("%s reported sessions: %+v", name, p)
		}
	}
	for name, token := range map[string]string{"job": i.GitHubToken(nil), "machine, audience of certificates": i.FlyToken(nil)} {
		wantProblem(t, i.Call("POST", wire.PathSessions, token, report, nil), wire.ProblemBadToken)
		_ = name
	}
	if err := i.Call("POST", wire.PathSessions, i.SessionsToken(nil), report, nil); err != nil {
		t.Errorf("the machine itself: %v", err)
	}
}

func TestExplain(t *testing.T) {
	t.Parallel()
	i := issuertest.Start(t, issuertest.Options{})
	var out wire.ExplainResponse
	claims := `{"repository_owner_id":"285964","repository_id":"1339936803","ref":"refs/heads/main","event_name":"push"}`
	if err := i.Call("POST", wire.PathPolicyExplain, i.ViewerToken(), wire.ExplainRequest{Provider: "github", Claims: []byte(claims)}, &out); err != nil {
		t.Fatal(err)
	}
	if !out.Allowed || out.Rule != "app-main" || out.Profile != "client" {
		t.Errorf("answer %+v", out)
	}
	out = wire.ExplainResponse{}
	claims = strings.Replace(claims, "main", "evil", 1)
	if err := i.Call("POST", wire.PathPolicyExplain, i.ViewerToken(), wire.ExplainRequest{Provider: "github", Claims: []byte(claims)}, &out); err != nil {
		t.Fatal(err)
	}
	if out.Allowed || out.Rules[0].Claim != "ref" {
		t.Errorf("answer %+v", out)
	}
	out = wire.ExplainResponse{}
	claims = `{"email":"ops@example.com","email_verified":true}`
	if err := i.Call("POST", wire.PathPolicyExplain, i.ViewerToken(), wire.ExplainRequest{Provider: "staff", Claims: []byte(claims)}, &out); err != nil {
		t.Fatal(err)
	}
	if !out.Allowed || out.Role != "admin" {
		t.Errorf("answer %+v", out)
	}
	for _, bad := range []wire.ExplainRequest{{Provider: "nobody", Claims: []byte(`{}`)}, {Provider: "github"}, {Provider: "github", Claims: []byte(`[]`)}} {
		wantProblem(t, i.Call("POST", wire.PathPolicyExplain, i.ViewerToken(), bad, nil), wire.ProblemBadRequest)
	}
}

// TestCertificateIsNoToken is ATTACKS 48: a job's certificate authorizes no call. The
// issuer requests no client certificate.
func TestCertificateIsNoToken(t *testing.T) {
	t.Parallel()
	i := issuertest.Start(t, issuertest.Options{})
	key, csr := issuertest.Key(t)
	out, err := i.IssueCSR(i.GitHubToken(nil), csr)
	if err != nil {
		t.Fatal(err)
	}
	shown := false
	transport := i.Client().Transport.(*http.Transport).Clone()
	transport.TLSClientConfig.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		shown = true
		return &tls.Certificate{Certificate: [][]byte{leafOf(t, out.Certificate).Raw}, PrivateKey: key}, nil
	}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport}
	for _, path := range []string{wire.PathCertificates, wire.PathBlocks, wire.PathEvents} {
		resp, err := client.Get(i.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusUnauthorized {
			t.Errorf("%s with a job's certificate: %d", path, resp.StatusCode)
		}
	}
	if shown {
		t.Error("the issuer asks for certificates")
	}
	if err := i.Call("GET", wire.PathBlocks, i.AdminToken(), nil, nil); err != nil {
		t.Errorf("the admin: %v", err)
	}
}
