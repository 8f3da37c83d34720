// SPDX-License-Identifier: Apache-2.0

package testkit

import (
	"errors"
	"fmt"
	"testing"
	"time"
)

// Eventually waits until check returns nil, and returns the time that took. It
// calls check again after 1 ms, then after an eighth of the time waited, at most
// 50 ms. If limit passes, it ends the test with what was awaited, the time
// waited and the last error. It belongs on the test's own goroutine; on another
// one it also gives up when the test ends. Works in a synctest bubble and in
// Cleanup.
func Eventually(t testing.TB, limit time.Duration, what string, check func() error) time.Duration {
	t.Helper()
	waited, err := poll(t, limit, check)
	if err != nil {
		t.Fatalf("%s: not after %s: %v", what, waited.Round(time.Millisecond), err)
	}
	return waited
}

// EventuallyTrue is Eventually for a condition without a reason.
func EventuallyTrue(t testing.TB, limit time.Duration, what string, ok func() bool) time.Duration {
	t.Helper()
	waited, err := poll(t, limit, func() error {
		if !ok() {
			return errFalse
		}
		return nil
	})
	if err != nil {
		t.Fatalf("%s: not after %s", what, waited.Round(time.Millisecond))
	}
	return waited
}

var errFalse = errors.New("the condition is false")

// Consistently ends the test unless check returns nil for the whole of the
// duration. It calls check every 5 ms, and once more at the end.
func Consistently(t testing.TB, duration time.Duration, what string, check func() error) {
	t.Helper()
	for start := time.Now(); ; time.Sleep(5 * time.Millisecond) {
		waited := time.Since(start)
		if err := check(); err != nil {
			t.Fatalf("%s: no longer after %s: %v", what, waited.Round(time.Millisecond), err)
		}
		if waited >= duration {
			return
		}
	}
}

// poll calls check until it returns nil, and returns the time waited and check's
// last error.
func poll(t testing.TB, limit time.Duration, check func() error) (time.Duration, error) {
	var ended <-chan struct{}
	if t.Context().Err() == nil { // it has ended in Cleanup
		ended = t.Context().Done()
	}
	for start := time.Now(); ; {
		err := check()
		waited := time.Since(start)
		if err == nil {
			return waited, nil
		}
		if waited >= limit {
			return waited, err
		}
		pause := min(max(waited/8, time.Millisecond), 50*time.Millisecond, limit-waited)
		select {
		case <-ended:
			return waited, fmt.Errorf("the test has ended; before that: %w", err)
		case <-time.After(pause):
		}
	}
}
