package issuer_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/client/wire"
	"github.com/mayfly-ca/mayfly/issuer/issuertest"
)

// send posts a body unchanged and returns the status and the problem's name.
func send(t *testing.T, i *issuertest.Issuer, path, token, body string) (int, string) {
	t.Helper()
	req, err := http.NewRequest("POST", i.URL+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	resp, err := i.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	var p wire.Problem
	_ = json.Unmarshal(data, &p) // a successful response is no problem
	return resp.StatusCode, p.Name()
}

// TestStrictBodies checks that requests with two possible readings are refused:
// repeated names, names in another case, and endless nesting.
func TestStrictBodies(t *testing.T) {
	t.Parallel()
	i := issuertest.Start(t, issuertest.Options{})
	out, err := i.Issue(i.GitHubToken(nil))
	if err != nil {
		t.Fatal(err)
	}
	for name, body := range map[string]string{
		"a member twice":               `{"serial":"` + out.Serial + `","serial":"` + strings.Repeat("a", 32) + `"}`,
		"another case":                 `{"Serial":"` + out.Serial + `"}`,
		"both cases":                   `{"all":false,"ALL":true}`,
		"twice, deeper":                `{"match":{"run_id":"1","run_id":"2"}}`,
		"match twice, which would add": `{"match":{"run_id":"1"},"match":{"actor":"a"}}`,
		"a number for a text":          `{"serial":1}`,
		"a text for a boolean":         `{"all":"true"}`,
		"nested without end":           strings.Repeat(`{"match":`, 1000) + "1" + strings.Repeat("}", 1000),
		"an array":                     `[{"all":true}]`,
		"cut off":                      `{"all":true`,
		"two values":                   `{"all":true}{"all":true}`,
		"a comma too many":             `{"all":true,}`,
		"a byte-order mark":            "\ufeff" + `{"all":true}`,
	} {
		if status, problem := send(t, i, wire.PathRevocations, i.AdminToken(), body); status != 400 || problem != wire.ProblemBadRequest {
			t.Errorf("%s: %d %s", name, status, problem)
		}
	}
	if _, _, der := fetch(t, i, wire.PathCRL); len(revoked(t, der)) != 0 {
		t.Error("one of them revoked")
	}
	// Claims are not the issuer's own JSON and may have upper-case names.
	if status, problem := send(t, i, wire.PathPolicyExplain, i.ViewerToken(), `{"provider":"github","claims":{"Capital":{"a":1}}}`); status != 200 {
		t.Errorf("claims with a capital: %d %s", status, problem)
	}
	if status, problem := send(t, i, wire.PathRevocations, i.AdminToken(), `{"serial":"`+out.Serial+`"}`); status != 200 {
		t.Errorf("the good one: %d %s", status, problem)
	}
}

// TestStrangersAreQuotedShortly checks that untrusted text is cut in the log, where it
// could fill a disk, and in the response.
func TestStrangersAreQuotedShortly(t *testing.T) {
	t.Parallel()
	log := &buffer{}
	i := issuertest.Start(t, issuertest.Options{Log: log})
	long := strings.Repeat("x", 16<<10)
	_, csr := issuertest.Key(t)
	encoded, err := json.Marshal(csr)
	if err != nil {
		t.Fatal(err)
	}
	for name, body := range map[string]string{
		"an unknown member": `{"csr":` + string(encoded) + `,"` + long + `":1}`,
		"a member twice":    `{"` + long + `":1,"` + long + `":1}`,
		"no request":        `{"csr":"` + long + `"}`,
		"an engine":         `{"csr":` + string(encoded) + `,"engine":"` + long + `"}`,
	} {
		req, err := http.NewRequest("POST", i.URL+wire.PathCertificates, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+i.GitHubToken(nil))
		resp, err := i.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		said, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode < 400 || len(said) > 2048 {
			t.Errorf("%s: %d, %d bytes, %v", name, resp.StatusCode, len(said), err)
		}
	}
	for _, path := range []string{wire.PathCertificates + "?" + long + "=1", wire.PathCRLWait + "?" + long + "=1", "/" + long, wire.PathCRL + "/" + long, "/root/" + long} {
		status, _, said := fetch(t, i, path)
		if status < 400 || len(said) > 2048 {
			t.Errorf("%.20s: %d, %d bytes", path, status, len(said))
		}
	}
	if _, err := i.Issue(i.GitHubToken(map[string]any{"ref": long[:4096], "sub": long[:2048]})); err == nil {
		t.Error("admitted")
	}
	for line := range strings.Lines(log.String()) {
		if len(line) > 4096 {
			t.Errorf("a line of the log has %d bytes: %.100s", len(line), line)
		}
	}
}

// TestFiltersAreValues checks that filters and match values are only values. Quotes,
// wildcards and SQL operators find just the records that contain them.
func TestFiltersAreValues(t *testing.T) {
	t.Parallel()
	i := issuertest.Start(t, issuertest.Options{})
	plain, err := i.Issue(i.GitHubToken(map[string]any{"actor": "ann", "run_id": "1"}))
	if err != nil {
		t.Fatal(err)
	}
	find := func(query string) (serials []string) {
		t.Helper()
		var list wire.List[wire.Certificate]
		if err := i.Call("GET", wire.PathCertificates+"?"+query, i.ViewerToken(), nil, &list); err != nil {
			t.Fatalf("%s: %v", query, err)
		}
		for _, c := range list.Items {
			serials = append(serials, c.Serial)
		}
		return serials
	}
	for n, actor := range []string{`%`, `a_n`, `ann' OR '1'='1`, `'; DROP TABLE certificates; --`, `ann" --`, `\`, `$1`, `?`, "ann\u200b", `*`} {
		if got := find("actor=" + url.QueryEscape(actor)); len(got) != 0 {
			t.Errorf("%q finds %v", actor, got)
		}
		odd, err := i.Issue(i.GitHubToken(map[string]any{"actor": actor, "run_id": "odd"}))
		if err != nil {
			t.Fatalf("%q: %v", actor, err)
		}
		if got := find("actor=" + url.QueryEscape(actor)); len(got) != 1 || got[0] != odd.Serial {
			t.Errorf("%d: %q finds %v, want %s", n, actor, got, odd.Serial)
		}
		var found wire.List[wire.Event]
		if err := i.Call("GET", wire.PathEvents+"?run_id="+url.QueryEscape(actor), i.ViewerToken(), nil, &found); err != nil || len(found.Items) != 0 {
			t.Errorf("events of run %q: %v %v", actor, found.Items, err)
		}
		dry, err := i.Revoke(wire.RevokeRequest{Match: &wire.Match{Actor: actor}, DryRun: true})
		if err != nil || len(dry.Revoked) != 1 || dry.Revoked[0] != odd.Serial {
			t.Errorf("a match of %q: %+v %v", actor, dry, err)
		}
	}
	if got := find("actor=ann"); len(got) != 1 || got[0] != plain.Serial {
		t.Errorf("ann finds %v", got)
	}
	for _, serial := range []string{"%", "_", "a%", "ab' OR 1=1", plain.Serial + "0"} {
		wantProblem(t, i.Call("GET", wire.PathCertificates+"?serial="+url.QueryEscape(serial), i.ViewerToken(), nil, nil), wire.ProblemBadRequest)
	}
}

// TestCursorsAreSealed checks that a cursor is refused if it is altered, or used for
// another list or filter. A cursor never shows items outside its filter.
func TestCursorsAreSealed(t *testing.T) {
	t.Parallel()
	i := issuertest.Start(t, issuertest.Options{})
	for range 3 {
		if _, err := i.Issue(i.GitHubToken(map[string]any{"actor": "ann"})); err != nil {
			t.Fatal(err)
		}
	}
	var page wire.List[wire.Certificate]
	if err := i.Call("GET", wire.PathCertificates+"?limit=1&actor=ann", i.ViewerToken(), nil, &page); err != nil || page.NextCursor == "" {
		t.Fatalf("page %+v, %v", page, err)
	}
	cursor := page.NextCursor
	raw, err := base64.RawURLEncoding.DecodeString(cursor)
	if err != nil {
		t.Fatal(err)
	}
	for at := range raw {
		forged := bytes.Clone(raw)
		forged[at] ^= 1
		path := wire.PathCertificates + "?limit=1&actor=ann&cursor=" + base64.RawURLEncoding.EncodeToString(forged)
		wantProblem(t, i.Call("GET", path, i.ViewerToken(), nil, nil), wire.ProblemBadRequest)
	}
	for _, path := range []string{
		wire.PathCertificates + "?limit=1&actor=bob&cursor=" + cursor,
		wire.PathCertificates + "?limit=1&cursor=" + cursor,
		wire.PathEvents + "?limit=1&cursor=" + cursor,
		wire.PathSessions + "?limit=1&cursor=" + cursor,
		wire.PathCertificates + "?limit=1&actor=ann&cursor=" + cursor + "A",
		wire.PathCertificates + "?limit=1&actor=ann&cursor=" + strings.Repeat("A", 400),
	} {
		wantProblem(t, i.Call("GET", path, i.ViewerToken(), nil, nil), wire.ProblemBadRequest)
	}
	if err := i.Call("GET", wire.PathCertificates+"?limit=2&actor=ann&cursor="+cursor, i.ViewerToken(), nil, &page); err != nil || len(page.Items) != 2 {
		t.Errorf("its own: %+v, %v", page, err)
	}
}

// TestForgedTokensLeaveNothing checks two faults of step-ca: it uses up and records a
// token before it checks the signature, and the same token in another spelling counts
// as new. Here, a token that does not verify leaves no record, and a valid token is
// used up in any spelling.
func TestForgedTokensLeaveNothing(t *testing.T) {
	t.Parallel()
	i := issuertest.Start(t, issuertest.Options{})
	good := i.GitHubToken(map[string]any{"jti": "the-token"})
	parts := strings.Split(good, ".")
	_, csr := issuertest.Key(t)
	for range 20 {
		_, err := i.IssueCSR(parts[0]+"."+parts[1]+"."+base64.RawURLEncoding.EncodeToString(bytes.Repeat([]byte{1}, 256)), csr)
		wantProblem(t, err, wire.ProblemBadToken)
	}
	var evs wire.List[wire.Event]
	if err := i.Call("GET", wire.PathEvents, i.ViewerToken(), nil, &evs); err != nil {
		t.Fatal(err)
	}
	for _, e := range evs.Items {
		if e.Type == "denied" || e.Type == "replay" || e.Type == "issued" && e.By != "issuer" {
			t.Errorf("a token that does not verify wrote %+v", e)
		}
	}
	out, err := i.IssueCSR(good, csr)
	if err != nil {
		t.Fatalf("the real token, afterwards: %v", err)
	}
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	last := strings.IndexByte(alphabet, good[len(good)-1])
	for name, token := range map[string]string{
		"padding bits":    good[:len(good)-1] + alphabet[last^1:][:1], // sets a spare bit of the last character
		"padding":         good + "=",
		"two paddings":    good + "==",
		"standard base64": parts[0] + "." + parts[1] + "." + strings.NewReplacer("-", "+", "_", "/").Replace(parts[2]) + "+",
		"JSON":            `{"payload":"` + parts[1] + `","protected":"` + parts[0] + `","signature":"` + parts[2] + `"}`,
	} {
		_, other := issuertest.Key(t)
		_, err := i.IssueCSR(token, other)
		if p := problem(t, err); p.Name() != wire.ProblemBadToken {
			t.Errorf("%s: %s", name, p.Name())
		}
	}
	var list wire.List[wire.Certificate]
	if err := i.Call("GET", wire.PathCertificates, i.ViewerToken(), nil, &list); err != nil || len(list.Items) != 1 || list.Items[0].Serial != out.Serial {
		t.Errorf("one token bought %v, %v", list.Items, err)
	}
}

// TestClaimsAreNoTemplate checks that claims are only data. Template syntax or a name
// in a claim makes neither a CA nor another name (step-ca's unquoted claims).
func TestClaimsAreNoTemplate(t *testing.T) {
	t.Parallel()
	i := issuertest.Start(t, issuertest.Options{})
	for _, text := range []string{`", "isCA": true, "x": "`, "{{ .Token }}", "a\", \"dnsNames\": [\"evil.example.com\"]", "/CN=root/O=evil", "x,CN=evil"} {
		out, err := i.Issue(i.GitHubToken(map[string]any{"repository": text, "actor": text, "workflow": text, "sub": text, "job_workflow_ref": text}))
		if err != nil {
			t.Fatalf("%q: %v", text, err)
		}
		leaf := leafOf(t, out.Certificate)
		if leaf.IsCA || len(leaf.DNSNames)+len(leaf.EmailAddresses)+len(leaf.IPAddresses) > 0 || len(leaf.URIs) != 1 || len(leaf.Subject.Names) != 1 {
			t.Errorf("%q: CA %v, names %v %v %v", text, leaf.IsCA, leaf.DNSNames, leaf.URIs, leaf.Subject)
		}
	}
}

// TestHugeNumbers sends durations and times at the ends of their range.
func TestHugeNumbers(t *testing.T) {
	t.Parallel()
	i := issuertest.Start(t, issuertest.Options{})
	out, err := i.Issue(i.GitHubToken(nil))
	if err != nil {
		t.Fatal(err)
	}
	for _, block := range []string{"2562047h47m16.854775807s", "9223372036854775807ns", "9223372036854775808ns", "1e9h", "99999999999999999999h", "0s", "-1ns", "24", "NaN", " 24h"} {
		_, err := i.Revoke(wire.RevokeRequest{Serial: out.Serial, Block: block})
		wantProblem(t, err, wire.ProblemBadRequest)
	}
	for _, query := range []string{"since=0001-01-01T00:00:00Z", "until=9999-12-31T23:59:59Z", "since=0000-01-01T00:00:00Z&until=9999-12-31T23:59:59%2B14:00"} {
		var list wire.List[wire.Certificate]
		if err := i.Call("GET", wire.PathCertificates+"?"+query, i.ViewerToken(), nil, &list); err != nil || len(list.Items) != 1 {
			t.Errorf("%s: %v %v", query, list.Items, err)
		}
		if err := i.Call("GET", wire.PathEvents+"?"+query, i.ViewerToken(), nil, nil); err != nil {
			t.Errorf("%s: %v", query, err)
		}
	}
	for _, query := range []string{"after=9223372036854775808", "after=-1", "after=1e3", "after=0x10", "after=%2b1x"} {
		if status, _, _ := fetch(t, i, wire.PathCRLWait+"?"+query); status != 400 {
			t.Errorf("crl/wait?%s: %d", query, status)
		}
	}
	if _, err := i.Revoke(wire.RevokeRequest{Serial: out.Serial, Block: (90 * 24 * time.Hour).String()}); err != nil {
		t.Errorf("the longest block: %v", err)
	}
}
