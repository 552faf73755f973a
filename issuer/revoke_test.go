package issuer_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/client/wire"
	"github.com/mayfly-ca/mayfly/issuer/issuertest"
)

// fetch gets a public path and returns status, header and body.
func fetch(t *testing.T, i *issuertest.Issuer, path string, header ...string) (int, http.Header, []byte) {
	t.Helper()
	req, err := http.NewRequest("GET", i.URL+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	for n := 0; n+1 < len(header); n += 2 {
		req.Header.Set(header[n], header[n+1])
	}
	resp, err := i.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, resp.Header, body
}

func revoked(t *testing.T, der []byte) []string {
	t.Helper()
	crl, err := x509.ParseRevocationList(der)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range crl.RevokedCertificateEntries {
		out = append(out, fmt.Sprintf("%032x", e.SerialNumber))
	}
	return out
}

// TestRevokeSerial revokes by serial. When the call returns, the serial is in the CRL
// and listed as revoked, and its run is blocked (ATTACKS 53), but not another run. The
// block can be ended.
func TestRevokeSerial(t *testing.T) {
	t.Parallel()
	i := issuertest.Start(t, issuertest.Options{})
	run := map[string]any{"run_id": "100"}
	first, err := i.Issue(i.GitHubToken(run))
	if err != nil {
		t.Fatal(err)
	}
	second, err := i.Issue(i.GitHubToken(run))
	if err != nil {
		t.Fatal(err)
	}
	res, err := i.Revoke(wire.RevokeRequest{Serial: first.Serial, Reason: "stolen"})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(res.Revoked)
	want := []string{first.Serial, second.Serial} // a job can have several
	slices.Sort(want)
	if !slices.Equal(res.Revoked, want) || len(res.BlockIDs) != 1 {
		t.Fatalf("revoked %v, blocks %v", res.Revoked, res.BlockIDs)
	}
	status, _, der := fetch(t, i, wire.PathCRL)
	if got := revoked(t, der); status != 200 || len(got) != 2 || !slices.Contains(got, first.Serial) {
		t.Errorf("CRL lists %v", got)
	}
	var list wire.List[wire.Certificate]
	if err := i.Call("GET", wire.PathCertificates+"?status=revoked", i.ViewerToken(), nil, &list); err != nil || len(list.Items) != 2 {
		t.Errorf("revoked list: %v %v", list, err)
	}
	var detail wire.CertificateDetail
	if err := i.Call("GET", wire.PathCertificates+"/"+first.Serial, i.ViewerToken(), nil, &detail); err != nil {
		t.Fatal(err)
	}
	if detail.Reason != "stolen" || detail.RevokedAt == nil || detail.RevokedBy != "staff/ops@example.com" {
		t.Errorf("detail %+v", detail)
	}
	if detail.PEM != "" || detail.Chain != "" || !bytes.Equal(detail.TBS, tbsOf(t, first)) {
		t.Error("the revoked record shows something else than what was signed")
	}
	_, err = i.Issue(i.GitHubToken(run))
	wantProblem(t, err, wire.ProblemBlocked)
	if _, err := i.Issue(i.GitHubToken(map[string]any{"run_id": "101"})); err != nil {
		t.Errorf("another run: %v", err)
	}

	var blocks wire.List[wire.Block]
	if err := i.Call("GET", wire.PathBlocks, i.AdminToken(), nil, &blocks); err != nil || len(blocks.Items) != 1 {
		t.Fatalf("blocks %v %v", blocks, err)
	}
	if b := blocks.Items[0]; b.ID != res.BlockIDs[0] || b.Match.RunID != "100" || b.Reason != "stolen" || time.Until(b.Until) < 23*time.Hour {
		t.Errorf("block %+v", b)
	}
	if err := i.Call("DELETE", wire.PathBlocks+"/"+res.BlockIDs[0], i.AdminToken(), nil, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := i.Issue(i.GitHubToken(run)); err != nil {
		t.Errorf("after the block's end: %v", err)
	}
}

func TestRevokeForms(t *testing.T) {
	t.Parallel()
	i := issuertest.Start(t, issuertest.Options{})
	out, err := i.Issue(i.GitHubToken(nil))
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	past := now.Add(-time.Hour)
	for name, req := range map[string]wire.RevokeRequest{
		"nothing":         {},
		"two of them":     {Serial: out.Serial, All: true},
		"empty match":     {Match: &wire.Match{}},
		"prefix":          {Serial: out.Serial[:8]},
		"upper case":      {Serial: strings.ToUpper(out.Serial)},
		"profile":         {Match: &wire.Match{Profile: "ca"}},
		"NUL":             {Match: &wire.Match{RunID: "1\x00"}},
		"until first":     {Match: &wire.Match{Since: &now, Until: &past}},
		"block":           {Serial: out.Serial, Block: "soon"},
		"negative block":  {Serial: out.Serial, Block: "-1h"},
		"block of a year": {Serial: out.Serial, Block: "8760h"},
		"long reason":     {Serial: out.Serial, Reason: strings.Repeat("a", 2000)},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := i.Revoke(req)
			wantProblem(t, err, wire.ProblemBadRequest)
		})
	}
	// An unset variable in a script must not widen the revocation.
	empty := json.RawMessage(`{"match":{"repository_id":"` + issuertest.RepositoryID + `","run_id":""}}`)
	wantProblem(t, i.Call("POST", wire.PathRevocations, i.AdminToken(), empty, nil), wire.ProblemBadRequest)
	dry, err := i.Revoke(wire.RevokeRequest{Match: &wire.Match{RepositoryID: issuertest.RepositoryID, Since: &past}, DryRun: true})
	if err != nil || len(dry.Revoked) != 1 {
		t.Errorf("dry run: %+v %v", dry, err)
	}
	if _, _, der := fetch(t, i, wire.PathCRL); len(revoked(t, der)) != 0 {
		t.Error("the dry run, or a refusal, revoked")
	}
	res, err := i.Revoke(wire.RevokeRequest{Match: &wire.Match{RepositoryID: issuertest.RepositoryID, Since: &past}, Block: wire.BlockNone})
	if err != nil || len(res.Revoked) != 1 || len(res.BlockIDs) != 0 {
		t.Errorf("match: %+v %v", res, err)
	}
	if _, err := i.Issue(i.GitHubToken(nil)); err != nil {
		t.Errorf("block none, and yet: %v", err)
	}
}

// TestRevokeAll raises the floor. Earlier tokens are refused, admins stay logged in,
// and later tokens work.
func TestRevokeAll(t *testing.T) {
	t.Parallel()
	i := issuertest.Start(t, issuertest.Options{})
	early := i.GitHubToken(map[string]any{"run_id": "1"})
	if _, err := i.Issue(i.FlyToken(nil)); err != nil {
		t.Fatal(err)
	}
	admin := i.AdminToken()
	var res wire.RevokeResponse
	if err := i.Call("POST", wire.PathRevocations, admin, wire.RevokeRequest{All: true, Reason: "breach"}, &res); err != nil {
		t.Fatal(err)
	}
	if res.Floor == nil {
		t.Fatalf("no floor: %+v", res)
	}
	_, err := i.Issue(early)
	wantProblem(t, err, wire.ProblemBadToken)
	if err := i.Call("GET", wire.PathBlocks, admin, nil, nil); err != nil {
		t.Errorf("the admin is logged out: %v", err)
	}
	later := i.GitHubToken(map[string]any{"run_id": "2", "iat": res.Floor.Unix()})
	_, csr := issuertest.Key(t)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		_, err := i.IssueCSR(later, csr)
		if err == nil {
			break
		}
		wantProblem(t, err, wire.ProblemBadToken)
		if time.Since(*res.Floor) > 5*time.Second {
			t.Fatalf("long after the floor: %v", err)
		}
		<-tick.C // the floor is the next whole second
	}
}

func TestCRLEndpoints(t *testing.T) {
	t.Parallel()
	i := issuertest.Start(t, issuertest.Options{})
	out, err := i.Issue(i.GitHubToken(nil))
	if err != nil {
		t.Fatal(err)
	}
	leaf := leafOf(t, out.Certificate)
	path := strings.TrimPrefix(leaf.CRLDistributionPoints[0], i.URL)
	status, header, der := fetch(t, i, path)
	crl, err := x509.ParseRevocationList(der)
	if err != nil || status != 200 || header.Get("Content-Type") != "application/pkix-crl" {
		t.Fatalf("distribution point: %d %v %v", status, header, err)
	}
	_, rest := pem.Decode([]byte(out.Certificate))
	if err := crl.CheckSignatureFrom(leafOf(t, string(rest))); err != nil {
		t.Error(err)
	}
	if status, _, body := fetch(t, i, path, "If-None-Match", header.Get("ETag")); status != 304 || len(body) != 0 {
		t.Errorf("with the tag: %d, %d bytes", status, len(body))
	}
	if status, _, _ := fetch(t, i, wire.PathCRL+"/"+hex.EncodeToString(make([]byte, 20))); status != 404 {
		t.Errorf("unknown intermediate: %d", status)
	}
	status, header, text := fetch(t, i, wire.PathCRLWait)
	if status != 200 || header.Get("Content-Type") != "application/x-pem-file" {
		t.Fatalf("wait: %d %v", status, header)
	}
	var kinds []string
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		kinds = append(kinds, block.Type)
	}
	if !slices.Equal(kinds, []string{"CERTIFICATE", "X509 CRL", "X509 CRL"}) {
		t.Errorf("wait gives %v", kinds)
	}
	if status, _, _ := fetch(t, i, wire.PathCRLWait+"?after=x"); status != 400 {
		t.Errorf("after=x: %d", status)
	}
}

// TestWaitHearsRevocation checks that a waiting request returns on a revocation, at
// this issuer and at its replica.
func TestWaitHearsRevocation(t *testing.T) {
	t.Parallel()
	a := issuertest.Start(t, issuertest.Options{})
	b := a.Replica()
	out, err := a.Issue(a.GitHubToken(nil))
	if err != nil {
		t.Fatal(err)
	}
	type answer struct {
		status int
		body   []byte
		err    error
	}
	wait := func(i *issuertest.Issuer, ch chan answer) {
		_, header, _ := fetch(t, i, wire.PathCRL)
		number := strings.Trim(header.Get("ETag"), `"`)
		go func() {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			req, err := http.NewRequestWithContext(ctx, "GET", i.URL+wire.PathCRLWait+"?after="+number, nil)
			if err != nil {
				ch <- answer{err: err}
				return
			}
			resp, err := i.Client().Do(req)
			if err != nil {
				ch <- answer{err: err}
				return
			}
			defer resp.Body.Close()
			body, err := io.ReadAll(resp.Body)
			ch <- answer{resp.StatusCode, body, err}
		}()
	}
	fromA, fromB := make(chan answer, 1), make(chan answer, 1)
	wait(a, fromA)
	wait(b, fromB)
	res, err := a.Revoke(wire.RevokeRequest{Serial: out.Serial})
	if err != nil {
		t.Fatal(err)
	}
	for name, ch := range map[string]chan answer{"same": fromA, "replica": fromB} {
		got := <-ch
		if got.err != nil || got.status != 200 {
			t.Errorf("%s: %d %v", name, got.status, got.err)
			continue
		}
		_, rest := pem.Decode(got.body)
		block, _ := pem.Decode(rest)
		if list := revoked(t, block.Bytes); !slices.Contains(list, out.Serial) {
			t.Errorf("%s: CRL lists %v", name, list)
		}
	}
	if list := revoked(t, crlOfNumber(t, b, res.CRLNumber)); !slices.Contains(list, out.Serial) {
		t.Errorf("the replica's CRL lists %v", list)
	}
}

// crlOfNumber waits until the issuer publishes a CRL of at least number.
func crlOfNumber(t *testing.T, i *issuertest.Issuer, number int64) []byte {
	t.Helper()
	for {
		_, header, der := fetch(t, i, wire.PathCRL)
		have, err := strconv.ParseInt(strings.Trim(header.Get("ETag"), `"`), 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		if have >= number {
			return der
		}
		if status, _, _ := fetch(t, i, wire.PathCRLWait+"?after="+strconv.FormatInt(have, 10)); status != 200 {
			t.Fatalf("no CRL of number %d after %d: %d", number, have, status)
		}
	}
}

// TestRevokeAtTwoIssuers is ATTACKS 55: two issuers revoke at once, and the newest CRL
// holds both.
func TestRevokeAtTwoIssuers(t *testing.T) {
	t.Parallel()
	a := issuertest.Start(t, issuertest.Options{})
	b := a.Replica()
	var serials []string
	for n := range 8 {
		out, err := a.Issue(a.GitHubToken(map[string]any{"run_id": strconv.Itoa(n)}))
		if err != nil {
			t.Fatal(err)
		}
		serials = append(serials, out.Serial)
	}
	type outcome struct {
		number int64
		err    error
	}
	outcomes := make(chan outcome, len(serials))
	for n, s := range serials {
		i := a
		if n%2 == 1 {
			i = b
		}
		go func() {
			res, err := i.Revoke(wire.RevokeRequest{Serial: s})
			if err != nil {
				outcomes <- outcome{err: err}
				return
			}
			outcomes <- outcome{number: res.CRLNumber}
		}()
	}
	newest := int64(0)
	for range serials {
		o := <-outcomes
		if o.err != nil {
			t.Error(o.err)
		}
		newest = max(newest, o.number)
	}
	for _, i := range []*issuertest.Issuer{a, b} {
		der := crlOfNumber(t, i, newest)
		if got := revoked(t, der); len(got) != len(serials) {
			t.Errorf("CRL lists %d of %d", len(got), len(serials))
		}
	}
}
