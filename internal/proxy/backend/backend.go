// SPDX-License-Identifier: Apache-2.0

package backend

import (
	"context"
	"fmt"
	"slices"

	"k8s.io/apimachinery/pkg/types"

	"github.com/causeway-lb/causeway/internal/proxy/model"
)

// Backend makes one kernel mechanism match a Desired. One goroutine at a time
// calls its methods.
type Backend interface {
	// Name is the mode's name, for example "nftables".
	Name() string
	// Resync reads the kernel, compares it with want and repairs what differs.
	// It returns only after the kernel has accepted the change. want is neither
	// kept nor modified, but the Services that it points to may be kept.
	Resync(ctx context.Context, want model.Desired) (Report, error)
	// Apply makes the kernel follow one step; the cost follows the number of
	// Services in it. The kernel must be as a successful Resync or Apply left it:
	// before the first Resync, after Cleanup, and after an error other than a
	// RejectedError, call Resync.
	Apply(ctx context.Context, step Delta) (Report, error)
	// Cleanup removes every object that the backend owns; absent is not an error.
	Cleanup(ctx context.Context) error
	// Close releases what the backend holds in this process and leaves the
	// kernel as it is.
	Close() error
}

// Delta is a step from what the kernel has to what it is to have.
type Delta struct {
	// Node is that of the last Resync: another node takes a Resync.
	Node model.Node
	// Services are the Services that change, each once: Old is what the kernel
	// has, New what it is to have.
	Services []model.Change
}

// Watcher is a Backend that reports changes by other programs to its objects.
type Watcher interface {
	// Watch calls notify once as soon as it listens, and then whenever another
	// program may have changed the backend's objects, until ctx ends. It may call
	// it without a reason, and never misses a change.
	Watch(ctx context.Context, notify func()) error
}

// Repairer is a Watcher that knows which objects other programs changed.
type Repairer interface {
	Watcher
	// Pinpointed reports whether Repair would restore everything that Watch has
	// reported.
	Pinpointed() bool
	// Repair restores the objects that Watch has reported to what had says, which
	// is what the kernel had before. It reads only those, unlike Resync.
	Repair(ctx context.Context, had model.Desired) (Report, error)
}

// Report is the outcome of one Apply, Resync or Repair.
type Report struct {
	// Added and Deleted count elements (or rules, virtual servers ...).
	Added, Deleted int
	// Drift counts the objects that a Resync or Repair found not to be as they
	// should: if they had been so before, another program has changed them.
	Drift int
	// Objects is the number of objects that the backend now has in the kernel.
	Objects int
	// Problems are the parts of Services that the mode does not support: of all
	// Services after a Resync, of the changed ones after an Apply.
	Problems []model.Problem
}

// Add sums up reports, for backends that work family by family.
func (r Report) Add(o Report) Report {
	return Report{
		Added: r.Added + o.Added, Deleted: r.Deleted + o.Deleted,
		Drift: r.Drift + o.Drift, Objects: r.Objects + o.Objects,
		Problems: slices.Concat(r.Problems, o.Problems),
	}
}

// RejectedError reports that a transaction was rejected, by the kernel or because
// the kernel may not be as it was left, and that the kernel keeps what it had.
type RejectedError struct {
	// Services are those whose objects the kernel may have rejected; empty if the
	// error is about something else. The others may be tried without them.
	Services []types.NamespacedName
	// Err is the kernel's answer.
	Err error
}

func (e *RejectedError) Error() string { return e.Err.Error() }

func (e *RejectedError) Unwrap() error { return e.Err }

// UnsupportedError says that the kernel lacks what a backend needs.
type UnsupportedError struct {
	// Feature is what is missing, for example "nf_tables NAT".
	Feature string
	// MinKernel is the first Linux version that has it, if that is the cause.
	MinKernel string
	// Err is the kernel's answer.
	Err error
}

func (e *UnsupportedError) Error() string {
	s := fmt.Sprintf("kernel lacks %s", e.Feature)
	if e.MinKernel != "" {
		s += fmt.Sprintf(" (needs Linux %s or its module)", e.MinKernel)
	}
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

func (e *UnsupportedError) Unwrap() error { return e.Err }
