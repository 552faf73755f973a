package idtokentest

import (
	"crypto/rand"
	"crypto/subtle"
	"maps"
	"net/http"
	"strconv"
	"strings"
)

// Job is one GitHub Actions job with id-token: write, as its runner sees it.
type Job struct {
	// RequestURL and RequestToken are the job's ACTIONS_ID_TOKEN_REQUEST_URL, which
	// already has a query, and ACTIONS_ID_TOKEN_REQUEST_TOKEN.
	RequestURL, RequestToken string

	claims map[string]any
}

// NewJob adds a job whose tokens have claims instead of the defaults.
func (p *Provider) NewJob(claims map[string]any) *Job {
	p.mu.Lock()
	defer p.mu.Unlock()
	number := strconv.Itoa(len(p.jobs) + 1)
	j := &Job{
		RequestURL:   p.origin + "/runner/" + number + "/idtoken?api-version=2.0",
		RequestToken: rand.Text(),
		claims:       maps.Clone(claims),
	}
	p.jobs[number] = j
	return j
}

// TokenRequestURL returns ACTIONS_ID_TOKEN_REQUEST_URL of the first job. It is empty
// for types other than github.
func (p *Provider) TokenRequestURL() string {
	if p.job == nil {
		return ""
	}
	return p.job.RequestURL
}

// TokenRequestToken returns ACTIONS_ID_TOKEN_REQUEST_TOKEN of the first job.
func (p *Provider) TokenRequestToken() string {
	if p.job == nil {
		return ""
	}
	return p.job.RequestToken
}

// serveRunner is the runner's token endpoint. It refuses a request without the query
// of RequestURL.
func (p *Provider) serveRunner(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	job := p.jobs[r.PathValue("job")]
	p.minted++
	count := p.minted
	p.mu.Unlock()
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if job == nil || !strings.EqualFold(scheme, "bearer") || subtle.ConstantTimeCompare([]byte(token), []byte(job.RequestToken)) != 1 {
		http.Error(w, "unauthorized", http.StatusUnauthorized)
		return
	}
	q := r.URL.Query()
	if q.Get("api-version") != "2.0" || len(q["audience"]) > 1 {
		http.Error(w, "bad request", http.StatusBadRequest)
		return
	}
	claims := maps.Clone(job.claims)
	if claims == nil {
		claims = map[string]any{}
	}
	if aud := q.Get("audience"); aud != "" {
		claims["aud"] = aud
	}
	value, err := p.Mint(claims)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	p.currentFaults().Token.answerJSON(w, r, map[string]any{"count": count, "value": value})
}
