// SPDX-License-Identifier: Apache-2.0

package book

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/causeway-lb/causeway/internal/alloc"
)

// Problem is something wrong with what a stored Service has.
type Problem struct {
	// Reason is Duplicate, ForeignPool or OutsidePool.
	Reason string
	// Message says what is wrong and what to do.
	Message string
	// Pools are the ClusterIPPools (AddressPools) or NodePortPools concerned, by
	// name.
	Pools        []string
	AddressPools bool
	// Others are the Services that have the same value, for Duplicate.
	Others []alloc.Owner
}

// The reasons of problems, worst first.
const (
	Duplicate   = "Duplicate"
	ForeignPool = "ForeignPool"
	OutsidePool = "OutsidePool"
)

// Check returns what is wrong with the values of a Service that was observed,
// worst first.
func (b *Book) Check(svc *corev1.Service, namespaceLabels map[string]string) []Problem {
	if exempt(svc) {
		return nil
	}
	who := subject{owner: OwnerOf(svc), labels: labels.Set(svc.Labels), namespaceLabels: labels.Set(namespaceLabels)}
	v4, v6, ports := holds(svc)
	var out []Problem
	for family, values := range map[corev1.IPFamily][]netip.Addr{corev1.IPv4Protocol: v4, corev1.IPv6Protocol: v6} {
		out = append(out, check(b.addresses[family], alloc.Addresses(), "ClusterIP", "ClusterIPPool", b.clusterIP,
			func(p policy) []alloc.Span[netip.Addr] { return p.spans(family) }, who, values)...)
	}
	out = append(out, check(b.ports, alloc.Ports(), "NodePort", "NodePortPool", b.nodePort,
		func(p policy) []alloc.PortRange { return p.ports }, who, ports)...)
	out = append(out, b.checkStored(svc, who)...)
	slices.SortStableFunc(out, func(a, b Problem) int { return strings.Compare(a.Reason+a.Message, b.Reason+b.Message) })
	return out
}

func check[V comparable](ledger *alloc.Ledger[V], kind alloc.Kind[V], what, resource string, policies []policy,
	spans func(policy) []alloc.Span[V], who subject, values []V) []Problem {
	var out []Problem
	var mine []string
	for _, p := range policies {
		if len(spans(p)) > 0 && p.selects(who) {
			mine = append(mine, p.name)
		}
	}
	for _, v := range values {
		text := what + " " + kind.Format(v)
		if others := otherHolders(ledger, v, who.owner); len(others) > 0 {
			out = append(out, Problem{Reason: Duplicate, Others: others, Message: fmt.Sprintf(
				"%s is held by %s, too: delete and create again the one that can do without it", text, toldOf(others[0], who.owner))})
		}
		switch owners, selected := where(kind, policies, spans, v, who); {
		case selected:
		case len(owners) > 0:
			out = append(out, Problem{Reason: ForeignPool, Pools: slices.Concat(owners, mine), AddressPools: what == "ClusterIP", Message: fmt.Sprintf(
				"%s belongs to %s %s, which does not select this Service: delete the Service and create it again, or have the pool select it",
				text, resource, strings.Join(owners, ", "))})
		case len(mine) > 0:
			out = append(out, Problem{Reason: OutsidePool, Pools: mine, AddressPools: what == "ClusterIP", Message: fmt.Sprintf(
				"%s is not in %s %s, which serves this Service: delete the Service and create it again, or add the value to the pool",
				text, resource, strings.Join(mine, ", "))})
		}
	}
	return out
}

// otherHolders returns who else holds the value, in order.
func otherHolders[V comparable](ledger *alloc.Ledger[V], v V, owner alloc.Owner) []alloc.Owner {
	var out []alloc.Owner
	for _, lease := range ledger.Leases(v) {
		if lease.State == alloc.Held && lease.Owner != owner {
			out = append(out, lease.Owner)
		}
	}
	slices.SortFunc(out, func(a, b alloc.Owner) int { return strings.Compare(a.String()+a.UID, b.String()+b.UID) })
	return out
}
