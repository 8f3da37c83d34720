// SPDX-License-Identifier: Apache-2.0

package provisioner

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/causeway-lb/causeway/api/v1alpha1"
	"github.com/causeway-lb/causeway/internal/alloc"
	"github.com/causeway-lb/causeway/internal/netaddr"
	"github.com/causeway-lb/causeway/internal/quote"
)

// MaxAddresses is how many addresses a Service can ask for.
const MaxAddresses = 16

// ParseRequest reads what a Service of type LoadBalancer asks for. The
// annotation causeway.dev/addresses goes before the deprecated
// spec.loadBalancerIP. An error is an *AllocationError with ReasonInvalidRequest; the
// request's Current is right all the same.
func ParseRequest(svc *corev1.Service, namespaceLabels map[string]string) (Request, error) {
	req := Request{
		Owner:           alloc.OwnerOf(svc),
		Families:        slices.Clone(svc.Spec.IPFamilies),
		Policy:          corev1.IPFamilyPolicySingleStack,
		Pool:            strings.TrimSpace(svc.Annotations[v1alpha1.PoolAnnotation]),
		SharingKey:      strings.TrimSpace(svc.Annotations[v1alpha1.SharingKeyAnnotation]),
		HasSourceRanges: len(svc.Spec.LoadBalancerSourceRanges) > 0,
		NoNodePorts:     svc.Spec.AllocateLoadBalancerNodePorts != nil && !*svc.Spec.AllocateLoadBalancerNodePorts,
		LocalPolicy:     svc.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal,
		Labels:          svc.Labels,
		NamespaceLabels: namespaceLabels,
		LocalPods:       LocalPods(svc),
		Current:         IngressAddresses(svc),
	}
	if svc.Spec.IPFamilyPolicy != nil {
		req.Policy = *svc.Spec.IPFamilyPolicy
	}
	for _, p := range svc.Spec.Ports {
		req.Ports = append(req.Ports, Port{Protocol: cmp.Or(p.Protocol, corev1.ProtocolTCP), Port: uint16(p.Port)})
	}
	if len(req.SharingKey) > 253 {
		return req, invalid("annotation %s is %d characters long: use at most 253", v1alpha1.SharingKeyAnnotation, len(req.SharingKey))
	}
	var err error
	req.Addresses, err = requestedAddresses(svc)
	if err != nil {
		return req, err
	}
	for _, addr := range req.Addresses {
		if family := alloc.FamilyOf(addr); !slices.Contains(req.Families, family) {
			return req, invalid("%s is asked for, but the Service's ipFamilies are %s: add %s to spec.ipFamilies or ask for another address",
				addr, joinFamilies(req.Families), family)
		}
	}
	return req, nil
}

// IngressAddresses returns the addresses in a Service's status.
func IngressAddresses(svc *corev1.Service) (addrs []netip.Addr) {
	for _, in := range svc.Status.LoadBalancer.Ingress {
		if addr, ok := netaddr.Parse(in.IP); ok {
			addrs = append(addrs, addr)
		}
	}
	return addrs
}

// LocalPods returns Request.LocalPods of a Service. One without a selector, whose endpoints
// are written by hand, equals no other.
func LocalPods(svc *corev1.Service) string {
	switch {
	case svc.Spec.ExternalTrafficPolicy != corev1.ServiceExternalTrafficPolicyLocal:
		return ""
	case len(svc.Spec.Selector) == 0:
		return svc.Namespace + "/Service " + svc.Name
	}
	return svc.Namespace + "/" + labels.FormatLabels(svc.Spec.Selector)
}

// requestedAddresses reads the annotation or, without it, the field.
func requestedAddresses(svc *corev1.Service) ([]netip.Addr, error) {
	text, where := svc.Annotations[v1alpha1.AddressesAnnotation], "annotation "+v1alpha1.AddressesAnnotation
	if strings.TrimSpace(text) == "" {
		text, where = svc.Spec.LoadBalancerIP, "spec.loadBalancerIP"
	}
	if strings.TrimSpace(text) == "" {
		return nil, nil
	}
	var addrs []netip.Addr
	for part := range strings.SplitSeq(text, ",") {
		addr, ok := netaddr.Parse(part)
		if !ok {
			return nil, invalid("%s: %s is not an IP address: write one or more addresses such as 192.0.2.7,2001:db8::7, without prefix length or zone", where, quote.Text(part))
		}
		if slices.Contains(addrs, addr) {
			return nil, invalid("%s: %s is listed twice: list it once", where, addr)
		}
		addrs = append(addrs, addr)
	}
	if len(addrs) > MaxAddresses {
		return nil, invalid("%s: %d addresses are asked for: ask for at most %d", where, len(addrs), MaxAddresses)
	}
	return addrs, nil
}

// Check compares a request with what a provisioner can do. An error is a
// *AllocationError with ReasonUnsupported that names everything it cannot do.
func (c Capabilities) Check(class string, req Request) error {
	var cannot []string
	for _, p := range req.Ports {
		if what := "serve " + string(p.Protocol); !slices.Contains(c.Protocols, p.Protocol) && !slices.Contains(cannot, what) {
			cannot = append(cannot, what)
		}
	}
	if len(req.Families) > 0 && !slices.ContainsFunc(req.Families, func(f corev1.IPFamily) bool { return slices.Contains(c.Families, f) }) {
		cannot = append(cannot, "give addresses of "+joinFamilies(req.Families))
	} else if req.Policy == corev1.IPFamilyPolicyRequireDualStack && len(c.Families) < 2 {
		cannot = append(cannot, "give addresses of both families")
	}
	for _, x := range []struct {
		asked, able bool
		what        string
	}{
		{req.SharingKey != "", c.Sharing, "share an address (annotation " + v1alpha1.SharingKeyAnnotation + ")"},
		{len(req.Addresses) > 0, c.RequestedAddresses, "give a particular address"},
		{req.Pool != "", c.Pools, "take from a pool (annotation " + v1alpha1.PoolAnnotation + ")"},
		{req.HasSourceRanges, c.SourceRanges, "enforce spec.loadBalancerSourceRanges"},
		{req.LocalPolicy, c.LocalPolicy, "honour externalTrafficPolicy: Local"},
		{req.NoNodePorts, !c.NeedsNodePorts, "work without NodePorts (allocateLoadBalancerNodePorts: false)"},
	} {
		if x.asked && !x.able {
			cannot = append(cannot, x.what)
		}
	}
	if len(cannot) == 0 {
		return nil
	}
	return &AllocationError{Reason: ReasonUnsupported, Message: fmt.Sprintf(
		"The load balancer class %s cannot %s: change the Service, or make it again with another spec.loadBalancerClass",
		class, strings.Join(cannot, ", nor "))}
}

// Required returns how many of the request's families have to get an address.
func (r Request) Required() int {
	if r.Policy == corev1.IPFamilyPolicyPreferDualStack {
		return 1
	}
	return len(r.Families)
}

func joinFamilies(families []corev1.IPFamily) string {
	words := make([]string, 0, len(families))
	for _, f := range families {
		words = append(words, string(f))
	}
	return strings.Join(words, " and ")
}

func invalid(format string, args ...any) *AllocationError {
	return &AllocationError{Reason: ReasonInvalidRequest, Message: fmt.Sprintf(format, args...)}
}

// DesiredOf returns how a Service is to be served at its addresses, without the nodes. Source
// ranges that cannot be parsed, which the API server denies, are left out.
func DesiredOf(svc *corev1.Service, addrs []netip.Addr) Desired {
	d := Desired{
		Owner: alloc.OwnerOf(svc), Addresses: slices.Clone(addrs),
		LocalPolicy:      svc.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal,
		ClientIPAffinity: svc.Spec.SessionAffinity == corev1.ServiceAffinityClientIP,
		SourceRanges:     netaddr.ParsePrefixes(svc.Spec.LoadBalancerSourceRanges),
	}
	if d.LocalPolicy {
		d.HealthCheckNodePort = uint16(svc.Spec.HealthCheckNodePort)
	}
	for _, p := range svc.Spec.Ports {
		d.Ports = append(d.Ports, ServicePort{
			Name: p.Name, NodePort: uint16(p.NodePort),
			Port: Port{Protocol: cmp.Or(p.Protocol, corev1.ProtocolTCP), Port: uint16(p.Port)},
		})
	}
	return d
}
