// SPDX-License-Identifier: Apache-2.0

package services

import (
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/causeway-lb/causeway/internal/alloc"
	"github.com/causeway-lb/causeway/internal/netaddr"
)

// Needs is what has to be allocated before a Service can be stored.
type Needs struct {
	Addresses []AddressNeed
	Ports     []PortNeed
}

// AddressNeed is one entry of spec.clusterIPs.
type AddressNeed struct {
	// Index is its place in spec.clusterIPs.
	Index  int
	Family corev1.IPFamily
	// Asked is the address that the user set; the zero Addr for any.
	Asked netip.Addr
}

// PortNeed is one port number.
type PortNeed struct {
	// Indexes are the places in spec.ports that get it; none for
	// spec.healthCheckNodePort.
	Indexes []int
	// Asked is the port that the user set; 0 for any.
	Asked uint16
}

// NeedsOf returns what has to be allocated when svc is created (old is nil) or
// replaces old, in a cluster with these address families, the default first.
// Values that svc has already, or that the API server carries over from old,
// are not among it. What makes no sense is left out, too: the API server will
// say so.
func NeedsOf(svc, old *corev1.Service, cluster []corev1.IPFamily) Needs {
	return Needs{Addresses: addressNeeds(svc, old, cluster), Ports: portNeeds(svc, old)}
}

func addressNeeds(svc, old *corev1.Service, cluster []corev1.IPFamily) []AddressNeed {
	if !hasClusterIP(svc) || len(cluster) == 0 {
		return nil
	}
	verifiable := 0 // how many entries are there already
	ips := clusterIPs(svc)
	if old != nil && hasClusterIP(old) {
		before := clusterIPs(old)
		verifiable = len(before)
		if len(ips) == 0 {
			ips = before
		}
		if sameDualStack(svc, old, ips, before) {
			return nil
		}
	}
	var out []AddressNeed
	for i, family := range families(svc, old, ips, cluster) {
		if i < verifiable {
			continue
		}
		need := AddressNeed{Index: i, Family: family}
		if i < len(ips) {
			asked, ok := netaddr.Parse(ips[i])
			if !ok {
				return nil
			}
			need.Asked = asked
		}
		out = append(out, need)
	}
	return out
}

// hasClusterIP reports whether the Service has ClusterIPs or will get some.
func hasClusterIP(svc *corev1.Service) bool {
	ips := clusterIPs(svc)
	return svc.Spec.Type != corev1.ServiceTypeExternalName && (len(ips) == 0 || ips[0] != corev1.ClusterIPNone)
}

// clusterIPs is spec.clusterIPs, or spec.clusterIP from a client that knows
// nothing of the list.
func clusterIPs(svc *corev1.Service) []string {
	if len(svc.Spec.ClusterIPs) == 0 && svc.Spec.ClusterIP != "" {
		return []string{svc.Spec.ClusterIP}
	}
	return svc.Spec.ClusterIPs
}

// families returns the family of each entry of spec.clusterIPs to be: those that
// are named, those of the addresses, the cluster's default, and the other one
// where the policy wants both (KEP-563).
func families(svc, old *corev1.Service, ips []string, cluster []corev1.IPFamily) []corev1.IPFamily {
	policy := corev1.IPFamilyPolicySingleStack
	switch {
	case svc.Spec.IPFamilyPolicy != nil:
		policy = *svc.Spec.IPFamilyPolicy
	case old != nil && old.Spec.IPFamilyPolicy != nil:
		policy = *old.Spec.IPFamilyPolicy
	}
	out := slices.Clone(svc.Spec.IPFamilies)
	for i := len(out); i < len(ips); i++ {
		if a, ok := netaddr.Parse(ips[i]); ok {
			out = append(out, alloc.FamilyOf(a))
		}
	}
	if len(out) == 0 {
		out = append(out, cluster[0])
	}
	if policy == corev1.IPFamilyPolicySingleStack {
		return out[:1]
	}
	for _, f := range cluster {
		if len(out) < 2 && !slices.Contains(out, f) {
			out = append(out, f)
		}
	}
	return out
}

// sameDualStack reports whether the API server leaves the Service's addresses
// alone, however many they are: it never adds one to a PreferDualStack Service
// only because the cluster became dual-stack.
func sameDualStack(svc, old *corev1.Service, ips, before []string) bool {
	prefer := func(s *corev1.Service) bool {
		return s.Spec.IPFamilyPolicy == nil || *s.Spec.IPFamilyPolicy == corev1.IPFamilyPolicyPreferDualStack
	}
	return svc.Spec.IPFamilyPolicy != nil && prefer(svc) && prefer(old) && svc.Spec.Type == old.Spec.Type &&
		slices.Equal(ips, before) && slices.Equal(svc.Spec.IPFamilies, old.Spec.IPFamilies)
}

func portNeeds(svc, old *corev1.Service) []PortNeed {
	var out []PortNeed
	if canHaveNodePorts(svc) {
		out = nodePortNeeds(svc, old)
	}
	if needsHealthCheck(svc) && (old == nil || !needsHealthCheck(old)) {
		out = append(out, PortNeed{Asked: port(svc.Spec.HealthCheckNodePort)})
	}
	return out
}

// nodePortNeeds groups spec.ports by service port: TCP and UDP of one port get
// one NodePort.
func nodePortNeeds(svc, old *corev1.Service) []PortNeed {
	had := map[int32]bool{}
	if old != nil {
		for _, p := range old.Spec.Ports {
			had[p.NodePort] = p.NodePort != 0
		}
	}
	numbers := carryOver(svc, old)
	byPort := map[int32]int32{} // service port -> its NodePort, asked for or carried over
	for i, p := range svc.Spec.Ports {
		if numbers[i] != 0 && byPort[p.Port] == 0 {
			byPort[p.Port] = numbers[i]
		}
	}
	var out []PortNeed
	place := map[int32]int{} // NodePort asked for, or minus the service port -> its place in out
	for i, p := range svc.Spec.Ports {
		number := numbers[i]
		if number == 0 && !allocatesNodePorts(svc) {
			continue
		}
		if number == 0 {
			number = byPort[p.Port]
		}
		if number != 0 && had[number] && p.NodePort == number {
			continue
		}
		if numbers[i] != 0 && p.NodePort == 0 {
			continue // the API server carries it over
		}
		key := number
		if key == 0 {
			key = -p.Port
		}
		at, ok := place[key]
		if !ok {
			at = len(out)
			place[key] = at
			out = append(out, PortNeed{Asked: port(number)})
		}
		out[at].Indexes = append(out[at].Indexes, i)
	}
	return out
}

// carryOver returns the NodePorts of svc as the API server completes them from
// old: by name of the port, where both can have NodePorts and the number is not
// used for another port now.
func carryOver(svc, old *corev1.Service) []int32 {
	numbers := make([]int32, len(svc.Spec.Ports))
	for i, p := range svc.Spec.Ports {
		numbers[i] = p.NodePort
	}
	if old == nil || !canHaveNodePorts(old) || !canHaveNodePorts(svc) {
		return numbers
	}
	before := map[string]int32{}
	for _, p := range old.Spec.Ports {
		before[p.Name] = p.NodePort
	}
	asked := slices.Clone(numbers)
	for i, p := range svc.Spec.Ports {
		if number := before[p.Name]; p.NodePort == 0 && !slices.Contains(asked, number) {
			numbers[i] = number
		}
	}
	return numbers
}

func canHaveNodePorts(svc *corev1.Service) bool {
	return svc.Spec.Type == corev1.ServiceTypeNodePort || svc.Spec.Type == corev1.ServiceTypeLoadBalancer
}

// allocatesNodePorts reports whether the Service gets NodePorts without asking.
func allocatesNodePorts(svc *corev1.Service) bool {
	switch svc.Spec.Type {
	case corev1.ServiceTypeNodePort:
		return true
	case corev1.ServiceTypeLoadBalancer:
		return svc.Spec.AllocateLoadBalancerNodePorts == nil || *svc.Spec.AllocateLoadBalancerNodePorts
	default:
		return false
	}
}

func needsHealthCheck(svc *corev1.Service) bool {
	return svc.Spec.Type == corev1.ServiceTypeLoadBalancer && svc.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal
}

// port is a port number of the API, and 0 for one that is none.
func port(n int32) uint16 {
	if n < 0 || n > 65535 {
		return 0
	}
	return uint16(n)
}

// valuesOf returns the addresses and ports that a stored Service has.
func valuesOf(svc *corev1.Service) (v4, v6 []netip.Addr, ports []uint16) {
	if hasClusterIP(svc) {
		for _, s := range clusterIPs(svc) {
			switch a, ok := netaddr.Parse(s); {
			case !ok:
			case a.Is4():
				v4 = append(v4, a)
			default:
				v6 = append(v6, a)
			}
		}
	}
	return v4, v6, portsOf(svc)
}

func portsOf(svc *corev1.Service) (ports []uint16) {
	add := func(n int32) {
		if n := port(n); n != 0 && !slices.Contains(ports, n) {
			ports = append(ports, n)
		}
	}
	for _, p := range svc.Spec.Ports {
		add(p.NodePort)
	}
	add(svc.Spec.HealthCheckNodePort)
	return ports
}

// Lacks reports whether a stored Service has no ClusterIP or lacks a NodePort
// that it should have: the API server that stored it does not allocate.
func Lacks(svc *corev1.Service) bool {
	if hasClusterIP(svc) && len(clusterIPs(svc)) == 0 {
		return true
	}
	if allocatesNodePorts(svc) && slices.ContainsFunc(svc.Spec.Ports, func(p corev1.ServicePort) bool { return p.NodePort == 0 }) {
		return true
	}
	return needsHealthCheck(svc) && svc.Spec.HealthCheckNodePort == 0
}
