// SPDX-License-Identifier: Apache-2.0

package services

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/causeway-lb/causeway/internal/alloc"
)

// Problem is something wrong with what a stored Service has.
type Problem struct {
	// Reason is Duplicate, PoolMismatch or OutsidePool.
	Reason string
	// Message says what is wrong and what to do.
	Message string
	// Pools are the ClusterIPPools (AddressPools) or NodePortPools concerned, by
	// name.
	Pools        []string
	AddressPools bool
}

// The reasons of problems, worst first.
const (
	Duplicate    = "Duplicate"
	PoolMismatch = "PoolMismatch"
	OutsidePool  = "OutsidePool"
)

// Check returns what is wrong with the values of a Service that was observed,
// worst first.
func (a *Allocations) Check(svc *corev1.Service, namespaceLabels map[string]string) []Problem {
	if exempt(svc) {
		return nil
	}
	who := subject{owner: alloc.OwnerOf(svc), labels: labels.Set(svc.Labels), namespaceLabels: labels.Set(namespaceLabels)}
	v4, v6, ports := valuesOf(svc)
	out := slices.Concat(a.ports.check(who, ports), a.addresses[corev1.IPv4Protocol].check(who, v4),
		a.addresses[corev1.IPv6Protocol].check(who, v6), a.checkStored(svc, who))
	slices.SortStableFunc(out, func(a, b Problem) int { return strings.Compare(a.Reason+a.Message, b.Reason+b.Message) })
	return out
}

func (v *values[V]) check(who subject, has []V) []Problem {
	var out []Problem
	mine := v.serving(who)
	for _, value := range has {
		text := v.what + " " + v.kind.Format(value)
		if others := v.otherHolders(value, who.owner); len(others) > 0 {
			out = append(out, Problem{Reason: Duplicate, Message: fmt.Sprintf(
				"%s is held by %s, too: delete and create again the one that can do without it", text, toldOf(others[0], who.owner))})
		}
		switch owners, selected := v.having(value, who); {
		case selected:
		case len(owners) > 0:
			out = append(out, Problem{Reason: PoolMismatch, Pools: slices.Concat(owners, mine), AddressPools: !v.unrecorded, Message: fmt.Sprintf(
				"%s belongs to %s %s, which does not select this Service: delete the Service and create it again, or have the pool select it",
				text, v.resource, strings.Join(owners, ", "))})
		case len(mine) > 0:
			out = append(out, Problem{Reason: OutsidePool, Pools: mine, AddressPools: !v.unrecorded, Message: fmt.Sprintf(
				"%s is not in %s %s, which serves this Service: delete the Service and create it again, or add the value to the pool",
				text, v.resource, strings.Join(mine, ", "))})
		}
	}
	return out
}

// otherHolders returns the other owners that hold the value, in order.
func (v *values[V]) otherHolders(value V, owner alloc.Owner) []alloc.Owner {
	var out []alloc.Owner
	for _, allocation := range v.Of(value) {
		if allocation.State == alloc.Held && allocation.Owner != owner {
			out = append(out, allocation.Owner)
		}
	}
	slices.SortFunc(out, func(a, b alloc.Owner) int { return strings.Compare(a.String()+a.UID, b.String()+b.UID) })
	return out
}
