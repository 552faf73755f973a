package policy

import (
	"fmt"
	"slices"
	"strings"

	"github.com/mayfly-ca/mayfly/ca/grant"
	"github.com/mayfly-ca/mayfly/ca/identity"
	"github.com/mayfly-ca/mayfly/issuer/internal/idtoken"
)

// grant returns the outcome of a rule that matched. It denies claims that lack a claim
// that the certificate needs.
func (s *Set) grant(r *rule, c idtoken.Claims, req Request) (outcome, error) {
	o := outcome{rule: r}
	if r.role != "" {
		return o, nil
	}
	names := r.engines
	switch {
	case req.Engine != "":
		names = []string{req.Engine}
	case req.OneEngine && len(names) > 1:
		return outcome{}, &SeveralEnginesError{Rule: r.name, Engines: slices.Clone(names)}
	}
	for _, n := range names {
		e, ok := s.engine(n)
		if !ok {
			return outcome{}, fmt.Errorf("policy: rule %s: no engine %s", r.name, n)
		}
		o.engines = append(o.engines, e)
	}
	var err error
	if o.who, err = s.identity(r, c, names); err != nil {
		return outcome{}, err
	}
	return o, nil
}

// decision makes the Decision for verified claims.
func (o outcome) decision(c idtoken.Claims, req Request) (Decision, error) {
	r := o.rule
	d := Decision{Rule: r.name, Provider: c.Provider(), Role: r.role, Engines: o.engines, Identity: o.who.ID}
	if req.Want != WantCertificate {
		return d, nil
	}
	var err error
	d.Grant, err = grant.New(grant.Params{
		Profile:  r.profile,
		TTL:      r.ttl,
		Provider: r.provider.Name,
		Identity: o.who,
		DNSNames: r.dns,
		Token: grant.Token{
			Issuer: c.Issuer(), ID: c.TokenID(), SingleUse: c.SingleUse(),
			IssuedAt: c.IssuedAt(), ExpiresAt: c.ExpiresAt(),
		},
		Subject: subjectOf(r.provider.Type, c),
		Claims:  c.JSON(),
	})
	if err != nil {
		return Decision{}, fmt.Errorf("policy: rule %s: %w", r.name, err)
	}
	return d, nil
}

// identity returns the identity for the leaf. If the token lacks a claim that its
// SPIFFE ID needs, identity returns a *Denial with that claim.
func (s *Set) identity(r *rule, c idtoken.Claims, engines []string) (identity.Identity, error) {
	parts := nameClaims(r)
	segments := make([]string, 0, len(parts))
	for _, claim := range parts {
		v, ok := c.String(claim)
		if !ok || v == "" {
			got, present := c.Get(claim)
			m := mismatch{got: got, present: present}
			return identity.Identity{}, &Denial{Rule: r.name, Claim: claim, Got: m.text()}
		}
		segments = append(segments, v)
	}
	who := identity.Identity{
		Grant:    identity.Scope{Engines: engines, Rule: r.name},
		Workflow: workflowOf(r.provider, c),
	}
	var err error
	if r.profile == grant.Server {
		who.ID, err = identity.EngineID(s.trustDomain, engines[0], r.provider.Name, segments...)
		who.CommonName = identity.CommonName(engines[0])
	} else {
		who.ID, err = identity.ClientID(s.trustDomain, r.provider.Name, segments...)
		who.CommonName = identity.CommonName(commonName(r.provider, c))
		who.Grant.Run = runOf(r.provider.Type, c)
	}
	if err == nil {
		err = who.Validate()
	}
	if err != nil {
		// A claim is too long for a certificate. err says which field.
		claim := longestClaim(c)
		got, _ := c.Get(claim)
		return identity.Identity{}, fmt.Errorf("%w: %w", &Denial{Rule: r.name, Claim: claim, Got: asJSON(got)}, err)
	}
	return who, nil
}

// certificateClaims are the claims that a leaf is made of. The minter of the token
// chooses the names of other claims.
var certificateClaims = []string{
	idtoken.ClaimSubject, idtoken.ClaimRepository, idtoken.ClaimRepositoryID, idtoken.ClaimRepositoryOwner, idtoken.ClaimRepositoryOwnerID,
	idtoken.ClaimVisibility, idtoken.ClaimWorkflowRef, idtoken.ClaimWorkflowSHA, idtoken.ClaimJobWorkflowRef, idtoken.ClaimJobWorkflowSHA,
	idtoken.ClaimRef, idtoken.ClaimSHA, idtoken.ClaimEventName, idtoken.ClaimEnvironment, idtoken.ClaimRunnerEnvironment,
	idtoken.ClaimRunID, idtoken.ClaimRunAttempt, idtoken.ClaimCheckRunID, idtoken.ClaimAppID, idtoken.ClaimMachineID,
}

// longestClaim returns the name of the longest of certificateClaims.
func longestClaim(c idtoken.Claims) (longest string) {
	most := -1
	for _, name := range certificateClaims {
		if s, ok := c.String(name); ok && len(s) > most {
			longest, most = name, len(s)
		}
	}
	return longest
}

// nameClaims returns the claims whose values, escaped, are the path of the SPIFFE ID
// after the provider's name.
func nameClaims(r *rule) []string {
	switch {
	case r.provider.Type == idtoken.GitHub:
		return []string{idtoken.ClaimRepositoryOwnerID, idtoken.ClaimRepositoryID}
	case r.provider.Type == idtoken.Fly && r.profile == grant.Server:
		return []string{idtoken.ClaimAppID, idtoken.ClaimMachineID}
	}
	return []string{idtoken.ClaimSubject}
}

// commonName returns <provider>/<owner>/<repo> or <provider>/<sub>, for people to
// read.
func commonName(p idtoken.Provider, c idtoken.Claims) string {
	if p.Type == idtoken.GitHub {
		if repo, ok := c.String(idtoken.ClaimRepository); ok && repo != "" {
			return p.Name + "/" + repo
		}
	}
	return p.Name + "/" + c.Subject()
}

// runOf returns the run of a client. A later certificate must have the same run to
// hold the relays of an earlier one.
func runOf(t idtoken.Type, c idtoken.Claims) string {
	if t != idtoken.GitHub {
		return c.Subject()
	}
	run, _ := c.String(idtoken.ClaimRunID)
	if run == "" {
		return "" // such a certificate holds no relays
	}
	attempt, _ := c.String(idtoken.ClaimRunAttempt)
	check, _ := c.String(idtoken.ClaimCheckRunID)
	return run + "/" + attempt + "/" + check
}

// subjectOf returns the labels that lists, revocations and blocks select by.
func subjectOf(t idtoken.Type, c idtoken.Claims) grant.Labels {
	text := func(claim string) string {
		s, _ := c.String(claim)
		return s
	}
	switch t {
	case idtoken.GitHub:
		return grant.Labels{
			Repository:   text(idtoken.ClaimRepository),
			RepositoryID: text(idtoken.ClaimRepositoryID),
			RunID:        text(idtoken.ClaimRunID),
			Actor:        text(idtoken.ClaimActor),
		}
	case idtoken.People:
		if yes, _ := c.Get(idtoken.ClaimEmailVerified); yes == true {
			return grant.Labels{Actor: text(idtoken.ClaimEmail)}
		}
	}
	return grant.Labels{}
}

// workflowOf returns Fulcio's description of a GitHub run (sigstore/fulcio
// docs/oid-info.md). If a claim is missing, empty or not a string, its field and each
// URI that needs the claim stay empty.
func workflowOf(p idtoken.Provider, c idtoken.Claims) identity.Workflow {
	if p.Type != idtoken.GitHub {
		return identity.Workflow{}
	}
	text := func(claim string) string {
		s, _ := c.String(claim)
		return s
	}
	uri := func(claims ...string) string {
		parts := []string{p.ServerURL}
		for _, claim := range claims {
			s := text(claim)
			if s == "" {
				return ""
			}
			parts = append(parts, s)
		}
		return strings.Join(parts, "/")
	}
	w := identity.Workflow{
		Issuer:                     c.Issuer(),
		BuildSignerURI:             uri(idtoken.ClaimJobWorkflowRef),
		BuildSignerDigest:          text(idtoken.ClaimJobWorkflowSHA),
		RunnerEnvironment:          text(idtoken.ClaimRunnerEnvironment),
		SourceRepositoryURI:        uri(idtoken.ClaimRepository),
		SourceRepositoryDigest:     text(idtoken.ClaimSHA),
		SourceRepositoryRef:        text(idtoken.ClaimRef),
		SourceRepositoryID:         text(idtoken.ClaimRepositoryID),
		SourceRepositoryOwnerURI:   uri(idtoken.ClaimRepositoryOwner),
		SourceRepositoryOwnerID:    text(idtoken.ClaimRepositoryOwnerID),
		BuildConfigURI:             uri(idtoken.ClaimWorkflowRef),
		BuildConfigDigest:          text(idtoken.ClaimWorkflowSHA),
		BuildTrigger:               text(idtoken.ClaimEventName),
		SourceRepositoryVisibility: text(idtoken.ClaimVisibility),
		DeploymentEnvironment:      text(idtoken.ClaimEnvironment),
		Subject:                    c.Subject(),
	}
	repo, run, attempt := text(idtoken.ClaimRepository), text(idtoken.ClaimRunID), text(idtoken.ClaimRunAttempt)
	if repo != "" && run != "" && attempt != "" {
		w.RunInvocationURI = p.ServerURL + "/" + repo + "/actions/runs/" + run + "/attempts/" + attempt
	}
	return w
}
