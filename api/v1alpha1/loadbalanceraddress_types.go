// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	"net/netip"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func init() { register(&LoadBalancerAddress{}, &LoadBalancerAddressList{}) }

// LoadBalancerAddress is the record of one LoadBalancer address in use. Its
// name is made from the address, so that creating it is the lock: no two
// controllers can give out the same one.
//
// The controller keeps spec, the announcing node's agent keeps status. An
// administrator creates one with spec.reserved to keep an address away from
// automatic assignment, or for one Service.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,path=loadbalanceraddresses,singular=loadbalanceraddress,shortName=lbaddr,categories=causeway
// +kubebuilder:printcolumn:name="Address",type=string,JSONPath=`.spec.address`
// +kubebuilder:printcolumn:name="Namespace",type=string,JSONPath=`.spec.services[0].namespace`
// +kubebuilder:printcolumn:name="Service",type=string,JSONPath=`.spec.services[0].name`
// +kubebuilder:printcolumn:name="Pool",type=string,JSONPath=`.spec.pool`
// +kubebuilder:printcolumn:name="Node",type=string,JSONPath=`.status.node`
// +kubebuilder:printcolumn:name="Interface",type=string,JSONPath=`.status.interface`
// +kubebuilder:printcolumn:name="Since",type=date,JSONPath=`.status.since`
// +kubebuilder:printcolumn:name="Announced",type=string,priority=1,JSONPath=`.status.conditions[?(@.type=="Announced")].reason`
// +kubebuilder:printcolumn:name="Reserved",type=boolean,priority=1,JSONPath=`.spec.reserved`
// +kubebuilder:printcolumn:name="Released",type=date,priority=1,JSONPath=`.spec.releasedAt`
// +kubebuilder:validation:XValidation:rule="!has(self.spec.address) || !isIP(self.spec.address) || (ip(self.spec.address).family() == 4 ? self.metadata.name == self.spec.address : self.metadata.name.matches('^([0-9a-f]{4}-){7}[0-9a-f]{4}$') && ip(self.metadata.name.replace('-', ':')) == ip(self.spec.address))",message="the name must be made from spec.address: the address itself for IPv4 (192.0.2.7), all eight groups of four digits joined by '-' for IPv6 (2001-0db8-0000-0000-0000-0000-0000-0007)"
type LoadBalancerAddress struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// Spec says who holds the address. The controller keeps it, except for
	// reserved and reservedFor, which are the administrator's.
	// +required
	Spec LoadBalancerAddressSpec `json:"spec"`

	// Status says who announces the address. The announcing node's agent keeps it.
	// +optional
	Status LoadBalancerAddressStatus `json:"status,omitzero"`
}

// LoadBalancerAddressSpec says who holds an address. It is in one of these
// states:
//
//	in use       services is not empty
//	reserved     reserved is true (in use or not)
//	quarantined  releasedAt is set: nobody holds it, and it rests
//
// +kubebuilder:validation:XValidation:rule="!has(self.releasedAt) || !has(self.services) || self.services.size() == 0",message="releasedAt says that nobody holds the address: leave it out while services are listed"
// +kubebuilder:validation:XValidation:rule="!has(self.reservedFor) || (has(self.reserved) && self.reserved)",message="reservedFor goes with reserved: true; set it, or leave out reservedFor"
// +kubebuilder:validation:XValidation:rule="!has(self.services) || self.services.size() <= 1 || (has(self.sharingKey) && self.sharingKey.size() > 0)",message="only Services with the same sharing key can hold one address together: set sharingKey, or list one Service"
// +kubebuilder:validation:XValidation:rule="(has(self.reserved) && self.reserved) || (has(self.pool) && self.pool.size() > 0)",message="pool is missing: name the LoadBalancerPool, or set reserved: true to keep an address that is in no pool"
type LoadBalancerAddressSpec struct {
	// Address in its canonical form (RFC 5952). Immutable.
	//
	// +required
	// +kubebuilder:validation:MinLength=2
	// +kubebuilder:validation:MaxLength=39
	// +kubebuilder:validation:XValidation:rule="isIP(self) && ip.isCanonical(self)",message="must be an IPv4 or IPv6 address in its shortest lower-case form (RFC 5952), such as 192.0.2.7 or 2001:db8::7"
	// +kubebuilder:validation:XValidation:rule="!isIP(self) || !['0.0.0.0/8', '127.0.0.0/8', '169.254.0.0/16', '224.0.0.0/4', '240.0.0.0/4', '::/32', 'fe80::/10', 'ff00::/8'].exists(c, cidr(c).containsIP(self))",message="is an unspecified, loopback, link-local, multicast or reserved address, at which no Service can be reached"
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="is immutable: delete this object and create one for the other address"
	Address string `json:"address"`

	// Pool is the LoadBalancerPool that the address came from. It may be empty
	// in a reservation; the controller fills it in when a pool has the address.
	//
	// +optional
	// +kubebuilder:validation:MaxLength=63
	Pool string `json:"pool,omitempty"`

	// Services hold the address; more than one only with a sharing key.
	//
	// +optional
	// +listType=map
	// +listMapKey=namespace
	// +listMapKey=name
	// +kubebuilder:validation:MaxItems=256
	Services []ServiceReference `json:"services,omitempty"`

	// SharingKey is the key that all Services of this address have in their
	// annotation causeway.dev/sharing-key. Empty: the address is not shared.
	//
	// +optional
	// +kubebuilder:validation:MaxLength=253
	SharingKey string `json:"sharingKey,omitempty"`

	// Reserved keeps the address from automatic assignment. A Service in
	// reservedFor, or, without that, one that asks for the address, still gets
	// it. The record then outlives the Service.
	//
	// +optional
	Reserved bool `json:"reserved,omitempty"`

	// ReservedFor is the one Service that a reserved address is for. It is given
	// the address without asking for it.
	//
	// +optional
	ReservedFor *ServiceName `json:"reservedFor,omitempty"`

	// ReleasedAt is when the last Service let go of the address. Until the
	// pool's quarantine is over only ReleasedBy, or a Service that asks for this
	// address, gets it.
	//
	// +optional
	ReleasedAt *metav1.Time `json:"releasedAt,omitempty"`

	// ReleasedBy is the Service that let go of it.
	//
	// +optional
	ReleasedBy *ServiceName `json:"releasedBy,omitempty"`
}

// ServiceName names a Service, whether it exists or not.
type ServiceName struct {
	// Namespace of the Service.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	Namespace string `json:"namespace"`

	// Name of the Service.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	Name string `json:"name"`
}

// ServiceReference is one particular Service object.
type ServiceReference struct {
	// Namespace of the Service.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	Namespace string `json:"namespace"`

	// Name of the Service.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	Name string `json:"name"`

	// UID of the Service, which tells it from a later one of the same name.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=64
	UID string `json:"uid"`
}

// LoadBalancerAddressStatus says who announces an address.
type LoadBalancerAddressStatus struct {
	// Node is the name of the announcing node; empty when none does.
	// +optional
	// +kubebuilder:validation:MaxLength=253
	Node string `json:"node,omitempty"`

	// Interface is the interface of that node on which it is announced.
	// +optional
	// +kubebuilder:validation:MaxLength=15
	Interface string `json:"interface,omitempty"`

	// Since is when that node began to announce it.
	// +optional
	Since *metav1.Time `json:"since,omitempty"`

	// Conditions are Announced (with the reason of each node when none is
	// eligible) and Uncontested (no other host on the LAN answers for the address;
	// absent until one has).
	// +optional
	// +listType=map
	// +listMapKey=type
	// +kubebuilder:validation:MaxItems=16
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// Condition types of a LoadBalancerAddress; agents write them.
const (
	// AddressAnnounced is True while a node answers ARP or NDP for the address.
	AddressAnnounced = "Announced"

	// AddressUncontested is False while another host on the LAN answers for the
	// address (RFC 5227). It is absent until one has.
	AddressUncontested = "Uncontested"
)

// LoadBalancerAddressList is a list of LoadBalancerAddresses.
//
// +kubebuilder:object:root=true
type LoadBalancerAddressList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []LoadBalancerAddress `json:"items"`
}

// LoadBalancerAddressName gives the metadata.name of the record of addr: the
// address for IPv4, all 32 digits in groups of four joined by "-" for IPv6. An
// IPv4-mapped address counts as IPv4 and a zone is dropped.
func LoadBalancerAddressName(addr netip.Addr) string {
	return strings.ReplaceAll(addr.Unmap().WithZone("").StringExpanded(), ":", "-")
}
