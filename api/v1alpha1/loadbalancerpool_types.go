// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func init() { register(&LoadBalancerPool{}, &LoadBalancerPoolList{}) }

// LoadBalancerPool is a set of addresses that Services of type LoadBalancer
// are given.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,shortName=lbpool,categories=causeway
// +kubebuilder:printcolumn:name="Auto-Assign",type=boolean,JSONPath=`.spec.autoAssign`
// +kubebuilder:printcolumn:name="Priority",type=integer,JSONPath=`.spec.priority`
// +kubebuilder:printcolumn:name="IPv4-Assigned",type=integer,JSONPath=`.status.ipv4.assigned`
// +kubebuilder:printcolumn:name="IPv4-Free",type=integer,JSONPath=`.status.ipv4.free`
// +kubebuilder:printcolumn:name="IPv6-Assigned",type=integer,JSONPath=`.status.ipv6.assigned`
// +kubebuilder:printcolumn:name="IPv6-Free",type=integer,JSONPath=`.status.ipv6.free`
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Reason",type=string,priority=1,JSONPath=`.status.conditions[?(@.type=="Ready")].reason`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:validation:XValidation:rule="self.metadata.name.size() <= 63",message="the name is used as a label value and a metric label: use at most 63 characters"
type LoadBalancerPool struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// Spec is what the administrator asks for.
	// +required
	Spec LoadBalancerPoolSpec `json:"spec"`

	// Status is what the controller found. It is written by the controller only.
	// +optional
	Status LoadBalancerPoolStatus `json:"status,omitzero"`
}

// LoadBalancerPoolSpec says which addresses there are, who may have them and
// where they are announced. Every field can be changed at any time; a change
// never takes an address from a Service that holds it.
type LoadBalancerPoolSpec struct {
	// Addresses are CIDRs ("192.0.2.0/24", "2001:db8::/120") and inclusive
	// ranges ("192.0.2.10-192.0.2.50"), of both families in any mix. A single
	// address is a /32 or /128. They must not overlap each other or another
	// pool: the admission webhook refuses that and says which.
	//
	// Addresses that turn out to belong to a node, to the Pods or to the
	// Services are skipped and reported in the condition Disjoint.
	//
	// The first and the last address of an IPv4 CIDR, the first of an IPv6 one,
	// and IPv4 addresses that end in .0 or .255 are given out last, for they may
	// be a subnet's own; IPv6 addresses whose last 64 bits are 0 only to Services
	// that ask for them.
	//
	// Taking away addresses that Services hold follows RemovalPolicy.
	//
	// +required
	// +listType=set
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=64
	Addresses []AddressRange `json:"addresses"`

	// AutoAssign lets Services that ask for no address and no pool take from
	// this one. Without it the pool serves requests by name or by address only.
	//
	// +optional
	// +default=true
	// +kubebuilder:default=true
	AutoAssign *bool `json:"autoAssign,omitempty"`

	// Priority orders the pools that could serve a Service: the highest with a
	// free address is used. Equal ones: a pool with selectors goes before one
	// without, then by name.
	//
	// +optional
	// +kubebuilder:default=0
	// +kubebuilder:validation:Minimum=-1000
	// +kubebuilder:validation:Maximum=1000
	Priority int32 `json:"priority,omitempty"`

	// NamespaceSelector limits the pool to Services in namespaces with these
	// labels. Absent or empty admits all. It is applied when an address is
	// given; it takes none away.
	//
	// +optional
	NamespaceSelector *metav1.LabelSelector `json:"namespaceSelector,omitempty"`

	// ServiceSelector limits the pool to Services with these labels. Absent or
	// empty admits all. A Service has to pass both selectors.
	//
	// +optional
	ServiceSelector *metav1.LabelSelector `json:"serviceSelector,omitempty"`

	// NodeSelector limits which nodes may announce the pool's addresses. Absent
	// or empty admits all.
	//
	// +optional
	NodeSelector *metav1.LabelSelector `json:"nodeSelector,omitempty"`

	// IgnoreExcludeLabel lets nodes announce the pool's addresses that have the
	// label node.kubernetes.io/exclude-from-external-load-balancers, which kubeadm
	// puts on control-plane nodes: needed where there are no others. Defaults to
	// false. The agents' flag --ignore-exclude-label does so for all pools.
	//
	// +optional
	IgnoreExcludeLabel bool `json:"ignoreExcludeLabel,omitempty"`

	// Interfaces are names or shell patterns ("eth0", "bond*") of the interfaces
	// on which the addresses are announced: of those that match, the ones in
	// whose subnet the address is, or all if it is in none. Empty: the interface
	// whose subnet holds the address, else those of the default route. Of several
	// interfaces in one subnet the one by which the kernel routes to it is used.
	//
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=16
	Interfaces []InterfacePattern `json:"interfaces,omitempty"`

	// AvoidBuggyIPs keeps IPv4 addresses that end in .0 and .255 from being
	// assigned automatically, for old equipment that takes them for network
	// and broadcast addresses of a class C network. Without it they are assigned
	// last. Asking for one by address still works.
	//
	// +optional
	// +kubebuilder:default=false
	AvoidBuggyIPs bool `json:"avoidBuggyIPs,omitempty"`

	// Sharing says which Services with one sharing key (annotation
	// causeway.dev/sharing-key) may have an address of the pool together: those of
	// one namespace, or of any. A change takes no address from a Service.
	//
	// +optional
	// +kubebuilder:default=Namespace
	Sharing SharingScope `json:"sharing,omitempty"`

	// MaxPerNamespace is how many addresses of each family a namespace can have
	// from this pool; an address that its Services share counts once. Absent: no
	// limit. Lowering it takes nothing away.
	//
	// +optional
	// +kubebuilder:validation:Minimum=1
	MaxPerNamespace *int32 `json:"maxPerNamespace,omitempty"`

	// MaxPerService is how many addresses a Service that asks for certain ones can
	// have from this pool. Lowering it takes nothing away.
	//
	// +optional
	// +kubebuilder:default=16
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=16
	MaxPerService *int32 `json:"maxPerService,omitempty"`

	// Disabled stops the pool from giving out addresses. Those that are assigned
	// stay assigned and announced.
	//
	// +optional
	// +kubebuilder:default=false
	Disabled bool `json:"disabled,omitempty"`

	// Quarantine is how long a released address rests before another Service
	// is given it, so that clients with an old DNS answer do not end up at a
	// stranger. The Service that had it (same namespace and name) gets it back
	// at once, and so does one that asks for it by address. "0s" turns it off.
	//
	// +optional
	// +kubebuilder:default="1m"
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:MaxLength=32
	// +kubebuilder:validation:Pattern=`^([0-9]+(\.[0-9]+)?(ms|s|m|h))+$`
	// +kubebuilder:validation:XValidation:rule="duration(self) <= duration('168h')",message="must be at most 168h (a week); to keep an address away for longer create a LoadBalancerAddress with spec.reserved"
	Quarantine *metav1.Duration `json:"quarantine,omitempty"`

	// Failback says when an address goes back to the node that the election
	// prefers, once that node can announce again.
	//
	// +optional
	// +kubebuilder:default={mode: Immediate}
	Failback Failback `json:"failback,omitzero"`

	// RemovalPolicy says what happens to an edit (or a deletion of the pool)
	// that takes away addresses that Services hold. Either way no Service loses
	// its address.
	//
	// +optional
	// +kubebuilder:default=Refuse
	RemovalPolicy RemovalPolicy `json:"removalPolicy,omitempty"`
}

// AddressRange is a CIDR or an inclusive range "first-last" of one family. It
// holds addresses that hosts can have and others can reach: not 0.0.0.0/8 and ::,
// loopback, link-local, multicast, 240.0.0.0/4 with the broadcast address, nor
// IPv4-mapped IPv6 addresses.
//
// +kubebuilder:validation:MinLength=3
// +kubebuilder:validation:MaxLength=91
// +kubebuilder:validation:XValidation:rule="isCIDR(self) || (self.matches('^[^-/]+-[^-/]+$') && self.split('-').all(a, isIP(a)))",message="must be a CIDR (192.0.2.0/24, 2001:db8::/120) or a range (192.0.2.10-192.0.2.50); write a single address as 192.0.2.7/32, use no spaces, no leading zeros and no IPv4-mapped IPv6 addresses"
// +kubebuilder:validation:XValidation:rule="!isCIDR(self) || cidr(self) == cidr(self).masked()",message="has bits set after the prefix length; write the network's first address, or a range such as 192.0.2.10-192.0.2.50"
// +kubebuilder:validation:XValidation:rule="!isCIDR(self) || cidr(self).prefixLength() >= (cidr(self).ip().family() == 4 ? 8 : 32)",message="is larger than a /8 (IPv4) or a /32 (IPv6), surely by mistake; write a longer prefix"
// +kubebuilder:validation:XValidation:rule="!self.matches('^[^-/]+-[^-/]+$') || !self.split('-').all(a, isIP(a)) || ip(self.split('-')[0]).family() == ip(self.split('-')[1]).family()",message="goes from one address family to the other; write one range for IPv4 and one for IPv6"
// +kubebuilder:validation:XValidation:rule="!(self.matches('^[^-/]+-[^-/]+$') && self.split('-').all(a, isIP(a))) || ip(self.split('-')[0]).family() != ip(self.split('-')[1]).family() || cidr(self.split('-')[0] + (ip(self.split('-')[0]).family() == 4 ? '/8' : '/32')).containsIP(self.split('-')[1])",message="goes beyond one /8 (IPv4) or /32 (IPv6), surely by mistake; write a shorter range, or one for each"
// +kubebuilder:validation:XValidation:rule="!isIP(self.split('/')[0].split('-')[0]) || !['0.0.0.0/8', '127.0.0.0/8', '::/32'].exists(c, cidr(c).containsIP(self.split('/')[0].split('-')[0]))",message="holds unspecified, loopback or IPv4-mapped addresses (0.0.0.0/8, 127.0.0.0/8, ::/32), at which no host can be reached; take them out"
// +kubebuilder:validation:XValidation:rule="!isIP(self.split('/')[0].split('-')[0]) || !(['169.254.0.0/16', 'fe80::/10'].exists(c, cidr(c).containsIP(self.split('/')[0].split('-')[0])) || isCIDR(self) && cidr(self).containsCIDR('169.254.0.0/16') || self.matches('^[^-/]+-[^-/]+$') && self.split('-').all(a, isIP(a)) && (cidr('169.254.0.0/16').containsIP(self.split('-')[1]) || cidr('169.255.0.0/16').containsIP(self.split('-')[1]) && !cidr('169.255.0.0/16').containsIP(self.split('-')[0])))",message="holds link-local addresses (169.254.0.0/16, fe80::/10), which no router passes on; take them out"
// +kubebuilder:validation:XValidation:rule="!isIP(self.split('/')[0].split('-')[0]) || !['224.0.0.0/4', 'ff00::/8'].exists(c, cidr(c).containsIP(self.split('/')[0].split('-')[0]))",message="holds multicast addresses (224.0.0.0/4, ff00::/8), which are groups and no hosts; take them out"
// +kubebuilder:validation:XValidation:rule="!isIP(self.split('/')[0].split('-')[0]) || !['240.0.0.0/4'].exists(c, cidr(c).containsIP(self.split('/')[0].split('-')[0]))",message="holds reserved addresses (240.0.0.0/4, class E and the broadcast address), which hosts refuse; take them out"
type AddressRange string

// SharingScope is a choice between Namespace and Cluster.
//
// +kubebuilder:validation:Enum=Namespace;Cluster
type SharingScope string

const (
	// SharingNamespace has a sharing key count in one namespace.
	SharingNamespace SharingScope = "Namespace"

	// SharingCluster has it count in all: whoever knows the key, and is admitted
	// by the pool, can join.
	SharingCluster SharingScope = "Cluster"
)

// InterfacePattern is an interface name, or a pattern with * and ?.
//
// +kubebuilder:validation:MinLength=1
// +kubebuilder:validation:MaxLength=15
// +kubebuilder:validation:XValidation:rule="self.matches('^[^/\\\\s]+$')",message="must be an interface name or a pattern such as eth* without spaces or slashes"
type InterfacePattern string

// RemovalPolicy is a choice between Refuse and Drain.
//
// +kubebuilder:validation:Enum=Refuse;Drain
type RemovalPolicy string

const (
	// RemovalRefuse has the admission webhook refuse an edit or deletion that
	// would take away an address in use, naming the Services.
	RemovalRefuse RemovalPolicy = "Refuse"

	// RemovalDrain accepts it: Services keep what they hold for as long as they
	// exist, nothing new comes from what was taken away, and a deleted pool
	// goes when its last address is released.
	RemovalDrain RemovalPolicy = "Drain"
)

// Failback says when an address goes back to its preferred node.
//
// +kubebuilder:validation:XValidation:rule="has(self.delay) == (has(self.mode) && self.mode == 'Delayed')",message="delay goes with mode Delayed: set both, or leave out delay"
type Failback struct {
	// Mode is Immediate (as soon as the node is eligible again), Delayed (after
	// it has been eligible for Delay without a break) or Never (only when the
	// node that announces now stops being eligible).
	//
	// +optional
	// +kubebuilder:default=Immediate
	Mode FailbackMode `json:"mode,omitempty"`

	// Delay is how long the node has to be eligible, with mode Delayed.
	//
	// +optional
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:MaxLength=32
	// +kubebuilder:validation:Pattern=`^([0-9]+(\.[0-9]+)?(ms|s|m|h))+$`
	// +kubebuilder:validation:XValidation:rule="duration(self) > duration('0s') && duration(self) <= duration('168h')",message="must be more than 0s and at most 168h (a week); for no delay use mode Immediate"
	Delay *metav1.Duration `json:"delay,omitempty"`
}

// FailbackMode is one of Immediate, Delayed and Never.
//
// +kubebuilder:validation:Enum=Immediate;Delayed;Never
type FailbackMode string

const (
	FailbackImmediate FailbackMode = "Immediate"
	FailbackDelayed   FailbackMode = "Delayed"
	FailbackNever     FailbackMode = "Never"
)

// LoadBalancerPoolStatus is what the controller found about a pool.
type LoadBalancerPoolStatus struct {
	// ObservedGeneration is the metadata.generation that the rest describes.
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`

	// IPv4 counts the pool's IPv4 addresses; absent when it has none.
	// +optional
	IPv4 *PoolUsage `json:"ipv4,omitempty"`

	// IPv6 counts the pool's IPv6 addresses; absent when it has none.
	// +optional
	IPv6 *PoolUsage `json:"ipv6,omitempty"`

	// Conditions are Ready (addresses can be given out), Disjoint (no address of
	// the pool belongs to something else) and Available (each family has a free
	// address). All are True while there is nothing to do.
	// +optional
	// +listType=map
	// +listMapKey=type
	// +kubebuilder:validation:MaxItems=16
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// PoolUsage counts the addresses of one family. Every address of the pool is
// in exactly one of assigned, reserved, quarantined, excluded and free. Counts
// stop at 2^53-1, the largest integer that every JSON reader keeps exactly.
type PoolUsage struct {
	// Total is the number of addresses in spec.addresses.
	Total int64 `json:"total"`

	// Assigned is how many a Service holds.
	Assigned int64 `json:"assigned"`

	// Reserved is how many an administrator reserved and no Service holds.
	Reserved int64 `json:"reserved"`

	// Quarantined is how many rest after release.
	Quarantined int64 `json:"quarantined"`

	// Excluded is how many are never given out by themselves: they overlap
	// something else, or end in .0 or .255 with avoidBuggyIPs.
	Excluded int64 `json:"excluded"`

	// Free is how many can be given out now.
	Free int64 `json:"free"`

	// Draining is how many of Assigned are no longer in spec.addresses; they are
	// not part of Total.
	// +optional
	Draining int64 `json:"draining,omitempty"`
}

// Condition types and reasons of a LoadBalancerPool.
const (
	// PoolReady is True when the pool can give out addresses. Reasons: Ready,
	// Disabled, Invalid, Deleting.
	PoolReady = "Ready"

	// PoolDisjoint is False when addresses of the pool belong to another pool,
	// a node, the Pods or the Services. They are not given out.
	PoolDisjoint = "Disjoint"

	// PoolAvailable is False when a family of the pool has no free address.
	PoolAvailable = "Available"
)

// LoadBalancerPoolList is a list of LoadBalancerPools.
//
// +kubebuilder:object:root=true
type LoadBalancerPoolList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []LoadBalancerPool `json:"items"`
}
