package revocation

import "time"

// arrival is when a feed came, and how old it then was.
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

// ageAt is the feed's age when the wall clock says wall and elapsed has passed
// since its arrival by the monotonic clock. It is the larger of what the two
// say: a wall clock that was set back does not make a feed younger, and a
// monotonic clock that stood still while the machine was suspended neither.
func (a arrival) ageAt(wall time.Time, elapsed time.Duration) time.Duration {
	return max(wall.Sub(a.thisUpdate), a.age+elapsed)
}
