package wire

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Text describes the event in one sentence. The sentence contains untrusted text,
// so the caller must escape it before it shows it.
func (e Event) Text() string {
	s := e.sentence()
	if e.Count > 1 && e.Detail["all"] == "" {
		s += fmt.Sprintf(" (%d times)", e.Count)
	}
	return s
}

func (e Event) sentence() string {
	d := e.Detail
	switch e.Type {
	case "issued":
		return e.subject() + " got a certificate" + clause(" by rule ", e.Rule) + clause(": ", e.Reason) + clause(" for ", d["names"])
	case "denied":
		return e.denial()
	case "replay":
		return e.subject() + " sent a token that was used before: " + e.Reason
	case "revoked":
		return e.actor() + " revoked " + e.revoked() + clause(": ", e.Reason)
	case "blocked":
		return e.actor() + " blocked " + e.object() + clause(" until ", moment(d["until"])) + clause(": ", e.Reason)
	case "unblocked":
		return e.actor() + " ended a block before its time"
	case "connected":
		return e.subject() + " connected to engine " + d["engine"] + clause(" from ", d["remote_addr"])
	case "disconnected":
		return e.subject() + " left engine " + d["engine"] + clause(": ", e.Reason) + traffic(d)
	case "admin_read":
		return e.actor() + " looked at everything recorded of a certificate"
	case "forbidden":
		return e.actor() + " tried what the policy does not let them do: " + e.Reason
	case "login":
		return e.actor() + " logged in to the page" + clause(" by rule ", e.Rule) + clause(" ", e.Reason)
	case "admin_link":
		return e.actor() + " made a link that logs in one " + d["role"] + clause(" until ", moment(d["until"]))
	case "logout":
		return e.actor() + " logged out of the page"
	case "policy_loaded":
		return "the policy was loaded" + clause(", rules: ", d["rules"])
	case "rotation":
		return e.actor() + " rotated keys: " + e.Reason
	case "feed_stale":
		return "engine " + d["engine"] + " had " + e.Reason
	case "restored":
		return e.actor() + " restored the store" + clause(": ", e.Reason) + clause("; what was issued before is refused, floor ", moment(d["floor"]))
	case "pruned":
		return "events past their retention were deleted" + clause(", up to number ", d["up_to"])
	}
	return e.subject() + clause(": ", e.Reason)
}

// denial says which claim failed and its value. The reason is a claim's name or
// one of the issuer's own texts.
func (e Event) denial() string {
	s := e.subject() + " was refused: "
	got, named := e.Detail["got"]
	switch {
	case strings.Contains(e.Reason, " "):
		return s + e.Reason // no rule, before the floor, other denials of this minute
	case e.Reason == "blocked":
		return s + "blocked by an admin"
	case !named:
		s += "claim " + e.Reason + " is missing"
	default:
		s += "claim " + e.Reason + " is " + got
	}
	return s + clause("; nearest rule ", e.Rule)
}

func (e Event) revoked() string {
	switch {
	case e.Detail["all"] != "":
		return "everything, " + e.Detail["certificates"] + " certificates on record"
	case e.Serial != "":
		return "a certificate of " + e.object()
	}
	return strconv.FormatInt(max(e.Count, 1), 10) + " more certificates"
}

// subject names the holder of the token or certificate in the event.
func (e Event) subject() string {
	switch {
	case e.Repository != "":
		if e.RunID == "" {
			return e.Repository
		}
		return e.Repository + ", run " + e.RunID + ","
	case e.Identity != "":
		return e.Identity
	}
	return e.actor()
}

// object is the form of subject for use inside a sentence.
func (e Event) object() string {
	switch {
	case e.Repository != "":
		return e.Repository + clause(", run ", e.RunID)
	case e.RunID != "":
		return "run " + e.RunID
	case e.Identity != "":
		return e.Identity
	}
	return "a match"
}

func (e Event) actor() string {
	if e.By == "" {
		return "the issuer"
	}
	return e.By
}

// clause returns before and text, or "" if text is empty.
func clause(before, text string) string {
	if text == "" {
		return ""
	}
	return before + text
}

// moment formats an RFC 3339 time for people.
func moment(s string) string {
	at, err := time.Parse(time.RFC3339, s)
	if err != nil {
		return s
	}
	return at.UTC().Format("2006-01-02 15:04:05 UTC")
}

// traffic describes the bytes of a session; bytes_in is from client to engine.
func traffic(d map[string]string) string {
	in, err := strconv.ParseInt(d["bytes_in"], 10, 64)
	out, err2 := strconv.ParseInt(d["bytes_out"], 10, 64)
	if err != nil || err2 != nil {
		return ""
	}
	return ", " + Size(in) + " sent, " + Size(out) + " received"
}

// Size formats a count of bytes in its largest decimal unit.
func Size(n int64) string {
	if n < 1000 {
		return strconv.FormatInt(n, 10) + " B"
	}
	v, unit := float64(n), ""
	for _, unit = range []string{"kB", "MB", "GB", "TB", "PB"} {
		if v /= 1000; v < 999.95 {
			break
		}
	}
	return fmt.Sprintf("%.1f %s", v, unit)
}
