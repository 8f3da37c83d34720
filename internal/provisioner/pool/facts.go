// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/causeway-lb/causeway/api/v1alpha1"
	"github.com/causeway-lb/causeway/internal/alloc"
	"github.com/causeway-lb/causeway/internal/provisioner"
)

// DefaultQuarantine is the pool's quarantine when the API server did not fill
// in its default.
const DefaultQuarantine = time.Minute

// Pool is a LoadBalancerPool as it is used here.
type Pool struct {
	Name    string
	Created time.Time
	// Ranges in the order of spec.addresses.
	Ranges []Range
	// Ends are the first and last addresses of those that are CIDRs; see
	// alloc.Range.Ends.
	Ends       []Range
	AutoAssign bool
	Priority   int32
	// Namespaces and Services select by labels; Everything when unset.
	Namespaces, Services labels.Selector
	AvoidBuggyIPs        bool
	// SharedByAll is that sharing keys count in all namespaces.
	SharedByAll bool
	// MaxPerNamespace and MaxPerService bound the addresses; 0 means no bound.
	MaxPerNamespace, MaxPerService int
	// Disabled is spec.disabled, or that the pool is being deleted.
	Disabled   bool
	Quarantine time.Duration
}

// FromPool reads a LoadBalancerPool. The error joins everything that is wrong
// with it; the pool cannot be used then.
func FromPool(p *v1alpha1.LoadBalancerPool) (Pool, error) {
	out := Pool{
		Name: p.Name, Created: p.CreationTimestamp.Time,
		AutoAssign:    p.Spec.AutoAssign == nil || *p.Spec.AutoAssign,
		Priority:      p.Spec.Priority,
		AvoidBuggyIPs: p.Spec.AvoidBuggyIPs,
		SharedByAll:   p.Spec.Sharing == v1alpha1.SharingCluster,
		Disabled:      p.Spec.Disabled || !p.DeletionTimestamp.IsZero(),
		Quarantine:    DefaultQuarantine,
	}
	if p.Spec.Quarantine != nil {
		out.Quarantine = p.Spec.Quarantine.Duration
	}
	if n := p.Spec.MaxPerNamespace; n != nil {
		out.MaxPerNamespace = int(*n)
	}
	if n := p.Spec.MaxPerService; n != nil {
		out.MaxPerService = int(*n)
	}
	var errs []error
	ranges, err := alloc.ParseRanges("spec.addresses", p.Spec.Addresses)
	if err != nil {
		errs = append(errs, err)
	}
	for _, r := range ranges {
		out.Ranges = append(out.Ranges, r.Span)
		out.Ends = append(out.Ends, r.Ends()...)
	}
	for _, text := range addresses.Overlaps(alloc.Named[netip.Addr]{Name: p.Name, Spans: out.Ranges}, nil) {
		errs = append(errs, fmt.Errorf("spec.addresses: %s: take it out of one of them", text))
	}
	if out.Namespaces, err = selector(p.Spec.NamespaceSelector); err != nil {
		errs = append(errs, fmt.Errorf("spec.namespaceSelector: %w", err))
	}
	if out.Services, err = selector(p.Spec.ServiceSelector); err != nil {
		errs = append(errs, fmt.Errorf("spec.serviceSelector: %w", err))
	}
	if _, err = selector(p.Spec.NodeSelector); err != nil {
		errs = append(errs, fmt.Errorf("spec.nodeSelector: %w", err))
	}
	return out, errors.Join(errs...)
}

func selector(s *metav1.LabelSelector) (labels.Selector, error) {
	if s == nil {
		return labels.Everything(), nil
	}
	return metav1.LabelSelectorAsSelector(s)
}

// admits reports whether the pool's selectors let a Service in, and which does not.
func (p *Pool) admits(req provisioner.Request) (string, bool) {
	if p.Namespaces != nil && !p.Namespaces.Matches(labels.Set(req.NamespaceLabels)) {
		return "namespaceSelector", false
	}
	if p.Services != nil && !p.Services.Matches(labels.Set(req.Labels)) {
		return "serviceSelector", false
	}
	return "", true
}

// selective reports whether the pool is for some Services only.
func (p *Pool) selective() bool {
	return p.Namespaces != nil && !p.Namespaces.Empty() || p.Services != nil && !p.Services.Empty()
}

// equal compares pools by what they say.
func (p *Pool) equal(o *Pool) bool {
	return p.Name == o.Name && p.Created.Equal(o.Created) && slices.Equal(p.Ranges, o.Ranges) && slices.Equal(p.Ends, o.Ends) &&
		p.AutoAssign == o.AutoAssign && p.Priority == o.Priority && p.AvoidBuggyIPs == o.AvoidBuggyIPs &&
		p.SharedByAll == o.SharedByAll && p.MaxPerNamespace == o.MaxPerNamespace && p.MaxPerService == o.MaxPerService &&
		p.Disabled == o.Disabled && p.Quarantine == o.Quarantine &&
		text(p.Namespaces) == text(o.Namespaces) && text(p.Services) == text(o.Services)
}

func text(s labels.Selector) string {
	if s == nil {
		return ""
	}
	return s.String()
}

func (p *Pool) has(f corev1.IPFamily) bool {
	return slices.ContainsFunc(p.Ranges, func(r Range) bool { return alloc.FamilyOf(r.First) == f })
}

// Record is a LoadBalancerAddress as it is used here.
type Record struct {
	Address    netip.Addr
	Pool       string
	Owners     []alloc.Owner
	SharingKey string
	Reserved   bool
	// ReservedFor and ReleasedBy have no UID; the zero Owner means none.
	ReservedFor, ReleasedBy alloc.Owner
	ReleasedAt              time.Time
	// Announcement is what the agents say of the address.
	Announcement Announcement
	// UID and Version are the object's, for preconditions.
	UID, Version string
}

// Announcement is who announces an address. The zero value: no agent has said
// anything.
type Announcement struct {
	Node, Interface string
	// Status, Reason and Message are of the condition Announced.
	Status          metav1.ConditionStatus
	Reason, Message string
	// Conflict is the message of the condition Conflict while that is True.
	Conflict string
}

// FromAddress reads a LoadBalancerAddress.
func FromAddress(a *v1alpha1.LoadBalancerAddress) (Record, error) {
	addr, err := netip.ParseAddr(a.Spec.Address)
	if err != nil {
		return Record{}, fmt.Errorf("read spec.address of LoadBalancerAddress %s: %w", a.Name, err)
	}
	if name := v1alpha1.LoadBalancerAddressName(addr); name != a.Name {
		return Record{}, fmt.Errorf("read LoadBalancerAddress %s: the record of %s has the name %s", a.Name, addr, name)
	}
	r := Record{
		Address: addr.Unmap(), Pool: a.Spec.Pool, SharingKey: a.Spec.SharingKey,
		Reserved: a.Spec.Reserved, ReservedFor: ownerName(a.Spec.ReservedFor), ReleasedBy: ownerName(a.Spec.ReleasedBy),
		Announcement: Announcement{Node: a.Status.Node, Interface: a.Status.Interface},
		UID:          string(a.UID), Version: a.ResourceVersion,
	}
	if c := meta.FindStatusCondition(a.Status.Conditions, v1alpha1.AddressAnnounced); c != nil {
		r.Announcement.Status, r.Announcement.Reason, r.Announcement.Message = c.Status, c.Reason, c.Message
	}
	if c := v1alpha1.Contested(a.Status.Conditions); c != nil {
		r.Announcement.Conflict = c.Message
	}
	if a.Spec.ReleasedAt != nil {
		r.ReleasedAt = a.Spec.ReleasedAt.Time
	}
	for _, s := range a.Spec.Services {
		r.Owners = append(r.Owners, alloc.Owner{Namespace: s.Namespace, Name: s.Name, UID: s.UID})
	}
	return r, nil
}

func ownerName(n *v1alpha1.ServiceName) alloc.Owner {
	if n == nil {
		return alloc.Owner{}
	}
	return alloc.Owner{Namespace: n.Namespace, Name: n.Name}
}

func serviceName(o alloc.Owner) *v1alpha1.ServiceName {
	if o.Name == "" {
		return nil
	}
	return &v1alpha1.ServiceName{Namespace: o.Namespace, Name: o.Name}
}

// hasOwner reports whether a Service of this name is among the owners.
func (r *Record) hasOwner(o alloc.Owner) bool { return slices.ContainsFunc(r.Owners, o.Is) }

// others are the owners but o.
func (r *Record) others(o alloc.Owner) []alloc.Owner {
	var out []alloc.Owner
	for _, x := range r.Owners {
		if !x.Is(o) {
			out = append(out, x)
		}
	}
	return out
}

// state is which of the pool's counters a record is in.
type state int

const (
	inUse state = iota
	reserved
	quarantined
)

func (r *Record) state() state {
	switch {
	case len(r.Owners) > 0:
		return inUse
	case r.Reserved:
		return reserved
	default:
		return quarantined
	}
}

// Contains reports whether an address is in the pool's ranges.
func (p *Pool) Contains(a netip.Addr) bool { return containsAddr(p.Ranges, a) }
