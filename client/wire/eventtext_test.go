package wire

import "testing"

func TestEventWords(t *testing.T) {
	t.Parallel()
	job := Event{Repository: "acme/app", RunID: "7", Identity: "github/repo:acme/app", By: "github/repo:acme/app", Rule: "app-main"}
	of := func(e Event, kind, reason string, detail map[string]string) Event {
		e.Type, e.Reason, e.Detail = kind, reason, detail
		return e
	}
	admin := Event{By: "staff/ops@example.com"}
	by := admin
	by.Repository, by.RunID, by.Serial = "acme/app", "7", "00ff"
	summed := of(job, "denied", "ref", map[string]string{"got": `"refs/heads/evil"`})
	summed.Count = 12
	all := of(admin, "revoked", "key exposed", map[string]string{"all": "true", "certificates": "40"})
	all.Count = 40
	machine := Event{By: "spiffe://td/engine/default/fly/1/2"}
	for _, tt := range []struct {
		want string
		ev   Event
	}{
		{"acme/app, run 7, got a certificate by rule app-main", of(job, "issued", "", nil)},
		{"issuer got a certificate: certificate of the issuer's own listener for 127.0.0.1", of(Event{By: "issuer"}, "issued", "certificate of the issuer's own listener", map[string]string{"names": "127.0.0.1"})},
		{`acme/app, run 7, was refused: claim ref is "refs/heads/evil"; nearest rule app-main (12 times)`, summed},
		{"acme/app, run 7, was refused: claim environment is missing; nearest rule app-main", of(job, "denied", "environment", nil)},
		{"acme/app, run 7, was refused: blocked by an admin", of(job, "denied", "blocked", map[string]string{"block": "ab"})},
		{"acme/app, run 7, was refused: no rule", of(job, "denied", "no rule", nil)},
		{"acme/app, run 7, sent a token that was used before: another key, certificate 00ff", of(job, "replay", "another key, certificate 00ff", nil)},
		{"staff/ops@example.com revoked a certificate of acme/app, run 7: laptop stolen", of(by, "revoked", "laptop stolen", nil)},
		{"staff/ops@example.com revoked everything, 40 certificates on record: key exposed", all},
		{"staff/ops@example.com blocked acme/app, run 7 until 2026-01-02 03:04:05 UTC: laptop stolen", of(by, "blocked", "laptop stolen", map[string]string{"until": "2026-01-02T03:04:05Z", "block": "ab"})},
		{"staff/ops@example.com ended a block before its time", of(admin, "unblocked", "", map[string]string{"block": "ab"})},
		{"acme/app, run 7, connected to engine default from 192.0.2.7:1", of(job, "connected", "", map[string]string{"engine": "default", "remote_addr": "192.0.2.7:1"})},
		{"acme/app, run 7, left engine default: revoked, 999 B sent, 1.5 MB received", of(job, "disconnected", "revoked", map[string]string{"engine": "default", "bytes_in": "999", "bytes_out": "1500000"})},
		{"staff/ops@example.com looked at everything recorded of a certificate", of(admin, "admin_read", "", nil)},
		{"staff/ops@example.com tried what the policy does not let them do: POST /v1/revocations", of(admin, "forbidden", "POST /v1/revocations", nil)},
		{"staff/ops@example.com logged in to the page", of(admin, "login", "", nil)},
		{"host/root made a link that logs in one viewer until 2026-01-02 03:04:05 UTC", of(Event{By: "host/root"}, "admin_link", "", map[string]string{"role": "viewer", "until": "2026-01-02T03:04:05Z"})},
		{"host/root logged in to the page by an admin link", of(Event{By: "host/root"}, "login", "by an admin link", nil)},
		{"staff/ops@example.com logged out of the page", of(admin, "logout", "", nil)},
		{"the policy was loaded, rules: 4", of(Event{}, "policy_loaded", "", map[string]string{"rules": "4", "sha256": "ab"})},
		{"host rotated keys: intermediate or root CRL installed", of(Event{By: "host"}, "rotation", "intermediate or root CRL installed", nil)},
		{"engine default had no revocation list for 5m0s", of(machine, "feed_stale", "no revocation list for 5m0s", map[string]string{"engine": "default"})},
		{"host restored the store: restored from a backup; what was issued before is refused, floor 2026-01-02 03:04:05 UTC", of(Event{By: "host"}, "restored", "restored from a backup", map[string]string{"floor": "2026-01-02T03:04:05Z"})},
		{"events past their retention were deleted, up to number 900", of(Event{By: "retention"}, "pruned", "", map[string]string{"up_to": "900"})},
		{"staff/ops@example.com: later", of(admin, "of a later version", "later", nil)},
	} {
		if got := tt.ev.Text(); got != tt.want {
			t.Errorf("%s: %q, want %q", tt.ev.Type, got, tt.want)
		}
	}
}

func TestSize(t *testing.T) {
	t.Parallel()
	for n, want := range map[int64]string{0: "0 B", 999: "999 B", 1000: "1.0 kB", 1_500_000: "1.5 MB", 999_999: "1.0 MB", 12_000_000_000: "12.0 GB", 1 << 62: "4611.7 PB"} {
		if got := Size(n); got != want {
			t.Errorf("%d: %q, want %q", n, got, want)
		}
	}
}
