package issuer_test

import (
	"bytes"
	"crypto/x509"
	"database/sql"
	"encoding/pem"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mayfly-ca/mayfly/client/wire"
	"github.com/mayfly-ca/mayfly/issuer/issuertest"
)

func TestCertificateList(t *testing.T) {
	t.Parallel()
	i := issuertest.Start(t, issuertest.Options{})
	before := time.Now().Add(-time.Minute).UTC()
	var serials []string
	for n := range 5 {
		out, err := i.Issue(i.GitHubToken(map[string]any{"run_id": strconv.Itoa(n), "actor": "ann"}))
		if err != nil {
			t.Fatal(err)
		}
		serials = append(serials, out.Serial)
	}
	engine, err := i.Issue(i.FlyToken(nil))
	if err != nil {
		t.Fatal(err)
	}
	list := func(query string) wire.List[wire.Certificate] {
		t.Helper()
		var out wire.List[wire.Certificate]
		if err := i.Call("GET", wire.PathCertificates+"?"+query, i.ViewerToken(), nil, &out); err != nil {
			t.Fatalf("%s: %v", query, err)
		}
		return out
	}
	all := list("")
	if len(all.Items) != 6 || all.Items[0].Serial != engine.Serial || all.Items[5].Serial != serials[0] {
		t.Fatalf("list: %v", all.Items)
	}
	item := all.Items[5]
	repository := item.Repository
	item.NotBefore, item.NotAfter = time.Time{}, time.Time{}
	want := wire.Certificate{
		Serial: serials[0], Status: wire.StatusValid, Repository: repository, RepositoryID: issuertest.RepositoryID, RunID: "0", Actor: "ann",
		Identity: "spiffe://ci.example.com/github/" + issuertest.OwnerID + "/" + issuertest.RepositoryID, Profile: "client", Rule: "app-main", Engines: []string{"default"},
	}
	if diff := cmp.Diff(want, item); diff != "" {
		t.Error(diff)
	}
	since, later := url.QueryEscape(before.Format(time.RFC3339)), url.QueryEscape(time.Now().Add(time.Hour).Format(time.RFC3339))
	for query, n := range map[string]int{
		"serial=" + serials[0]:                      1,
		"serial=" + serials[0][:12]:                 1,
		"repository=" + url.QueryEscape(repository): 5,
		"repository_id=" + issuertest.RepositoryID:  5,
		"run_id=3":  1,
		"actor=ann": 5,
		"actor=bob": 0,
		"identity=" + url.QueryEscape(engine.Identity): 1,
		"profile=server": 1,
		"status=valid":   6,
		"status=expired": 0,
		"status=revoked": 0,
		"since=" + since: 6,
		"since=" + later: 0,
		"until=" + since: 0,
		"profile=client&run_id=3&status=valid&actor=ann": 1,
	} {
		if got := list(query); len(got.Items) != n {
			t.Errorf("%s: %d items, want %d", query, len(got.Items), n)
		}
	}
	var paged []string
	cursor := ""
	for {
		q := "limit=4"
		if cursor != "" {
			q += "&cursor=" + url.QueryEscape(cursor)
		}
		page := list(q)
		for _, c := range page.Items {
			paged = append(paged, c.Serial)
		}
		if cursor = page.NextCursor; cursor == "" {
			break
		}
	}
	if len(paged) != 6 {
		t.Errorf("pages hold %d, want 6", len(paged))
	}
}

func TestQueryRefusals(t *testing.T) {
	t.Parallel()
	i := issuertest.Start(t, issuertest.Options{})
	for _, path := range []string{
		wire.PathCertificates + "?repo=x", wire.PathCertificates + "?limit=0", wire.PathCertificates + "?limit=501", wire.PathCertificates + "?limit=x",
		wire.PathCertificates + "?status=good", wire.PathCertificates + "?profile=ca", wire.PathCertificates + "?since=yesterday", wire.PathCertificates + "?serial=XYZ",
		wire.PathCertificates + "?serial=a&serial=b", wire.PathCertificates + "?actor=", wire.PathCertificates + "?cursor=nonsense",
		wire.PathCertificates + "?actor=" + strings.Repeat("a", 600), wire.PathCertificates + "/abc", wire.PathCertificates + "/" + strings.Repeat("A", 32),
		wire.PathCertificates + "?actor=a%00", wire.PathEvents + "?repository=%ff", wire.PathSessions + "?run_id=%00",
		wire.PathSessions + "?serial=abc", wire.PathSessions + "?live=maybe", wire.PathEvents + "?after=-1", wire.PathEvents + "?limit=1000",
	} {
		wantProblem(t, i.Call("GET", path, i.ViewerToken(), nil, nil), wire.ProblemBadRequest)
	}
	wantProblem(t, i.Call("GET", wire.PathCertificates+"/"+strings.Repeat("a", 32), i.ViewerToken(), nil, nil), wire.ProblemNotFound)
}

func TestCertificateDetail(t *testing.T) {
	t.Parallel()
	i := issuertest.Start(t, issuertest.Options{})
	out, err := i.Issue(i.GitHubToken(map[string]any{"run_id": "7", "run_attempt": "2", "check_run_id": "9", "jti": "token-1"}))
	if err != nil {
		t.Fatal(err)
	}
	var d wire.CertificateDetail
	if err := i.Call("GET", wire.PathCertificates+"/"+out.Serial, i.ViewerToken(), nil, &d); err != nil {
		t.Fatal(err)
	}
	if d.PEM != "" || d.Chain != "" || !bytes.Equal(d.TBS, tbsOf(t, out)) {
		t.Error("the record shows something else than what was signed")
	}
	if d.TokenID != "token-1" || d.TokenIssuer != i.GitHub.URL() || d.Provider != "github" || d.Run != "7/2/9" || len(d.SPKI) != 64 || d.Issuer == "" {
		t.Errorf("detail %+v", d)
	}
	if !strings.Contains(string(d.Claims), `"run_id":"7"`) || d.RevokedAt != nil || d.Sessions == nil {
		t.Errorf("claims %s", d.Claims)
	}
	// A record of an earlier version holds its signature, and shows it.
	block, _ := pem.Decode([]byte(out.Certificate))
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	db, err := sql.Open("sqlite", i.Config.Store+"?_pragma=busy_timeout(10000)")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.ExecContext(t.Context(), "UPDATE bodies SET signature = $1", leaf.Signature); err != nil {
		t.Fatal(err)
	}
	if err := i.Call("GET", wire.PathCertificates+"/"+out.Serial, i.ViewerToken(), nil, &d); err != nil || d.Chain != out.Certificate || !strings.HasPrefix(d.Chain, d.PEM) {
		t.Errorf("an earlier version's record is not shown as it was given out: %v", err)
	}
}

// TestSessions is ATTACKS 68 at the API: an engine reports only its own sessions.
func TestSessions(t *testing.T) {
	t.Parallel()
	i := issuertest.Start(t, issuertest.Options{})
	out, err := i.Issue(i.GitHubToken(map[string]any{"run_id": "7"}))
	if err != nil {
		t.Fatal(err)
	}
	id := strings.Repeat("0", 31) + "1"
	now := time.Now().UTC().Truncate(time.Second)
	report := func(token string, reports ...wire.SessionReport) wire.SessionsResponse {
		t.Helper()
		var res wire.SessionsResponse
		if err := i.Call("POST", wire.PathSessions, token, wire.SessionsRequest{Reports: reports}, &res); err != nil {
			t.Fatal(err)
		}
		return res
	}
	res := report(i.SessionsToken(nil),
		wire.SessionReport{Kind: "open", ID: id, Serial: out.Serial, Run: "7", RemoteAddr: "192.0.2.1:999", At: now},
		wire.SessionReport{Kind: "progress", ID: id, Serial: out.Serial, At: now, BytesIn: 5, BytesOut: 7},
		wire.SessionReport{Kind: "open", ID: "x", Serial: out.Serial, At: now},
		wire.SessionReport{Kind: "open", ID: strings.Repeat("0", 31) + "2", Serial: strings.Repeat("a", 32), At: now},
		wire.SessionReport{Kind: "open", ID: strings.Repeat("0", 31) + "3", Serial: out.Serial, At: now.Add(time.Hour)},
		wire.SessionReport{Kind: "open", ID: strings.Repeat("0", 31) + "4", Serial: out.Serial, At: now, RemoteAddr: "<script>"},
	)
	if res.Accepted != 2 || len(res.Refused) != 4 {
		t.Errorf("answer %+v", res)
	}
	list := func(query string) []wire.Session {
		t.Helper()
		var l wire.List[wire.Session]
		if err := i.Call("GET", wire.PathSessions+"?"+query, i.ViewerToken(), nil, &l); err != nil {
			t.Fatal(err)
		}
		return l.Items
	}
	if s := list("live=true"); len(s) != 1 || s[0].Serial != out.Serial || s[0].BytesOut != 7 || s[0].Engine != "default" || s[0].ClosedAt != nil {
		t.Errorf("live %+v", s)
	}
	other := report(i.SessionsToken(map[string]any{"machine_id": "another"}), wire.SessionReport{Kind: "close", ID: id, Serial: out.Serial, At: now})
	if other.Accepted != 0 || len(other.Refused) != 1 {
		t.Errorf("another machine's report: %+v", other)
	}
	if res := report(i.SessionsToken(nil), wire.SessionReport{Kind: "close", ID: id, Serial: out.Serial, At: now, BytesIn: 5, BytesOut: 9, Reason: "client"}); res.Accepted != 1 {
		t.Errorf("close: %+v", res)
	}
	if s := list("serial=" + out.Serial); len(s) != 1 || s[0].ClosedAt == nil || s[0].BytesOut != 9 {
		t.Errorf("closed %+v", s)
	}
	if s := list("live=true"); len(s) != 0 {
		t.Errorf("live after close %+v", s)
	}
	if evs := events(t, i, "connected"); len(evs) != 1 || evs[0].Serial != out.Serial {
		t.Errorf("connected events %+v", evs)
	}
	many := make([]wire.SessionReport, wire.MaxSessionReports+1)
	for n := range many {
		many[n] = wire.SessionReport{Kind: "progress", ID: id, Serial: out.Serial, At: now}
	}
	wantProblem(t, i.Call("POST", wire.PathSessions, i.SessionsToken(nil), wire.SessionsRequest{Reports: many}, nil), wire.ProblemBadRequest)
	wantProblem(t, i.Call("POST", wire.PathSessions, i.SessionsToken(map[string]any{"app_id": "1"}), wire.SessionsRequest{Reports: many[:1]}, nil), wire.ProblemDenied)
}
