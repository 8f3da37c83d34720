// SPDX-License-Identifier: Apache-2.0

package services

import (
	"fmt"
	"net/netip"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/causeway-lb/causeway/internal/alloc"
	"github.com/causeway-lb/causeway/internal/netaddr"
)

// checkExternal denies external IPs and LoadBalancer addresses that the
// Service did not have and that belong to pools that do not select it.
func (d *admission) checkExternal() error {
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
			return &Denied{Reason: Foreign, Field: f.field, Detail: fmt.Sprintf(
				"%s belongs to %s %s, which does not select this Service: leave the address out, or ask an administrator to select the namespace or the Service's labels",
				f.addr, resource, strings.Join(owners, ", "))}
		}
	}
	return nil
}

// foreign returns the pools that have an address and do not select the Service,
// when none that has it does.
func (a *Allocations) foreign(addr netip.Addr, who subject) (resource string, owners []string) {
	family := alloc.FamilyOf(addr)
	for _, ps := range []*pools[netip.Addr]{a.loadBalancer[family], &a.addresses[family].pools} {
		if owners, mine := ps.having(addr, who); len(owners) > 0 && !mine {
			return ps.resource, owners
		}
	}
	return "", nil
}

// checkStored returns the external addresses that a stored Service took from
// pools that do not select it, while no replica could deny it.
func (a *Allocations) checkStored(svc *corev1.Service, who subject) []Problem {
	var out []Problem
	for _, f := range a.external(svc) {
		if resource, owners := a.foreign(f.addr, who); len(owners) > 0 {
			p := Problem{Reason: PoolMismatch, Message: fmt.Sprintf(
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

func (a *Allocations) external(svc *corev1.Service) []field {
	var out []field
	add := func(name, text string) {
		if addr, ok := netaddr.Parse(text); ok {
			out = append(out, field{name, addr})
		}
	}
	for i, s := range svc.Spec.ExternalIPs {
		add(fmt.Sprintf("spec.externalIPs[%d]", i), s)
	}
	if svc.Spec.Type == corev1.ServiceTypeLoadBalancer {
		add("spec.loadBalancerIP", svc.Spec.LoadBalancerIP)
		for _, name := range a.config.AddressAnnotations {
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
