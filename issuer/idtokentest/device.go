package idtokentest

import (
	"crypto/rand"
	"net/http"
	"strings"
	"time"
)

// serveDeviceCode handles the device authorization request (RFC 8628 section 3.1).
func (p *Provider) serveDeviceCode(w http.ResponseWriter, r *http.Request) {
	form, ok := readForm(w, r)
	if !ok {
		return
	}
	if form.Get("client_id") != p.options.ClientID {
		refuseGrant(w, r, "invalid_client")
		return
	}
	code, user := rand.Text(), newUserCode()
	if !p.people.put(func(s *people) {
		s.devices[code] = &device{userCode: user, expires: time.Now().Add(deviceLife)}
	}) {
		http.Error(w, "too many logins", http.StatusServiceUnavailable)
		return
	}
	uri := p.issuer + "/device"
	Fault{}.answerJSON(w, r, map[string]any{
		"device_code": code, "user_code": user,
		"verification_uri": uri, "verification_uri_complete": uri + "?user_code=" + user,
		"expires_in": int(deviceLife / time.Second), "interval": int(deviceEvery / time.Second),
	})
}

// newUserCode returns a code of eight letters that are easy to tell apart, like
// WDJB-MJHT.
func newUserCode() string {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails
	for i := range b {
		b[i] = userAlphabet[int(b[i])%len(userAlphabet)]
	}
	return string(b[:4]) + "-" + string(b[4:])
}

// poll answers a device that polls for its token (RFC 8628 section 3.5).
func (s *people) poll(code string) (email, refusal string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	d, ok := s.devices[code]
	now := time.Now()
	switch {
	case !ok:
		return "", "invalid_grant"
	case now.After(d.expires):
		delete(s.devices, code)
		return "", "expired_token"
	case d.denied:
		delete(s.devices, code)
		return "", "access_denied"
	case d.email != "":
		delete(s.devices, code)
		return d.email, ""
	case !d.polled.IsZero() && now.Sub(d.polled) < deviceEvery/2:
		d.polled = now
		return "", "slow_down"
	}
	d.polled = now
	return "", "authorization_pending"
}

func (p *Provider) serveDevicePage(w http.ResponseWriter, r *http.Request) {
	email, _ := p.Claims(nil)["email"].(string)
	showPage(w, http.StatusOK, page{
		Title: "Sign in on a device", Action: p.options.Path + "/device", Email: email,
		AskCode: true, Code: r.URL.Query().Get("user_code"),
	})
}

func (p *Provider) serveDeviceAnswer(w http.ResponseWriter, r *http.Request) {
	form, ok := readForm(w, r)
	if !ok {
		return
	}
	code, deny := strings.ToUpper(strings.TrimSpace(form.Get("user_code"))), form.Get("answer") == "deny"
	email := form.Get("email")
	if email == "" {
		email, _ = p.Claims(nil)["email"].(string)
	}
	if !p.people.answer(code, email, deny) {
		showPage(w, http.StatusNotFound, page{Title: "Sign in on a device", Message: "This code is not known, or was used."})
		return
	}
	message := "The device is signed in. You may close this page."
	if deny {
		message = "The device was refused. You may close this page."
	}
	showPage(w, http.StatusOK, page{Title: "Sign in on a device", Message: message})
}

func (s *people) answer(userCode, email string, deny bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range s.devices {
		if d.userCode == userCode && d.email == "" && !d.denied && time.Now().Before(d.expires) {
			d.denied = deny
			if !deny {
				d.email = email
			}
			return true
		}
	}
	return false
}
