package sidecar

import (
	"testing"
	"testing/synctest"
	"time"
)

type silent struct{}

func (silent) Bytes() (in, out int64) { return 1, 1 }

// TestSilentSessionsStayLive: a live session that moves no bytes is reported
// before the issuer counts it as gone, but not at every check.
func TestSilentSessionsStayLive(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newReporter(nil)
		s := &session{of: r, bytes: silent{}, reported: true, toldAt: time.Now(), toldIn: 1, toldOut: 1}
		r.live[s] = struct{}{}
		time.Sleep(reportProgress)
		r.progress()
		if n := r.waiting(); n != 0 {
			t.Errorf("%d told after %v", n, reportProgress)
		}
		time.Sleep(reportProgress)
		r.progress()
		if n := r.waiting(); n != 1 {
			t.Errorf("%d told after %v of silence", n, 2*reportProgress)
		}
	})
}
