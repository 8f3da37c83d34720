// SPDX-License-Identifier: Apache-2.0

package queue

import (
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/types"
)

// A WriteThrottle holds up by size, each object by itself, and no longer than the
// limit.
func TestWriteThrottle(t *testing.T) {
	throttle := WriteThrottle{Unit: 10 * time.Millisecond, Limit: 300 * time.Millisecond}
	now := time.Unix(1_000, 0)
	small, large, other := types.NamespacedName{Name: "small"}, types.NamespacedName{Name: "large"}, types.NamespacedName{Name: "other"}
	wait := func(name types.NamespacedName, at time.Time, want time.Duration) {
		t.Helper()
		if got := throttle.Wait(name, at); got != want {
			t.Errorf("%s waits %v, want %v", name.Name, got, want)
		}
	}
	wait(small, now, 0) // nothing has been written yet
	throttle.Wrote(small, 5, now)
	throttle.Wrote(large, 5000, now)
	wait(small, now.Add(20*time.Millisecond), 30*time.Millisecond)
	wait(large, now, 300*time.Millisecond)
	wait(other, now, 0)
	wait(small, now.Add(50*time.Millisecond), 0)
	if len(throttle.next) != 1 {
		t.Errorf("%d objects are remembered; what is over is forgotten", len(throttle.next))
	}
	throttle.Forget(large)
	if len(throttle.next) != 0 {
		t.Error("an object that is gone is remembered")
	}
}
