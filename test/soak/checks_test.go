// SPDX-License-Identifier: Apache-2.0

package soak

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-lb/causeway/api/v1alpha1"
	"github.com/causeway-lb/causeway/internal/testkit"
)

// checkUnique looks for an address or a port that two Services have.
func (s *allocation) checkUnique() {
	var list corev1.ServiceList
	s.must(s.api.List(s.t.Context(), &list))
	owners := map[string]string{}
	claim := func(value string, svc *corev1.Service) {
		key := client.ObjectKeyFromObject(svc).String()
		if other, ok := owners[value]; ok && other != key {
			s.t.Errorf("%s belongs to %s and to %s", value, other, key)
		}
		owners[value] = key
	}
	for i := range list.Items {
		svc := &list.Items[i]
		for _, ip := range svc.Spec.ClusterIPs {
			if ip != corev1.ClusterIPNone {
				claim(ip, svc)
			}
		}
		for _, p := range svc.Spec.Ports {
			if p.NodePort != 0 {
				claim(fmt.Sprint("port ", p.NodePort), svc)
			}
		}
		if n := svc.Spec.HealthCheckNodePort; n != 0 {
			claim(fmt.Sprint("port ", n), svc)
		}
	}
	if len(owners) < 50 {
		s.t.Errorf("only %d values are in use: the soak does nothing", len(owners))
	}
}

// checkPlaced looks for Services that are neither in their pool nor reported as
// being outside.
func (s *allocation) checkPlaced() {
	strays := 0
	testkit.Eventually(s.t, time.Minute, "every Service is in its pool or reported", func() error {
		strays = 0
		var list corev1.ServiceList
		if err := s.api.List(s.t.Context(), &list); err != nil {
			return err
		}
		for i := range list.Items {
			svc := &list.Items[i]
			reported := meta.IsStatusConditionFalse(svc.Status.Conditions, v1alpha1.ConditionInPool)
			if placed(svc) == reported {
				return fmt.Errorf("%s with %v: in its pool: %v, reported: %v", client.ObjectKeyFromObject(svc), svc.Spec.ClusterIPs, placed(svc), reported)
			}
			if reported {
				strays++
			}
		}
		return nil
	})
	s.t.Logf("%d Services were allocated by the API server while no replica answered, and are reported", strays)
}

// placed tells whether a Service has nothing but values of its tenant's pools,
// or, without pools, nothing of any pool.
func placed(svc *corev1.Service) bool {
	ok := true
	for _, text := range svc.Spec.ClusterIPs {
		if a, err := netip.ParseAddr(text); err == nil {
			ok = ok && home(func(i int) bool { return inRanges(tenants[i].addresses, a) }) == homeOf(svc)
		}
	}
	ports := []int32{svc.Spec.HealthCheckNodePort}
	for _, p := range svc.Spec.Ports {
		ports = append(ports, p.NodePort)
	}
	for _, n := range ports {
		if n != 0 {
			ok = ok && home(func(i int) bool { return inPorts(tenants[i].ports, n) }) == homeOf(svc)
		}
	}
	return ok
}

// home returns the tenant whose pool has a value, and -1 for none.
func home(has func(int) bool) int {
	for i := range tenants {
		if has(i) {
			return i
		}
	}
	return -1
}

// homeOf returns the tenant whose pools serve a Service, and -1 for none.
func homeOf(svc *corev1.Service) int {
	return home(func(i int) bool { return tenants[i].namespace == svc.Namespace && tenants[i].addresses != nil })
}

func inRanges(ranges []v1alpha1.AddressRange, a netip.Addr) bool {
	for _, r := range ranges {
		if netip.MustParsePrefix(string(r)).Contains(a) {
			return true
		}
	}
	return false
}

func inPorts(r v1alpha1.PortRange, n int32) bool {
	var first, last int32
	_, err := fmt.Sscanf(string(r), "%d-%d", &first, &last)
	return err == nil && first <= n && n <= last
}

// checkCounts waits until the pools count exactly what Services have.
func (s *allocation) checkCounts() {
	testkit.Eventually(s.t, time.Minute, "the pools count what the Services have", func() error {
		ctx := s.t.Context()
		var services corev1.ServiceList
		if err := s.api.List(ctx, &services); err != nil {
			return err
		}
		for i, tenant := range tenants[:2] {
			v4, v6, ports := count(services.Items, i)
			var addresses v1alpha1.ClusterIPPool
			var nodePorts v1alpha1.NodePortPool
			for _, pool := range []client.Object{&addresses, &nodePorts} {
				if err := s.api.Get(ctx, types.NamespacedName{Name: tenant.namespace}, pool); err != nil {
					return err
				}
			}
			for _, c := range []struct {
				what string
				want int
				got  *v1alpha1.AllocationUsage
			}{{"IPv4", v4, addresses.Status.IPv4}, {"IPv6", v6, addresses.Status.IPv6}, {"ports", ports, nodePorts.Status.Ports}} {
				if int(c.got.Used) != c.want || c.got.Quarantined != 0 {
					return fmt.Errorf("%s of %s: Services have %d, the pool counts %+v", c.what, tenant.namespace, c.want, *c.got)
				}
			}
		}
		return nil
	})
}

// leakedFor is how long the API server keeps an IPAddress that it made for a
// Service which then was not written, as after a lost update (its syncIPAddress).
const leakedFor = time.Minute

// checkIPAddresses waits until none of the IPAddresses is left that kept a
// released address from the API server, and its own are those of Services.
func (s *allocation) checkIPAddresses() {
	testkit.Eventually(s.t, time.Minute, "no IPAddress is left of ours", func() error {
		return s.noIPAddress(func(a *networkingv1.IPAddress, _ bool) bool {
			return a.Labels[networkingv1.LabelManagedBy] == v1alpha1.ManagedBy
		})
	})
	testkit.Eventually(s.t, leakedFor+time.Minute, "no IPAddress is left of Services that are gone", func() error {
		return s.noIPAddress(func(_ *networkingv1.IPAddress, used bool) bool { return !used })
	})
}

// noIPAddress gives an error for one that is left over.
func (s *allocation) noIPAddress(left func(a *networkingv1.IPAddress, used bool) bool) error {
	var addresses networkingv1.IPAddressList
	var services corev1.ServiceList
	if err := errors.Join(s.api.List(s.t.Context(), &addresses), s.api.List(s.t.Context(), &services)); err != nil {
		return err
	}
	used := map[string]bool{}
	for _, svc := range services.Items {
		for _, ip := range svc.Spec.ClusterIPs {
			used[ip] = true
		}
	}
	for i := range addresses.Items {
		if a := &addresses.Items[i]; left(a, used[a.Name]) {
			return fmt.Errorf("%s, made by %s at %s for %v %v", a.Name, a.Labels[networkingv1.LabelManagedBy], a.CreationTimestamp.Format(time.TimeOnly), a.Spec.ParentRef, a.Annotations)
		}
	}
	return nil
}

// count counts the values of a tenant's pools that Services have.
func count(services []corev1.Service, tenant int) (v4, v6, ports int) {
	seen := map[int32]bool{}
	for _, svc := range services {
		for _, text := range svc.Spec.ClusterIPs {
			a, err := netip.ParseAddr(text)
			switch {
			case err != nil || !inRanges(tenants[tenant].addresses, a):
			case a.Is4():
				v4++
			default:
				v6++
			}
		}
		numbers := []int32{svc.Spec.HealthCheckNodePort}
		for _, p := range svc.Spec.Ports {
			numbers = append(numbers, p.NodePort)
		}
		for _, n := range numbers {
			if inPorts(tenants[tenant].ports, n) {
				seen[n] = true
			}
		}
	}
	return v4, v6, len(seen)
}
