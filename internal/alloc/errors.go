// SPDX-License-Identifier: Apache-2.0

package alloc

import (
	"errors"
	"fmt"
	"time"
)

// Sentinels that callers decide on, by errors.Is.
var (
	// ErrFull: no value of the pool can be given out now. The error is a
	// *FullError.
	ErrFull = errors.New("no free value")
	// ErrTaken: another owner has the value. The error is a *TakenError.
	ErrTaken = errors.New("value is taken")
	// ErrQuota: the namespace has as many values of the pool as it may. The
	// error is a *QuotaError.
	ErrQuota = errors.New("namespace is at its limit")
	// ErrNoPool: there is no pool of that name.
	ErrNoPool = errors.New("no such pool")
)

// FullError says how a pool came to have nothing to give.
type FullError struct {
	Pool  string
	Stats Stats
	// Next is when the first quarantined or pending value becomes free; zero when
	// there is none.
	Next time.Time
}

// Error names the pool and what its values are doing.
func (e *FullError) Error() string {
	s := fmt.Sprintf("pool %s has no free value: of %d, %d are held, %d on their way, %d resting after release, %d excluded",
		e.Pool, e.Stats.Capacity, e.Stats.Held, e.Stats.Pending, e.Stats.Quarantined, e.Stats.Excluded)
	if !e.Next.IsZero() {
		s += ", the next is free at " + e.Next.UTC().Format(time.RFC3339)
	}
	return s
}

// Is makes errors.Is(err, ErrFull) true.
func (e *FullError) Is(target error) bool { return target == ErrFull }

// TakenError says who has a value.
type TakenError struct {
	Value string
	Owner Owner
	State State
}

// Error names the owner.
func (e *TakenError) Error() string {
	return fmt.Sprintf("%s is %s by Service %s", e.Value, e.State, e.Owner)
}

// Is makes errors.Is(err, ErrTaken) true.
func (e *TakenError) Is(target error) bool { return target == ErrTaken }

// QuotaError says which limit was met.
type QuotaError struct {
	Pool, Namespace string
	Limit           int
}

// Error names the namespace, the pool and the limit.
func (e *QuotaError) Error() string {
	return fmt.Sprintf("namespace %s holds %d values of pool %s, as many as it may", e.Namespace, e.Limit, e.Pool)
}

// Is makes errors.Is(err, ErrQuota) true.
func (e *QuotaError) Is(target error) bool { return target == ErrQuota }
