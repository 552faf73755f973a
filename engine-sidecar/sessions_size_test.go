package sidecar

import (
	"encoding/json"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/client/wire"
)

// FuzzEncodedAtMost: no report is longer in JSON than encodedAtMost returns.
func FuzzEncodedAtMost(f *testing.F) {
	f.Add("285964/1", "revoked", int64(0))
	f.Add(strings.Repeat("<", 4096), "\u2028\x00\xff\"\\", int64(math.MinInt64))
	f.Fuzz(func(t *testing.T, run, reason string, n int64) {
		r := wire.SessionReport{Kind: wire.SessionProgress, ID: run, Serial: reason, Run: run, RemoteAddr: reason, Reason: run,
			At: time.Date(2026, 11, 25, 21, 49, 4, 123456789, time.FixedZone("", -12*3600)), BytesIn: n, BytesOut: n}
		encoded, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		if most := encodedAtMost(&r); len(encoded) > most {
			t.Errorf("%d bytes, and at most %d were said", len(encoded), most)
		}
	})
}
