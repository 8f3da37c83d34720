// SPDX-License-Identifier: Apache-2.0

package syncer

import "time"

const (
	minBackoff = 50 * time.Millisecond
	maxBackoff = 30 * time.Second
	// rejectedPause is how long Services that the kernel rejects rest at first.
	rejectedPause = time.Second
)

// retries decides when to try again what failed or was rejected.
type retries struct {
	longest time.Duration
	// backoff is the pause after the last failure, 0 after a success.
	backoff time.Duration
	// rejected receives when Services that the kernel rejects are due; nil if there
	// are none. pause is how long they rest.
	rejected <-chan time.Time
	pause    time.Duration
}

// failed takes a failure into account.
func (r *retries) failed() { r.backoff = min(max(2*r.backoff, minBackoff), r.longest) }

// succeeded takes a success into account, in which the kernel rejected some
// Services or none.
func (r *retries) succeeded(rejected bool) {
	r.backoff = 0
	switch {
	case !rejected:
		r.rejected, r.pause = nil, rejectedPause
	case r.rejected == nil:
		r.rejected = time.After(r.pause)
	}
}

// rejectedDue is called when rejected has received.
func (r *retries) rejectedDue() { r.rejected, r.pause = nil, min(2*r.pause, r.longest) }

// due returns a channel that receives when a failed sync is to be tried again, nil
// if none failed.
func (r *retries) due() <-chan time.Time {
	if r.backoff == 0 {
		return nil
	}
	return time.After(r.backoff)
}

// resting reports whether news must wait, too.
func (r *retries) resting() bool { return r.backoff > minBackoff }
