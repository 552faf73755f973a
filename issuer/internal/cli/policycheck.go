package cli

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/mayfly-ca/mayfly/client/configfile"
	"github.com/mayfly-ca/mayfly/issuer"
	"github.com/mayfly-ca/mayfly/issuer/internal/policy"
)

// policyReport holds the problems that policy check found; --json prints it.
type policyReport struct {
	File        string          `json:"file"`
	OK          bool            `json:"ok"`
	TrustDomain string          `json:"trust_domain,omitempty"`
	Providers   int             `json:"providers"`
	Engines     int             `json:"engines"`
	Rules       int             `json:"rules"`
	Problems    []policyProblem `json:"problems"`
}

// policyProblem is one line of the report.
type policyProblem struct {
	Severity policy.Severity `json:"severity"`
	Line     int             `json:"line,omitempty"` // from 1
	Column   int             `json:"column,omitempty"`
	Rule     string          `json:"rule,omitempty"`
	Text     string          `json:"text"`
}

// checkPolicy parses a policy file and collects its problems.
func checkPolicy(data []byte, o policy.Options) policyReport {
	r := policyReport{File: o.File, OK: true, Problems: []policyProblem{}}
	set, err := policy.Parse(data, o)
	if err != nil {
		r.OK = false
		r.addErrors(err)
		return r
	}
	r.TrustDomain = set.TrustDomain().Name()
	r.Providers, r.Engines, r.Rules = len(set.Providers()), len(set.Engines()), len(set.Rules())
	for _, f := range set.Findings() {
		r.OK = r.OK && f.Severity != policy.SeverityError
		r.Problems = append(r.Problems, policyProblem{f.Severity, f.Place.Line, f.Place.Column, f.Rule, f.Place.Text})
	}
	return r
}

// addErrors adds each error that err joins.
func (r *policyReport) addErrors(err error) {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		for _, e := range joined.Unwrap() {
			r.addErrors(e)
		}
		return
	}
	p := policyProblem{Severity: policy.SeverityError, Text: err.Error()}
	var at *configfile.Error
	if errors.As(err, &at) {
		p.Line, p.Column, p.Text = at.Line, at.Column, at.Text
	}
	r.Problems = append(r.Problems, p)
}

// print writes the report. Problems go to stderr, the summary to stdout, or to stderr
// for a file with errors. With --json, all of it goes to stdout.
func (r *policyReport) print(out Stdio, asJSON bool) error {
	if asJSON {
		enc := json.NewEncoder(out.Out)
		enc.SetIndent("", "  ")
		enc.SetEscapeHTML(false)
		return enc.Encode(r)
	}
	count := map[policy.Severity]int{}
	for _, p := range r.Problems {
		count[p.Severity]++
		place := r.File
		if p.Line > 0 {
			place = fmt.Sprintf("%s:%d:%d", r.File, p.Line, p.Column)
		}
		fmt.Fprintf(out.Err, "%s: %s: %s\n", place, p.Severity, issuer.Printable(p.Text))
	}
	if !r.OK {
		_, err := fmt.Fprintf(out.Err, "%s: errors %d, warnings %d\n", r.File, count[policy.SeverityError], count[policy.SeverityWarning])
		return err
	}
	_, err := fmt.Fprintf(out.Out, "ok: rules %d, engines %d, providers %d, trust domain %s\n", r.Rules, r.Engines, r.Providers, r.TrustDomain)
	return err
}
