package policy

import (
	"fmt"
	"slices"
	"strings"

	"github.com/mayfly-ca/mayfly/client/configfile"
	"github.com/mayfly-ca/mayfly/issuer/internal/idtoken"
)

// form is the form that the values of a claim have in every token.
type form int

const (
	anyText     form = iota
	digits           // an id
	commit           // 40 hex digits
	fullRef          // refs/heads/main
	bareRef          // main
	repository       // owner/name
	workflowRef      // owner/name/.github/workflows/file.yml@refs/heads/main
	calledRef        // a workflowRef, or one with a commit instead of the ref
	oneOf            // one of a few words
	boolean          // true or false, without quotes
	number           // without quotes
	structured       // a list or an object, which no rule can match
)

// claimInfo describes one claim.
type claimInfo struct {
	form  form
	words []string // of oneOf
}

func words(w ...string) claimInfo { return claimInfo{oneOf, w} }

func named(f form, names ...string) map[string]claimInfo {
	out := make(map[string]claimInfo, len(names))
	for _, n := range names {
		out[n] = claimInfo{form: f}
	}
	return out
}

func joined(sets ...map[string]claimInfo) map[string]claimInfo {
	out := map[string]claimInfo{}
	for _, s := range sets {
		for name, info := range s {
			out[name] = info
		}
	}
	return out
}

var yesOrNo = words("true", "false")

// githubEvents lists the events that start a workflow run (GitHub's reference, "Events
// that trigger workflows"), and dynamic, which is for runs that GitHub sets up itself.
// A called workflow has its caller's event.
var githubEvents = []string{
	"branch_protection_rule", "check_run", "check_suite", "create", "delete", "deployment", "deployment_status", "discussion",
	"discussion_comment", "dynamic", "fork", "gollum", "image_version", "issue_comment", "issues", "label", "merge_group", "milestone",
	"page_build", "public", "pull_request", "pull_request_review", "pull_request_review_comment", "pull_request_target", "push",
	"registry_package", "release", "repository_dispatch", "schedule", "status", "watch", "workflow_dispatch", "workflow_run",
}

// propertyPrefix is the start of claims for custom properties of a repository.
const propertyPrefix = "repo_property_"

var githubClaims = joined(
	named(anyText, idtoken.ClaimSubject, idtoken.ClaimRepositoryOwner, idtoken.ClaimEnvironment, idtoken.ClaimActor,
		"environment_node_id", "enterprise", "issuer_scope", "workflow"),
	named(digits, idtoken.ClaimRepositoryID, idtoken.ClaimRepositoryOwnerID, idtoken.ClaimRunID, idtoken.ClaimRunAttempt,
		idtoken.ClaimCheckRunID, "run_number", "actor_id", "enterprise_id"),
	named(commit, idtoken.ClaimSHA, idtoken.ClaimWorkflowSHA, idtoken.ClaimJobWorkflowSHA),
	named(bareRef, "head_ref", "base_ref"),
	map[string]claimInfo{
		idtoken.ClaimRepository:        {form: repository},
		idtoken.ClaimRef:               {form: fullRef},
		idtoken.ClaimWorkflowRef:       {form: workflowRef},
		idtoken.ClaimJobWorkflowRef:    {form: calledRef},
		idtoken.ClaimEventName:         words(githubEvents...),
		idtoken.ClaimVisibility:        words("public", "private", "internal"),
		idtoken.ClaimRunnerEnvironment: words("github-hosted", "self-hosted"),
		"ref_type":                     words("branch", "tag"),
		"ref_protected":                yesOrNo,
	})

var flyClaims = joined(
	named(anyText, idtoken.ClaimSubject, idtoken.ClaimMachineID, "org_name", "app_name", "machine_name", "machine_version", "image", "image_digest", "region"),
	named(digits, idtoken.ClaimOrgID, idtoken.ClaimAppID))

// personClaims are the claims of OpenID Connect Core 1.0, sections 2 and 5.1, and
// those of Google, Microsoft, Okta and GitLab logins.
var personClaims = joined(
	named(anyText, idtoken.ClaimSubject, idtoken.ClaimEmail, idtoken.ClaimAuthorizedParty,
		"acr", "at_hash", "birthdate", "family_name", "gender", "given_name", "hd", "idp", "locale", "login", "middle_name", "name", "nickname",
		"nonce", "oid", "phone_number", "picture", "preferred_username", "profile", "sid", "tid", "upn", "ver", "website", "zoneinfo"),
	named(boolean, idtoken.ClaimEmailVerified, "phone_number_verified"),
	named(number, "auth_time", "updated_at"),
	named(structured, "address", "amr", "groups", "groups_direct", "roles"))

// workloadClaims are the claims of platforms that use type oidc: GitLab, Kubernetes,
// Buildkite, CircleCI, Bitbucket, Azure Pipelines, Nomad, Google Cloud and AWS.
var workloadClaims = joined(personClaims,
	named(anyText, idtoken.ClaimProjectID, idtoken.ClaimRef, idtoken.ClaimEnvironment, idtoken.ClaimSHA,
		"namespace_id", "namespace_path", "project_path", "user_id", "user_login", "user_email", "user_access_level",
		"pipeline_id", "pipeline_source", "job_id", "ref_path", "runner_environment", "environment_action", "deployment_tier",
		"ci_config_ref_uri", "ci_config_sha", "job_project_id", "job_project_path", "job_namespace_id", "job_namespace_path",
		"organization_id", "organization_slug", "pipeline_slug", "build_branch", "build_tag", "build_commit", "build_source", "step_key", "cluster_id", "queue_id",
		"oidc.circleci.com/org-id", "oidc.circleci.com/project-id", "oidc.circleci.com/pipeline-definition-id", "oidc.circleci.com/job-id",
		"oidc.circleci.com/vcs-origin", "oidc.circleci.com/vcs-ref", "oidc.circleci.com/context-ids",
		"repositoryUuid", "workspaceUuid", "branchName", "deploymentEnvironmentUuid", "pipelineUuid", "stepUuid",
		"org_id", "prj_id", "def_id", "nomad_namespace", "nomad_job_id", "nomad_task", "nomad_allocation_id"),
	map[string]claimInfo{
		"ref_type": words("branch", "tag"), "ref_protected": yesOrNo, "environment_protected": yesOrNo,
		"project_visibility": words("public", "internal", "private"),
	},
	named(number, "runner_id", "build_number"),
	named(boolean, "oidc.circleci.com/ssh-rerun"),
	named(structured, "user_identities", "kubernetes.io", "google", "https://sts.amazonaws.com/"))

// claimsOf returns the claims that tokens of a type can have.
func claimsOf(t idtoken.Type) map[string]claimInfo {
	switch t {
	case idtoken.GitHub:
		return githubClaims
	case idtoken.Fly:
		return flyClaims
	case idtoken.People:
		return personClaims
	}
	return workloadClaims
}

// known returns the description of a claim, and false for a claim that no known token
// has.
func known(t idtoken.Type, claim string) (claimInfo, bool) {
	if info, ok := claimsOf(t)[claim]; ok {
		return info, true
	}
	switch t {
	case idtoken.GitHub:
		return claimInfo{}, strings.HasPrefix(claim, propertyPrefix) && claim != propertyPrefix
	case idtoken.People, idtoken.OIDC:
		return claimInfo{}, strings.Contains(claim, "://") // a name space of the provider's owner
	}
	return claimInfo{}, false
}

// wrong returns why no token has v as the claim's value, or "" if one can.
func (i claimInfo) wrong(v value) string {
	if i.form != structured && i.form != boolean && i.form != number && v.kind != stringValue {
		return "is text in tokens: quote the value"
	}
	switch i.form {
	case digits:
		if !wholeNumber(v.text) {
			return "is an id of digits"
		}
	case commit:
		if len(v.text) != 40 || strings.Trim(v.text, "0123456789abcdef") != "" {
			return "is a commit of 40 lower-case hex digits"
		}
	case fullRef:
		if !canBegin(v, "refs/") {
			return refHint(v.text)
		}
	case bareRef:
		if strings.HasPrefix(v.text, "refs/") {
			return fmt.Sprintf("is a branch's bare name: write %s", quote(v.text[strings.LastIndexByte(v.text, '/')+1:]))
		}
	case repository:
		if strings.Count(v.text, "/") != 1 {
			return "is written OWNER/NAME"
		}
	case workflowRef, calledRef:
		return wrongWorkflow(i.form, v)
	case oneOf:
		if !slices.Contains(i.words, v.text) {
			return i.hint(v.text)
		}
	case boolean:
		if v.kind != boolValue {
			return "is true or false in tokens, without quotes"
		}
	case number:
		if v.kind != numberValue {
			return "is a number in tokens, without quotes"
		}
	case structured:
		return "is a list or an object in tokens, and a rule compares single values only"
	}
	return ""
}

// canBegin reports whether v admits a value that begins with start.
func canBegin(v value, start string) bool {
	literal, _, pattern := strings.Cut(v.text, "*")
	return strings.HasPrefix(literal, start) || pattern && v.pattern && strings.HasPrefix(start, literal)
}

func refHint(text string) string {
	if strings.HasPrefix(text, "heads/") || strings.HasPrefix(text, "tags/") || strings.HasPrefix(text, "pull/") {
		return "begins with refs/: write " + quote("refs/"+text)
	}
	return fmt.Sprintf("is %s for a branch, %s for a tag", quote("refs/heads/"+text), quote("refs/tags/"+text))
}

// wrongWorkflow checks the value of workflow_ref or job_workflow_ref.
func wrongWorkflow(f form, v value) string {
	const want = "is written OWNER/NAME/.github/workflows/FILE@refs/heads/BRANCH"
	file, ref, found := strings.Cut(v.text, "@")
	switch {
	case !found && !v.pattern, strings.Count(file, "/") < 4 && !strings.Contains(file, "*"):
		return want
	case !found, canBegin(value{text: ref, pattern: v.pattern}, "refs/"):
		return ""
	case f == calledRef && claimInfo{form: commit}.wrong(value{text: ref}) == "":
		return ""
	}
	return want
}

func (i claimInfo) hint(text string) string {
	if text == "workflow_call" {
		return "is never workflow_call: a called workflow has its caller's event"
	}
	if near := configfile.Nearest(text, i.words); near != "" {
		return fmt.Sprintf("does not have this value; did you mean %s?", quote(near))
	}
	if len(i.words) <= 4 {
		return "is one of " + strings.Join(i.words, ", ")
	}
	return "does not have this value"
}
