// SPDX-License-Identifier: Apache-2.0

package testkit

import (
	"errors"
	"fmt"
	"runtime"
	"testing"
	"testing/synctest"
	"time"
)

// recorder is a test that keeps what it failed with.
type recorder struct {
	testing.TB
	failed string
}

func (r *recorder) Helper() {}

func (r *recorder) Fatalf(format string, args ...any) {
	r.failed = fmt.Sprintf(format, args...)
	runtime.Goexit()
}

// failure returns what f fails with, or "".
func failure(t *testing.T, f func(testing.TB)) string {
	r, ended := &recorder{TB: t}, make(chan struct{})
	go func() {
		defer close(ended)
		f(r)
	}()
	<-ended
	return r.failed
}

func TestEventuallyWaitsForTheCondition(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start, calls := time.Now(), 0
		waited := Eventually(t, time.Minute, "ready", func() error {
			calls++
			if time.Since(start) < 10*time.Second {
				return errors.New("not yet")
			}
			return nil
		})
		if waited < 10*time.Second || waited > 10*time.Second+50*time.Millisecond {
			t.Errorf("it returned after %s, want 10 s and one pause more", waited)
		}
		if calls > 400 {
			t.Errorf("it looked %d times in 10 s", calls)
		}
		if waited := EventuallyTrue(t, time.Minute, "ready", func() bool { return true }); waited != 0 {
			t.Errorf("it waited %s for what was so already", waited)
		}
	})
}

func TestFailuresNameTheReasonAndTheTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, tc := range []struct {
			name, want string
			wait       func(t testing.TB)
		}{
			{"Eventually", "ready: not after 3s: no Pods", func(t testing.TB) {
				Eventually(t, 3*time.Second, "ready", func() error { return errors.New("no Pods") })
			}},
			{"EventuallyTrue", "ready: not after 3s", func(t testing.TB) {
				EventuallyTrue(t, 3*time.Second, "ready", func() bool { return false })
			}},
			{"Consistently", "calm: no longer after 2s: storm", func(t testing.TB) {
				start := time.Now()
				Consistently(t, 3*time.Second, "calm", func() error {
					if time.Since(start) >= 2*time.Second {
						return errors.New("storm")
					}
					return nil
				})
			}},
			{"Consistently, and it is", "", func(t testing.TB) {
				Consistently(t, 3*time.Second, "calm", func() error { return nil })
			}},
		} {
			if got := failure(t, tc.wait); got != tc.want {
				t.Errorf("%s fails with %q, want %q", tc.name, got, tc.want)
			}
		}
	})
}

func TestEventuallyInCleanup(t *testing.T) {
	t.Run("test", func(t *testing.T) {
		t.Cleanup(func() {
			calls := 0
			EventuallyTrue(t, time.Minute, "third call", func() bool { calls++; return calls == 3 })
		})
	})
}
