// SPDX-License-Identifier: Apache-2.0

package book

import (
	"fmt"
	"net/netip"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/causeway-lb/causeway/internal/alloc"
	"github.com/causeway-lb/causeway/internal/netaddr"
)

// checkExternal refuses external IPs and LoadBalancer addresses that the
// Service did not have and that belong to pools that do not select it.
func (d *desk) checkExternal() error {
	had := map[netip.Addr]bool{}
	if d.req.Old != nil {
		for _, f := range d.external(d.req.Old) {
			had[f.addr] = true
		}
	}
	for _, f := range d.external(d.req.Service) {
		if had[f.addr] {
			continue
		}
		if resource, owners := d.foreign(f.addr, d.who); len(owners) > 0 {
			return &Refused{Reason: Foreign, Field: f.field, Detail: fmt.Sprintf(
				"%s belongs to %s %s, which does not select this Service: leave the address out, or ask an administrator to select the namespace or the Service's labels",
				f.addr, resource, strings.Join(owners, ", "))}
		}
	}
	return nil
}

// foreign returns the pools that have an address and do not select the Service,
// when none that has it does.
func (b *Book) foreign(addr netip.Addr, who subject) (resource string, owners []string) {
	inside := func(p policy) []alloc.Span[netip.Addr] { return p.spans(alloc.FamilyOf(addr)) }
	for _, set := range []struct {
		resource string
		policies []policy
	}{{"LoadBalancerPool", b.loadBalancer}, {"ClusterIPPool", b.clusterIP}} {
		if owners, mine := where(alloc.Addresses(), set.policies, inside, addr, who); len(owners) > 0 && !mine {
			return set.resource, owners
		}
	}
	return "", nil
}

// checkStored returns the external addresses that a stored Service took from
// pools that do not select it, while nobody was there to refuse.
func (b *Book) checkStored(svc *corev1.Service, who subject) []Problem {
	var out []Problem
	for _, f := range b.external(svc) {
		if resource, owners := b.foreign(f.addr, who); len(owners) > 0 {
			p := Problem{Reason: ForeignPool, Message: fmt.Sprintf(
				"%s: %s belongs to %s %s, which does not select this Service: take the address out, or have the pool select it",
				f.field, f.addr, resource, strings.Join(owners, ", "))}
			if resource == "ClusterIPPool" {
				p.Pools, p.AddressPools = owners, true
			}
			out = append(out, p)
		}
	}
	return out
}

// field is an address with the field that it stands in.
type field struct {
	field string
	addr  netip.Addr
}

func (b *Book) external(svc *corev1.Service) []field {
	var out []field
	add := func(name, text string) {
		if a, ok := netaddr.Parse(text); ok {
			out = append(out, field{name, a})
		}
	}
	for i, s := range svc.Spec.ExternalIPs {
		add(fmt.Sprintf("spec.externalIPs[%d]", i), s)
	}
	if svc.Spec.Type == corev1.ServiceTypeLoadBalancer {
		add("spec.loadBalancerIP", svc.Spec.LoadBalancerIP)
		for _, name := range b.config.AddressAnnotations {
			if svc.Annotations[name] == "" {
				continue
			}
			for s := range strings.SplitSeq(svc.Annotations[name], ",") {
				add("metadata.annotations["+name+"]", s)
			}
			break
		}
	}
	return out
}
