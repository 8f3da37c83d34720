// SPDX-License-Identifier: Apache-2.0

package model

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/causeway-lb/causeway/api/v1alpha1"
	"github.com/causeway-lb/causeway/internal/netaddr"
)

const (
	// ServiceProxyNameLabel gives a Service to a proxy other than the default.
	ServiceProxyNameLabel = "service.kubernetes.io/service-proxy-name"

	defaultAffinity = 3 * time.Hour // v1.DefaultClientIPServiceAffinitySeconds
	maxAffinity     = 24 * time.Hour
)

// nodeFacts is a Node with what many Services look up.
type nodeFacts struct {
	Node
	dead map[string]bool
}

func newNodeFacts(n Node) *nodeFacts {
	f := &nodeFacts{Node: n, dead: map[string]bool{}}
	for _, d := range n.DeadNodes {
		f.dead[d] = true
	}
	return f
}

// ComputeService gives what node does for one Service, before conflicts with
// other Services are settled. A Service that is not for this proxy, headless,
// or of type ExternalName has no frontends.
func ComputeService(in Input, node Node) (*Service, []Problem) {
	return computeService(in, newNodeFacts(node))
}

func computeService(in Input, node *nodeFacts) (*Service, []Problem) {
	svc := in.Service
	c := &computation{in: in, node: node, out: &Service{
		Name: types.NamespacedName{Namespace: svc.Namespace, Name: svc.Name},
	}}
	if !isProxied(svc, node.ServiceProxyName) {
		return c.out, nil
	}
	c.slices()
	c.out.Scheduler = c.scheduler()
	for _, raw := range clusterIPs(svc) {
		if addr, ok := c.address("spec.clusterIPs", raw); ok {
			c.clusterIPs = append(c.clusterIPs, addr)
		}
	}
	for _, addr := range c.clusterIPs {
		c.family(addr)
	}
	c.limitSlots()
	c.healthCheck()
	slices.SortStableFunc(c.out.Frontends, func(a, b Frontend) int { return a.Key.Compare(b.Key) })
	c.compact()
	return c.out, c.problems
}

// isProxied says whether the Service has frontends on nodes at all, and this
// proxy is the one that programs them.
func isProxied(svc *corev1.Service, proxyName string) bool {
	name, labelled := svc.Labels[ServiceProxyNameLabel]
	return name == proxyName && labelled == (proxyName != "") &&
		svc.Spec.Type != corev1.ServiceTypeExternalName &&
		svc.Spec.ClusterIP != corev1.ClusterIPNone && svc.Spec.ClusterIP != ""
}

func clusterIPs(svc *corev1.Service) []string {
	if len(svc.Spec.ClusterIPs) > 0 {
		return svc.Spec.ClusterIPs
	}
	return []string{svc.Spec.ClusterIP}
}

// computation is the work on one Service.
type computation struct {
	in       Input
	node     *nodeFacts
	out      *Service
	problems []Problem
	// clusterIPs are the Service's, at most one of a family.
	clusterIPs []netip.Addr
	// buffer is where the candidates of one port are collected.
	buffer []candidate
	// localReady collects the addresses of ready endpoints on this node.
	localReady map[netip.Addr]bool
}

func (c *computation) problem(reason, format string, args ...any) {
	p := Problem{Service: c.out.Name, Reason: reason, Message: fmt.Sprintf(format, args...)}
	c.problems = tell(c.problems, p)
}

// maxAlike is how many problems of one kind are told of a Service: each becomes an
// event, on every node.
const maxAlike = 20

// tell appends a problem that is not among ps, unless many like it are.
func tell(ps []Problem, p Problem) []Problem {
	alike := 0
	for i := range ps {
		if ps[i] == p {
			return ps
		}
		if ps[i].Reason == p.Reason {
			alike++
		}
	}
	switch {
	case alike > maxAlike:
		return ps
	case alike == maxAlike:
		p.Message = "there are more problems of this kind than are told"
	}
	return append(ps, p)
}

// slices puts the slices into an order of their own, so that the result does
// not depend on the caller's.
func (c *computation) slices() {
	sls := slices.Clone(c.in.Slices)
	slices.SortFunc(sls, func(a, b *sliceT) int { return strings.Compare(a.Name, b.Name) })
	c.in.Slices = sls
}

// family adds the frontends of one IP family.
func (c *computation) family(clusterIP netip.Addr) {
	svc, fam := c.in.Service, FamilyOf(clusterIP)
	lbIPs, externalIPs := c.loadBalancerIPs(fam), c.externalIPs(fam)
	ranges, restricted := c.sourceRanges(fam, lbIPs)
	ports := len(svc.Spec.Ports)
	lbIPs, externalIPs = c.limitAddresses(ports, lbIPs, externalIPs)
	ranges = c.limitRanges(ranges, ports*len(lbIPs))
	sources := c.sources(fam)
	for i := range svc.Spec.Ports {
		port := &svc.Spec.Ports[i]
		proto, ok := protocolOf(port.Protocol)
		if !ok || port.Port < 1 || port.Port > 65535 {
			c.problem("InvalidPort", "port %d/%s cannot be programmed: use TCP, UDP or SCTP and 1-65535", port.Port, port.Protocol)
			continue
		}
		cs := c.candidates(sources[i])
		c.countLocal(cs)
		t := newTargets(svc, choose(cs, c.node))
		serving := servingOf(cs, proto)
		add := func(kind Kind, addr netip.Addr, number int32, inside, outside *Target) *Frontend {
			c.out.Frontends = append(c.out.Frontends, Frontend{
				Key:  Key{Addr: addr, Port: uint16(number), Protocol: proto},
				Kind: kind, KeepsClient: kind != ClusterIP && svc.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal,
				Group: Key{Addr: clusterIP, Port: uint16(port.Port), Protocol: proto}, PortName: port.Name, Inside: inside, Outside: outside, Serving: serving,
			})
			return &c.out.Frontends[len(c.out.Frontends)-1]
		}
		add(ClusterIP, clusterIP, port.Port, t.internal, t.internal)
		for _, ip := range lbIPs {
			f := add(LoadBalancerIP, ip, port.Port, t.cluster, t.announced)
			f.SourceRanges, f.Restricted = ranges, restricted
		}
		for _, ip := range externalIPs {
			add(ExternalIP, ip, port.Port, t.cluster, t.external)
		}
		if usesNodePorts(svc) && port.NodePort > 0 && port.NodePort <= 65535 {
			add(NodePort, fam.Unspecified(), port.NodePort, t.cluster, t.external)
		}
	}
}

func usesNodePorts(svc *corev1.Service) bool {
	return svc.Spec.Type == corev1.ServiceTypeNodePort || svc.Spec.Type == corev1.ServiceTypeLoadBalancer
}

func protocolOf(p corev1.Protocol) (Protocol, bool) {
	switch p {
	case corev1.ProtocolTCP, "":
		return TCP, true
	case corev1.ProtocolUDP:
		return UDP, true
	case corev1.ProtocolSCTP:
		return SCTP, true
	}
	return 0, false
}

// targets are what the frontends of one port share.
type targets struct {
	// internal serves the ClusterIP, external the other frontends for clients
	// outside, cluster the other frontends for clients inside. announced serves
	// load balancer addresses for clients outside; it differs from external for
	// Services that share theirs.
	internal, external, cluster, announced *Target
}

func newTargets(svc *corev1.Service, ch choice) targets {
	affinity := affinityOf(svc)
	cluster := newTarget(ch.cluster, ch.any, affinity)
	t := targets{internal: cluster, external: cluster, cluster: cluster, announced: cluster}
	internalLocal := svc.Spec.InternalTrafficPolicy != nil && *svc.Spec.InternalTrafficPolicy == corev1.ServiceInternalTrafficPolicyLocal
	externalLocal := svc.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal
	if internalLocal || externalLocal {
		local := newTarget(ch.local, ch.any, affinity)
		if local.Equal(cluster) {
			local = cluster
		}
		if internalLocal {
			t.internal = local
		}
		if externalLocal {
			t.external, t.announced = local, local
			if local.Action == Drop && svc.Annotations[v1alpha1.SharingKeyAnnotation] != "" {
				t.announced = cluster
			}
		}
	}
	return t
}

// newTarget forwards to eps; without any, it rejects if nobody serves the
// port, and drops if only others may.
func newTarget(eps []Endpoint, any bool, affinity time.Duration) *Target {
	switch {
	case len(eps) > 0:
		return &Target{Action: Forward, Endpoints: eps, Affinity: affinity}
	case any:
		return &Target{Action: Drop}
	}
	return &Target{Action: Reject}
}

func affinityOf(svc *corev1.Service) time.Duration {
	if svc.Spec.SessionAffinity != corev1.ServiceAffinityClientIP {
		return 0
	}
	d := defaultAffinity
	if cfg := svc.Spec.SessionAffinityConfig; cfg != nil && cfg.ClientIP != nil && cfg.ClientIP.TimeoutSeconds != nil {
		d = time.Duration(*cfg.ClientIP.TimeoutSeconds) * time.Second
	}
	return min(max(d, time.Second), maxAffinity)
}

// loadBalancerIPs are the ingress addresses that this node answers for: not
// those behind a proxy of the provider (ipMode Proxy, KEP-1860).
func (c *computation) loadBalancerIPs(fam Family) []netip.Addr {
	if c.in.Service.Spec.Type != corev1.ServiceTypeLoadBalancer {
		return nil
	}
	var ips []netip.Addr
	for _, ing := range c.in.Service.Status.LoadBalancer.Ingress {
		if ing.IP == "" || ing.IPMode != nil && *ing.IPMode == corev1.LoadBalancerIPModeProxy {
			continue
		}
		ip, ok := c.address("status.loadBalancer.ingress", ing.IP)
		if ok && FamilyOf(ip) == fam {
			ips = append(ips, ip)
		}
	}
	return ips
}

// externalIPs are those that the administrator allows.
func (c *computation) externalIPs(fam Family) []netip.Addr {
	var ips []netip.Addr
	for _, raw := range c.in.Service.Spec.ExternalIPs {
		ip, ok := c.address("spec.externalIPs", raw)
		if !ok || FamilyOf(ip) != fam {
			continue
		}
		if !containsAddr(c.node.ExternalIPRanges, ip) {
			c.problem("ExternalIPNotAllowed", "external IP %s is in no range that the administrator allows "+
				"(agent flag --external-ip-ranges), so no node answers for it", ip)
			continue
		}
		ips = append(ips, ip)
	}
	return ips
}

func containsAddr(ps []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(ps, func(p netip.Prefix) bool { return p.Contains(a) })
}

// address parses an address of a field that users or other controllers write.
func (c *computation) address(field, raw string) (netip.Addr, bool) {
	ip, ok := netaddr.Parse(raw)
	if !ok || ip.IsUnspecified() || ip.IsLoopback() || ip.IsMulticast() {
		c.problem("InvalidAddress", "%s has %q, which nodes cannot answer for: use a unicast IP address", field, raw)
		return netip.Addr{}, false
	}
	return ip, true
}

// sourceRanges are the clients that may use the load balancer addresses. A
// range that covers everything of this family lifts the restriction. Ranges
// of only the other family close this one: who lists 192.0.2.0/24 does not
// mean all of IPv6. An unreadable range is left out, which only ever closes.
//
// Where somebody has bound a load balancer address to the node, the kernel gives
// what the node itself sends there that address as its source. So ranges that
// admit the node admit the Service's own addresses.
func (c *computation) sourceRanges(fam Family, own []netip.Addr) (ranges []netip.Prefix, restricted bool) {
	raws := c.in.Service.Spec.LoadBalancerSourceRanges
	for _, raw := range raws {
		p, ok := netaddr.ParsePrefix(raw)
		if !ok {
			c.problem("InvalidSourceRange", "spec.loadBalancerSourceRanges has %q, which is not a CIDR: nobody is admitted by it", raw)
			continue
		}
		if FamilyOf(p.Addr()) != fam {
			continue
		}
		if p.Bits() == 0 {
			return nil, false
		}
		ranges = append(ranges, p)
	}
	if slices.ContainsFunc(c.node.Addresses, func(a netip.Addr) bool { return containsAddr(ranges, a) }) {
		for _, ip := range own {
			ranges = append(ranges, netip.PrefixFrom(ip, ip.BitLen()))
		}
	}
	return Disjoint(ranges), len(raws) > 0
}

// countLocal notes the ready endpoints on this node for the health check.
func (c *computation) countLocal(cs []candidate) {
	for i := range cs {
		if cs[i].Local && cs[i].ready {
			if c.localReady == nil {
				c.localReady = map[netip.Addr]bool{}
			}
			c.localReady[cs[i].AddrPort.Addr()] = true
		}
	}
}

func (c *computation) healthCheck() {
	spec := &c.in.Service.Spec
	if spec.Type != corev1.ServiceTypeLoadBalancer || spec.ExternalTrafficPolicy != corev1.ServiceExternalTrafficPolicyLocal {
		return
	}
	if spec.HealthCheckNodePort < 1 || spec.HealthCheckNodePort > 65535 {
		c.problem("NoHealthCheckNodePort", "spec.healthCheckNodePort is not set, so load balancers cannot ask which nodes have endpoints")
		return
	}
	c.out.HealthCheckPort = uint16(spec.HealthCheckNodePort)
	c.out.LocalReady = len(c.localReady)
}

// compact leaves one frontend per key: a Service can name an address twice.
func (c *computation) compact() {
	fs := c.out.Frontends
	slices.SortStableFunc(fs, func(a, b Frontend) int {
		if d := a.Key.Compare(b.Key); d != 0 {
			return d
		}
		return int(a.Kind) - int(b.Kind)
	})
	c.out.Frontends = slices.CompactFunc(fs, func(a, b Frontend) bool { return a.Key == b.Key })
}
