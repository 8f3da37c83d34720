// SPDX-License-Identifier: Apache-2.0

package book

import (
	"fmt"
	"net/netip"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/causeway-lb/causeway/api/v1alpha1"
	"github.com/causeway-lb/causeway/internal/alloc"
)

// checkExternal refuses external IPs and LoadBalancer addresses that the
// Service did not have and that belong to pools that do not select it.
func (d *desk) checkExternal() error {
	had := map[netip.Addr]bool{}
	if d.req.Old != nil {
		for _, f := range external(d.req.Old) {
			had[f.addr] = true
		}
	}
	for _, f := range external(d.req.Service) {
		if had[f.addr] {
			continue
		}
		for _, set := range []struct {
			resource string
			policies []policy
		}{{"LoadBalancerPool", d.loadBalancer}, {"ClusterIPPool", d.clusterIP}} {
			inside := func(p policy) []alloc.Span[netip.Addr] { return p.spans(alloc.FamilyOf(f.addr)) }
			owners, mine := where(alloc.Addresses(), set.policies, inside, f.addr, d.who)
			if len(owners) > 0 && !mine {
				return &Refused{Reason: Foreign, Field: f.field, Detail: fmt.Sprintf(
					"%s belongs to %s %s, which does not select this Service: leave the address out, or ask an administrator to select the namespace or the Service's labels",
					f.addr, set.resource, strings.Join(owners, ", "))}
			}
		}
	}
	return nil
}

// field is an address with the field that it stands in.
type field struct {
	field string
	addr  netip.Addr
}

func external(svc *corev1.Service) []field {
	var out []field
	add := func(name, text string) {
		if a, err := netip.ParseAddr(strings.TrimSpace(text)); err == nil {
			out = append(out, field{name, a.Unmap()})
		}
	}
	for i, s := range svc.Spec.ExternalIPs {
		add(fmt.Sprintf("spec.externalIPs[%d]", i), s)
	}
	if svc.Spec.Type == corev1.ServiceTypeLoadBalancer {
		add("spec.loadBalancerIP", svc.Spec.LoadBalancerIP)
		for _, s := range strings.Split(svc.Annotations[v1alpha1.AddressesAnnotation], ",") {
			add("metadata.annotations["+v1alpha1.AddressesAnnotation+"]", s)
		}
	}
	return out
}
