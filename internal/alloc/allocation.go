// SPDX-License-Identifier: Apache-2.0

package alloc

import (
	"time"

	corev1 "k8s.io/api/core/v1"
)

// Owner is the Service that has a value.
type Owner struct {
	Namespace string
	// Name is empty for a Service that the API server has not named yet
	// (generateName).
	Name string
	// UID distinguishes a Service from an earlier one of the same name. Before the
	// API server has given one, it is that of the request; empty where no UID counts.
	UID string
}

// OwnerOf returns a stored Service as an owner.
func OwnerOf(svc *corev1.Service) Owner {
	return Owner{Namespace: svc.Namespace, Name: svc.Name, UID: string(svc.UID)}
}

// String returns namespace/name.
func (o Owner) String() string {
	if o.Name == "" {
		return o.Namespace + "/(not yet named)"
	}
	return o.Namespace + "/" + o.Name
}

// Is reports whether two owners are one Service by name, whatever the UID, or one
// request.
func (o Owner) Is(other Owner) bool {
	if o.Name != "" || other.Name != "" {
		return o.Namespace == other.Namespace && o.Name == other.Name
	}
	return o.UID == other.UID
}

// State is what an allocation stands for. A value with several allocations counts
// as the highest.
type State uint8

// The states of a value, see the package's drawing.
const (
	Free       State = iota
	Unverified       // see MarkUnverified
	Suspect
	Quarantined
	Pending
	Held
	states
)

// String returns the state as messages name it: "is held by".
func (s State) String() string {
	return [...]string{"free", "unverified", "suspect", "quarantined", "on its way", "held"}[s]
}

// Allocation says that an owner has a value.
type Allocation[V comparable] struct {
	Value V
	Owner Owner
	State State
	// Since is when the allocation got its state.
	Since time.Time
	// Until is when the allocation ends; zero when Held.
	Until time.Time

	novel      bool          // Pending: the owner was not remembered to have had the value before
	suspectFor time.Duration // how long the value is Suspect after Until
	verifiable time.Time     // Suspect: MarkVerified of this time or later ends it
}

// Stats counts the values of a pool. Capacity is the sum of the others.
type Stats struct {
	// Capacity is how many values the pool can choose from, at most 2^48.
	Capacity    uint64
	Held        uint64
	Pending     uint64
	Quarantined uint64
	// Excluded is how many have no owner and are granted only on request.
	Excluded uint64
	// Free includes those that are Unverified or Suspect.
	Free uint64
}
