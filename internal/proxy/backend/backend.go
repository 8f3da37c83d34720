// SPDX-License-Identifier: Apache-2.0

package backend

import (
	"context"
	"fmt"
	"slices"

	"k8s.io/apimachinery/pkg/types"

	"github.com/causeway-lb/causeway/internal/proxy/model"
)

// Backend makes one kernel mechanism match a Desired. Methods are called by
// one goroutine at a time.
type Backend interface {
	// Name is the mode's name, for example "nftables".
	Name() string
	// Sync makes the kernel match want. It is idempotent and returns only after
	// the kernel has accepted the change.
	//
	// changed names the Services that differ from those of the last successful
	// Sync, in any order, perhaps twice; the cost follows their number. nil means that anything may differ,
	// in the kernel too: everything is read back, compared and repaired.
	// After an error the next Sync does that by itself, whatever changed says.
	// Neither argument is kept or modified, but the Services that want points
	// to may be kept, as they never change.
	Sync(ctx context.Context, want model.Desired, changed []types.NamespacedName) (Report, error)
	// Cleanup removes every object that the backend owns; absent is not an error.
	Cleanup(ctx context.Context) error
	// Close releases what the backend holds in this process and leaves the
	// kernel as it is.
	Close() error
}

// Watcher is a Backend that hears of changes by others to what it owns.
type Watcher interface {
	// Watch calls notify once as soon as it listens, and then whenever somebody
	// else may have changed the backend's objects, until ctx ends. It may notify
	// in vain, never miss.
	Watch(ctx context.Context, notify func()) error
}

// Repairer is a Watcher that hears in detail what others changed.
type Repairer interface {
	Watcher
	// Pinpointed says whether the backend knows where all is that Watch has
	// notified of since the last Sync. The next Sync then repairs it even if
	// changed is not nil, which costs less than to read everything back.
	Pinpointed() bool
}

// Report says what one Sync did.
type Report struct {
	// Full says that the kernel was read back and compared.
	Full bool
	// Added and Deleted count elements (or rules, virtual servers ...).
	Added, Deleted int
	// Drift counts the objects that were not as the last successful Sync had
	// left them: somebody else's doing, repaired by this Sync.
	Drift int
	// Objects is the number of objects that the backend now has in the kernel.
	Objects int
	// Problems are the parts of Services that the mode cannot do, or could not:
	// of all Services after a full Sync, else of the changed ones.
	Problems []model.Problem
	// Refused are all Services that the kernel does not have as they should be,
	// because it refuses them, and only them: it keeps what it had. They are
	// tried again when changed names them, and by every full Sync.
	Refused []types.NamespacedName
}

// Add sums up reports, for backends that work family by family.
func (r Report) Add(o Report) Report {
	return Report{
		Full:  r.Full || o.Full,
		Added: r.Added + o.Added, Deleted: r.Deleted + o.Deleted,
		Drift: r.Drift + o.Drift, Objects: r.Objects + o.Objects,
		Problems: slices.Concat(r.Problems, o.Problems),
		Refused:  slices.Concat(r.Refused, o.Refused),
	}
}

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
