// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func init() { register(&NodePortPool{}, &NodePortPoolList{}) }

// NodePortPool is a set of ports from which Services of certain namespaces or
// with certain labels get their NodePorts and health check NodePorts.
//
// As soon as there is a NodePortPool, Services that no pool selects get their
// NodePorts from the cluster's range (the controller's flag
// --service-node-port-range) without the ports of any pool.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,shortName=nppool,categories=causeway
// +kubebuilder:printcolumn:name="Priority",type=integer,JSONPath=`.spec.priority`
// +kubebuilder:printcolumn:name="Used",type=integer,JSONPath=`.status.ports.used`
// +kubebuilder:printcolumn:name="Free",type=integer,JSONPath=`.status.ports.free`
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Reason",type=string,priority=1,JSONPath=`.status.conditions[?(@.type=="Ready")].reason`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:validation:XValidation:rule="self.metadata.name.size() <= 63",message="the name is used as a label value and a metric label: use at most 63 characters"
type NodePortPool struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// Spec is what the administrator asks for.
	// +required
	Spec NodePortPoolSpec `json:"spec"`

	// Status is what the controller found. It is written by the controller only.
	// +optional
	Status NodePortPoolStatus `json:"status,omitzero"`
}

// NodePortPoolSpec says which ports there are and who gets them. Every field
// can be changed at any time; a change never takes a port from a Service.
// Services left outside are reported in their condition causeway.dev/InPool.
type NodePortPoolSpec struct {
	// Ranges are ranges of ports ("30000-30499") and single ports ("30080").
	// They must not overlap each other or another NodePortPool: the admission
	// webhook refuses that and says which. Ports outside the API server's
	// --service-node-port-range, which it refuses, are given to nobody and
	// reported in the condition InNodePortRange.
	//
	// +required
	// +listType=set
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=64
	Ranges []PortRange `json:"ranges"`

	// ReservedPorts are ports of the pool that no Service gets, not even one
	// that asks for it, because something outside Kubernetes uses them. A
	// Service that has one keeps it.
	//
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=64
	ReservedPorts []PortRange `json:"reservedPorts,omitempty"`

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
	// port is used. Equal ones: a pool with selectors goes before one without,
	// then by name.
	//
	// +optional
	// +kubebuilder:default=0
	// +kubebuilder:validation:Minimum=-1000
	// +kubebuilder:validation:Maximum=1000
	Priority int32 `json:"priority,omitempty"`

	// StaticBand is how many of the lowest ports are kept for Services that ask
	// for a certain port: others get them only when nothing else is free.
	// Absent: a thirty-second of the ports, at least 16 and at most 128, and none
	// of a pool of 16 or fewer (KEP-3668).
	//
	// +optional
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=65535
	StaticBand *int32 `json:"staticBand,omitempty"`

	// Quarantine is how long a released port rests before another Service is
	// given it. The Service that had it (same namespace and name) gets it back at
	// once, and so does one that asks for it by number. "0s" turns it off.
	//
	// +optional
	// +kubebuilder:default="30s"
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:MaxLength=32
	// +kubebuilder:validation:Pattern=`^([0-9]+(\.[0-9]+)?(ms|s|m|h))+$`
	// +kubebuilder:validation:XValidation:rule="duration(self) <= duration('24h')",message="must be at most 24h"
	Quarantine *metav1.Duration `json:"quarantine,omitempty"`

	// MaxPerNamespace is how many ports a namespace can have from this pool.
	// Absent: no limit. Lowering it takes nothing away.
	//
	// +optional
	// +kubebuilder:validation:Minimum=1
	MaxPerNamespace *int32 `json:"maxPerNamespace,omitempty"`
}

// PortRange is "first-last", both included, or one port; from 1 to 65535.
//
// +kubebuilder:validation:MinLength=1
// +kubebuilder:validation:MaxLength=11
// +kubebuilder:validation:XValidation:rule="self.matches('^[1-9][0-9]{0,4}(-[1-9][0-9]{0,4})?$') && self.split('-').all(p, int(p) <= 65535)",message="must be a range of ports such as 30000-30499 or a port such as 30080, from 1 to 65535, without spaces"
// +kubebuilder:validation:XValidation:rule="!self.matches('^[1-9][0-9]{0,4}-[1-9][0-9]{0,4}$') || int(self.split('-')[0]) <= int(self.split('-')[1])",message="ends before it begins; write the lower port first"
type PortRange string

// NodePortPoolStatus is what the controller found about a pool.
type NodePortPoolStatus struct {
	// ObservedGeneration is the metadata.generation that the rest describes.
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`

	// Ports counts the pool's ports.
	// +optional
	Ports *AllocationUsage `json:"ports,omitempty"`

	// Conditions are Ready (ports can be given out), Disjoint (no port of the pool
	// belongs to another pool), InNodePortRange (the API server accepts the whole
	// pool) and InPolicy (Services have the ports that the selectors and ranges
	// give them). All are True while there is nothing to do.
	// +optional
	// +listType=map
	// +listMapKey=type
	// +kubebuilder:validation:MaxItems=16
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// NodePortPoolList is a list of NodePortPools.
//
// +kubebuilder:object:root=true
type NodePortPoolList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []NodePortPool `json:"items"`
}
