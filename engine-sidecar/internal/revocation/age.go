package revocation

import "time"

// arrival records when a feed arrived, and its age at that time.
type arrival struct {
	thisUpdate time.Time
	at         time.Time     // with a monotonic reading
	age        time.Duration // by the wall clock on arrival, at least 0
	ahead      time.Duration // how far thisUpdate lay in the future, at least 0
}

func newArrival(thisUpdate, now time.Time) arrival {
	age := now.Round(0).Sub(thisUpdate)
	return arrival{thisUpdate: thisUpdate, at: now, age: max(age, 0), ahead: max(-age, 0)}
}

// ageAt returns the feed's age at wall clock time wall, when elapsed has
// passed since arrival on the monotonic clock. It takes the larger of both
// results. A wall clock that was set back, or a monotonic clock that stopped
// while the machine was suspended, does not make a feed younger.
func (a arrival) ageAt(wall time.Time, elapsed time.Duration) time.Duration {
	return max(wall.Sub(a.thisUpdate), a.age+elapsed)
}
