package issuer_test

import (
	"errors"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/go-chi/chi/v5"

	"github.com/mayfly-ca/mayfly/client/wire"
	"github.com/mayfly-ca/mayfly/issuer/internal/web"
	"github.com/mayfly-ca/mayfly/issuer/issuertest"
)

// notAdmins are the routes that change something for others than admins, and those
// that change nothing: the status and the event for a viewer.
var notAdmins = map[string]struct {
	status int
	event  string
	why    string
}{
	"POST /v1/certificates":   {http.StatusForbidden, "denied", "a job's: a person without a rule for it is refused by the policy"},
	"POST /v1/sessions":       {http.StatusForbidden, "denied", "a machine's: no rule admits a person to it"},
	"POST /v1/policy/explain": {http.StatusBadRequest, "", "changes nothing: the empty claims are not understood"},
	"POST /logout":            {http.StatusSeeOther, "logout", "ends the viewer's own login"},
	"POST /link":              {http.StatusForbidden, "", "logs in who has the secret of a link, whatever their login: this one has none"},
	"POST /policy":            {http.StatusBadRequest, "", "changes nothing: the empty claims are not understood"},
}

// TestViewerChangesNothing checks that every change is refused to a viewer, with 403
// and an event. It reads the routes from the routers, so that none is missing.
func TestViewerChangesNothing(t *testing.T) {
	t.Parallel()
	i := issuertest.Start(t, issuertest.Options{})
	_, csr := issuertest.Key(t)
	tried := 0
	api, ok := i.Service.Server().Handler().(chi.Routes)
	if !ok {
		t.Fatal("the API's handler is no chi router")
	}
	err := chi.Walk(api, func(method, route string, _ http.Handler, _ ...func(http.Handler) http.Handler) error {
		if method == http.MethodGet || method == http.MethodHead {
			return nil
		}
		tried++
		path := strings.NewReplacer("{id}", strings.Repeat("a", 32), "{serial}", strings.Repeat("a", 32)).Replace(route)
		var body any
		if route == wire.PathCertificates {
			body = wire.IssueRequest{CSR: csr}
		}
		seen := len(all(t, i))
		err := i.Call(method, path, i.ViewerToken(), orObject(body), nil)
		var p *wire.Problem
		if !errors.As(err, &p) {
			t.Errorf("%s %s: a viewer may: %v", method, route, err)
			return nil
		}
		refused(t, i, method+" "+route, p.Status, seen)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, pattern := range web.Routes() {
		method, path, _ := strings.Cut(pattern, " ")
		if method == http.MethodGet {
			continue
		}
		tried++
		viewer := pageOf(t, i, issuertest.Viewer)
		seen := len(all(t, i))
		req, err := http.NewRequest(method, i.URL+path, strings.NewReader(url.Values{"id": {strings.Repeat("a", 32)}, "serial": {strings.Repeat("a", 32)}, "reason": {"x"}, "confirm": {"yes"}}.Encode()))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		req.Header.Set("Origin", i.URL)
		resp, err := viewer.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		refused(t, i, pattern, resp.StatusCode, seen)
	}
	if tried < 8 {
		t.Errorf("%d routes were tried: the routers are not read whole", tried)
	}
}

func orObject(v any) any {
	if v == nil {
		return map[string]any{}
	}
	return v
}

// refused compares the response to a viewer with the route's entry in notAdmins.
func refused(t *testing.T, i *issuertest.Issuer, route string, status, seen int) {
	t.Helper()
	want, known := notAdmins[route]
	if !known {
		want.status, want.event = http.StatusForbidden, "forbidden"
	}
	if status != want.status {
		t.Errorf("%s: %d, want %d", route, status, want.status)
	}
	events := all(t, i)
	got := events[:len(events)-seen] // newest first
	switch {
	case want.event == "" && len(got) > 0:
		t.Errorf("%s: events %+v", route, got)
	case want.event != "" && (len(got) != 1 || got[0].Type != want.event):
		t.Errorf("%s: events %+v, want one %s", route, got, want.event)
	}
}

// all returns the events except those of loading the policy, which may happen at any
// time.
func all(t *testing.T, i *issuertest.Issuer) []wire.Event {
	t.Helper()
	var list wire.List[wire.Event]
	if err := i.Call("GET", wire.PathEvents+"?limit=500", i.ViewerToken(), nil, &list); err != nil {
		t.Fatal(err)
	}
	return slices.DeleteFunc(list.Items, func(e wire.Event) bool { return e.Type == "policy_loaded" })
}

// pageOf logs in to the page and returns the client.
func pageOf(t *testing.T, i *issuertest.Issuer, email string) *http.Client {
	t.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	c := &http.Client{Transport: i.Client().Transport, Jar: jar, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	step := func(method, to string, form url.Values) string {
		t.Helper()
		req, err := http.NewRequest(method, to, strings.NewReader(form.Encode()))
		if err != nil {
			t.Fatal(err)
		}
		if method == http.MethodPost {
			req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
			req.Header.Set("Origin", i.Staff.URL())
		}
		resp, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		next, err := resp.Location()
		if err != nil {
			t.Fatalf("%s: %s: %s", to, resp.Status, body)
		}
		return next.String()
	}
	ask, err := url.Parse(step(http.MethodGet, i.URL+"/login/staff", nil))
	if err != nil {
		t.Fatal(err)
	}
	form := ask.Query()
	form.Set("email", email)
	ask.RawQuery = ""
	step(http.MethodGet, step(http.MethodPost, ask.String(), form), nil)
	return c
}
