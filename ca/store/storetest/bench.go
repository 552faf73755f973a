package storetest

import (
	"context"
	"fmt"
	"sort"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/ca/store"
)

// BenchmarkRecord measures durable records of distinct single-use tokens by 1, 8
// and 64 callers at once. ns/op is the time between two acknowledgements, p50 and
// p99 are the wait of one caller, and cpu is the time of this process.
func BenchmarkRecord(b *testing.B, create func(t testing.TB) Open) {
	for _, callers := range []int{1, 8, 64} {
		b.Run(fmt.Sprint(callers), func(b *testing.B) {
			s := open(b, create(b))
			all := make([]*store.Certificate, b.N)
			for i := range all {
				all[i] = Certificate(fmt.Sprint(i / 4))
				all[i].RepositoryID = fmt.Sprint(i % 50)
				all[i].Identity = fmt.Sprintf("spiffe://ci.example.com/github/1/%d", i%8)
				all[i].Repository = fmt.Sprintf("octo/app%d", i%8)
				all[i].TBS = all[i].TBS[:600]
				all[i].Claims = fmt.Appendf(nil, `{"run_id":%q,"pad":"%01000d"}`, all[i].RunID, i)
				all[i].IssuedAt = all[i].IssuedAt.Add(time.Duration(i) * time.Microsecond)
			}
			took := make([]time.Duration, b.N)
			var next atomic.Int64
			var wg sync.WaitGroup
			b.ReportAllocs()
			b.ResetTimer()
			before := cpu()
			for range callers {
				wg.Go(func() {
					for i := next.Add(1) - 1; i < int64(b.N); i = next.Add(1) - 1 {
						start := time.Now()
						if _, err := s.Record(context.Background(), all[i], store.Event{}); err != nil {
							b.Error(err)
							return
						}
						took[i] = time.Since(start)
					}
				})
			}
			wg.Wait()
			b.StopTimer()
			sort.Slice(took, func(i, j int) bool { return took[i] < took[j] })
			b.ReportMetric(float64(cpu()-before)/float64(b.N)/1e3, "cpu-us/op")
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "records/s")
			b.ReportMetric(float64(took[b.N/2].Microseconds()), "p50-us")
			b.ReportMetric(float64(took[b.N*99/100].Microseconds()), "p99-us")
		})
	}
}

// cpu returns the processor time that this process has used.
func cpu() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
