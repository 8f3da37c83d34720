// SPDX-License-Identifier: Apache-2.0

package provisioner

import (
	"net/netip"

	corev1 "k8s.io/api/core/v1"
)

// Reasons of an AllocationError; they are the reasons of the condition
// causeway.dev/Allocated and of the events, too.
const (
	// ReasonInvalidRequest: the Service contradicts itself, or an annotation
	// cannot be read. Only an edit of the Service helps.
	ReasonInvalidRequest = "InvalidRequest"
	// ReasonUnsupported: the provisioner cannot do what the Service asks for.
	ReasonUnsupported = "Unsupported"
	// ReasonNoPool: no pool admits the Service.
	ReasonNoPool = "NoPool"
	// ReasonPoolExhausted: the pools that admit it have no free address.
	ReasonPoolExhausted = "PoolExhausted"
	// ReasonOutsidePools: the address asked for is in no pool.
	ReasonOutsidePools = "AddressOutsidePools"
	// ReasonAddressNotAllowed: the pool of the address does not admit the
	// Service, or the address is reserved or overlaps something.
	ReasonAddressNotAllowed = "AddressNotAllowed"
	// ReasonAddressInUse: another Service holds the address asked for.
	ReasonAddressInUse = "AddressInUse"
	// ReasonSharingNotAllowed: it could be shared, but the keys or ports do not
	// allow it.
	ReasonSharingNotAllowed = "SharingNotAllowed"
	// ReasonLimit: the namespace or the Service has as many addresses of the pool
	// as it may.
	ReasonLimit = "LimitReached"
)

// AllocationError is why a request is not met and what to do. A retry helps only after
// something else has changed.
type AllocationError struct {
	// Reason is one of the constants above.
	Reason string
	// Message names the cause and what to do, as a sentence for users.
	Message string
	// Families are those for which no pool has an address.
	Families []corev1.IPFamily
	// Full and Addresses are what could help: an address of a full pool, or one of these
	// addresses, becoming free. If both are empty, only an edit helps, of the Service or
	// of a pool.
	Full      []FullPool
	Addresses []netip.Addr
}

// FullPool is a pool that would give a Service an address of a family if it had
// a free one.
type FullPool struct {
	Pool   string
	Family corev1.IPFamily
}

// Error returns the message.
func (r *AllocationError) Error() string { return r.Message }
