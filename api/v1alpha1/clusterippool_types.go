// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func init() { register(&ClusterIPPool{}, &ClusterIPPoolList{}) }

// ClusterIPPool is a set of addresses from which Services of certain namespaces
// or with certain labels get their ClusterIPs.
//
// As soon as there is a ClusterIPPool, Services that no pool selects get their
// ClusterIPs from the cluster's ServiceCIDRs without the addresses of any pool.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,shortName=cippool,categories=causeway
// +kubebuilder:printcolumn:name="Priority",type=integer,JSONPath=`.spec.priority`
// +kubebuilder:printcolumn:name="IPv4-Used",type=integer,JSONPath=`.status.ipv4.used`
// +kubebuilder:printcolumn:name="IPv4-Free",type=integer,JSONPath=`.status.ipv4.free`
// +kubebuilder:printcolumn:name="IPv6-Used",type=integer,JSONPath=`.status.ipv6.used`
// +kubebuilder:printcolumn:name="IPv6-Free",type=integer,JSONPath=`.status.ipv6.free`
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Reason",type=string,priority=1,JSONPath=`.status.conditions[?(@.type=="Ready")].reason`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:validation:XValidation:rule="self.metadata.name.size() <= 63",message="the name is used as a label value and a metric label: use at most 63 characters"
type ClusterIPPool struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// Spec is what the administrator asks for.
	// +required
	Spec ClusterIPPoolSpec `json:"spec"`

	// Status is what the controller found. It is written by the controller only.
	// +optional
	Status ClusterIPPoolStatus `json:"status,omitzero"`
}

// ClusterIPPoolSpec says which addresses there are and who gets them. Every
// field can be changed at any time; a change never takes an address from a
// Service (ClusterIPs are immutable). Services left outside are reported in
// their condition causeway.dev/InPool.
type ClusterIPPoolSpec struct {
	// Ranges are CIDRs ("10.96.64.0/20", "fd00:10:96::1:0/112") and inclusive
	// ranges ("10.96.8.10-10.96.8.99"), of one or both families. They must not
	// overlap each other or another ClusterIPPool: the admission webhook refuses
	// that and says which.
	//
	// Addresses have to lie in one of the cluster's ServiceCIDRs, or the API
	// server refuses them. For a CIDR that lies in none the controller creates a
	// ServiceCIDR, and removes it with the pool or the entry; for an inclusive
	// range it does not, and reports it in the condition InServiceCIDR.
	//
	// The first address of a CIDR, and the last of an IPv4 CIDR, are not given
	// out, but for /31, /32, /127 and /128.
	//
	// +required
	// +listType=set
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=64
	Ranges []AddressRange `json:"ranges"`

	// NamespaceSelector limits the pool to Services in namespaces with these
	// labels. Absent or empty admits all.
	//
	// +optional
	NamespaceSelector *metav1.LabelSelector `json:"namespaceSelector,omitempty"`

	// ServiceSelector limits the pool to Services with these labels. Absent or
	// empty admits all. A Service has to pass both selectors.
	//
	// +optional
	ServiceSelector *metav1.LabelSelector `json:"serviceSelector,omitempty"`

	// Priority orders the pools that select a Service: the highest with a free
	// address of the family is used. Equal ones: a pool with selectors goes
	// before one without, then by name.
	//
	// +optional
	// +kubebuilder:default=0
	// +kubebuilder:validation:Minimum=-1000
	// +kubebuilder:validation:Maximum=1000
	Priority int32 `json:"priority,omitempty"`

	// StaticBand is how many of the lowest addresses of each family are kept
	// for Services that ask for a certain address: others get them only when
	// nothing else is free. Absent: a sixteenth of the addresses, at least 16
	// and at most 256, and none of a pool of 16 or fewer (KEP-3070).
	//
	// +optional
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=65536
	StaticBand *int32 `json:"staticBand,omitempty"`

	// Quarantine is how long a released address rests before another Service is
	// given it, so that clients with an old DNS answer do not end up at a
	// stranger. The Service that had it (same namespace and name) gets it back
	// at once, and so does one that asks for it by address. "0s" turns it off.
	//
	// +optional
	// +kubebuilder:default="30s"
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:MaxLength=32
	// +kubebuilder:validation:Pattern=`^([0-9]+(\.[0-9]+)?(ms|s|m|h))+$`
	// +kubebuilder:validation:XValidation:rule="duration(self) <= duration('24h')",message="must be at most 24h"
	Quarantine *metav1.Duration `json:"quarantine,omitempty"`

	// MaxPerNamespace is how many addresses of each family a namespace can have
	// from this pool. Absent: no limit. Lowering it takes nothing away.
	//
	// +optional
	// +kubebuilder:validation:Minimum=1
	MaxPerNamespace *int32 `json:"maxPerNamespace,omitempty"`
}

// ClusterIPPoolStatus is what the controller found about a pool.
type ClusterIPPoolStatus struct {
	// ObservedGeneration is the metadata.generation that the rest describes.
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`

	// IPv4 counts the pool's IPv4 addresses; absent when it has none.
	// +optional
	IPv4 *AllocationUsage `json:"ipv4,omitempty"`

	// IPv6 counts the pool's IPv6 addresses; absent when it has none.
	// +optional
	IPv6 *AllocationUsage `json:"ipv6,omitempty"`

	// Conditions are Ready (addresses can be given out), Disjoint (no address of
	// the pool belongs to another pool or to a node), InServiceCIDR (the API
	// server accepts the whole pool) and InPolicy (Services have the addresses
	// that the selectors and ranges give them). All are True while there is
	// nothing to do.
	// +optional
	// +listType=map
	// +listMapKey=type
	// +kubebuilder:validation:MaxItems=16
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// AllocationUsage counts the addresses of one family, or the ports, of a pool.
// Every one is in exactly one of used, quarantined, excluded and free. Counts
// stop at 2^48.
type AllocationUsage struct {
	// Capacity is the number of values in the pool.
	Capacity int64 `json:"capacity"`

	// Used is how many a Service holds or is just being given.
	Used int64 `json:"used"`

	// Quarantined is how many rest after release.
	Quarantined int64 `json:"quarantined"`

	// Excluded is how many nobody has and nobody is given without asking.
	Excluded int64 `json:"excluded"`

	// Free is how many can be given out now.
	Free int64 `json:"free"`
}

// Condition types of a ClusterIPPool or NodePortPool, besides PoolReady and
// PoolDisjoint.
const (
	// PoolInServiceCIDR is False when the API server rejects addresses of the
	// pool because they are in none of its ServiceCIDRs.
	PoolInServiceCIDR = "InServiceCIDR"

	// PoolInNodePortRange is False when the API server rejects ports of the
	// pool because they are outside its --service-node-port-range.
	PoolInNodePortRange = "InNodePortRange"

	// PoolInPolicy is False when Services that the pool does not select have its
	// values, or Services that it selects have values from elsewhere.
	PoolInPolicy = "InPolicy"
)

// ClusterIPPoolList is a list of ClusterIPPools.
//
// +kubebuilder:object:root=true
type ClusterIPPoolList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []ClusterIPPool `json:"items"`
}
