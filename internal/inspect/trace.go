// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/causeway-lb/causeway/internal/proxy/model"
)

// Packet is the first packet of a connection, as it reaches this node.
type Packet struct {
	Source, Destination netip.Addr
	Port                uint16
	Protocol            model.Protocol
	// Self: this node sends it. Interface: where it comes in otherwise.
	Self      bool
	Interface string
	// ToSelf: Destination is an address of this node.
	ToSelf bool
}

// Verdict is what becomes of a packet.
type Verdict uint8

// The verdicts.
const (
	// NotService: the packet is none of a Service's and goes its way.
	NotService Verdict = iota
	// Forwarded to one of the endpoints.
	Forwarded
	// Rejected with an answer.
	Rejected
	// Dropped without one.
	Dropped
)

// String is the verdict in words.
func (v Verdict) String() string {
	return [...]string{"not a Service's", "forwarded", "rejected", "dropped"}[v]
}

// Path is the way of a packet.
type Path struct {
	Steps   []Step
	Verdict Verdict
	// Reason is why, in one sentence.
	Reason string
	// Service is whose packet it is, if it is one's.
	Service types.NamespacedName
	// Endpoints are where it can end up, each with the probability that it does.
	Endpoints []Hop
	// Sticky: the client gets the same endpoint again, for Affinity or, if that is
	// 0, as long as the endpoints stay the same.
	Sticky   bool
	Affinity time.Duration
}

// Hop is an endpoint on a Path.
type Hop struct {
	Endpoint
	// Masqueraded: the endpoint sees this node's address instead of the client's.
	Masqueraded bool
}

// Step is one decision on a Path.
type Step struct {
	What string
	// Object is what decides in terms of the API, Rule in the kernel's; "" if nothing.
	Object, Rule string
}

// Trace follows a packet through s. It takes names and reasons from d, and facts about
// Services from s only: with Expected(d, mode) it tells what should happen, with a
// kernel's State what does.
func Trace(d model.Desired, s State, p Packet) Path {
	t := tracer{d: &d, s: &s, p: p}
	t.run()
	return t.path
}

// tracer is the work on one packet.
type tracer struct {
	d      *model.Desired
	s      *State
	p      Packet
	path   Path
	inside bool
	owner  owned // its Frontend is nil where no Service has what is dialled
}

func (t *tracer) step(object, rule, format string, args ...any) {
	t.path.Steps = append(t.path.Steps, Step{What: fmt.Sprintf(format, args...), Object: object, Rule: rule})
}

func (t *tracer) end(v Verdict, format string, args ...any) {
	t.path.Verdict, t.path.Reason = v, fmt.Sprintf(format, args...)
}

func (t *tracer) run() {
	for _, f := range t.s.Faults {
		t.step("", f.Rule, "Not as the mode makes it, so the kernel may do otherwise: %s", f)
	}
	t.from()
	key := model.Key{Addr: t.p.Destination, Port: t.p.Port, Protocol: t.p.Protocol}
	f := t.s.Frontends[key]
	nodePort := model.Key{Addr: model.FamilyOf(key.Addr).Unspecified(), Port: key.Port, Protocol: key.Protocol}
	answers, rule := find(t.s.NodePorts, key.Addr)
	if f == nil && t.p.ToSelf && answers {
		if f = t.s.Frontends[nodePort]; f != nil {
			t.step("Node "+t.d.Node.Name, rule, "NodePorts answer on %s", key.Addr)
			key = nodePort
		}
	}
	t.owner = owners(*t.d)[key]
	if f == nil {
		t.nobody(key, nodePort, answers)
		return
	}
	v := f.Inside
	switch {
	case key == nodePort && t.s.Loopback != nil && t.p.Destination.IsLoopback():
		v = f.Loopback
	case !t.inside:
		v = f.Outside
	}
	if v == nil {
		t.end(NotService, "the kernel has nothing for %s from this side, so the packet goes its way", key)
		return
	}
	t.path.Service = t.owner.service
	t.step(t.object(), v.Rule, "%s belongs to %s", key, t.object())
	if why, ok := t.s.Rejected[t.owner.service]; ok {
		t.step(t.object(), "", "The kernel rejects changes of the Service and has an earlier state of it: %s", why)
	}
	t.view(f, v)
}

// from says where the packet comes from.
func (t *tracer) from() {
	local, rule := find(t.s.LocalPods, t.p.Source)
	if len(t.d.Node.PodInterfaces) > 0 {
		local, rule = t.d.Node.IsLocalPod(t.p.Source, t.p.Interface), ""
	}
	node := "Node " + t.d.Node.Name
	switch {
	case t.p.Self:
		t.step(node, "", "The node itself sends the packet: it comes from inside")
	case local:
		t.step(node, rule, "A Pod of this node sends the packet: it comes from inside")
	default:
		t.step(node, "", "%s is neither this node nor a Pod of it: the packet comes from outside", t.p.Source)
	}
	t.inside = t.p.Self || local
}

func find(rs []Range, a netip.Addr) (bool, string) {
	for _, r := range rs {
		if r.First.BitLen() == a.BitLen() && r.First.Compare(a) <= 0 && a.Compare(r.Last) <= 0 {
			return true, r.Rule
		}
	}
	return false, ""
}

func (t *tracer) object() string {
	if t.owner.Frontend == nil {
		return "no Service"
	}
	return fmt.Sprintf("Service %s port %s", t.owner.service, t.owner.port())
}

// nobody: the kernel has no frontend that the packet dials.
func (t *tracer) nobody(key, nodePort model.Key, answers bool) {
	if c, ok := t.s.Closed[key.Addr]; ok && (c.Inside || !t.inside && !t.p.ToSelf) {
		t.step("", c.Rule, "%s is an address of Services", key.Addr)
		if t.end(Rejected, "no Service has port %d/%s at this address", key.Port, key.Protocol); t.owner.Frontend != nil {
			t.end(Rejected, "the kernel lacks the frontend of %s and refuses its port like one without a Service", t.object())
		}
		return
	}
	atNode, isNodePort := owners(*t.d)[nodePort]
	switch {
	case t.owner.Frontend != nil || t.p.ToSelf && answers && isNodePort:
		t.end(NotService, "the kernel lacks the frontend of the Service, so the packet goes its way")
	case t.p.ToSelf && isNodePort:
		t.end(NotService, "the NodePort of %s does not answer on %s, which is not among the node's NodePort addresses", atNode.service, key.Addr)
	case t.p.ToSelf && t.healthCheck():
	case !t.p.ToSelf && !slices.ContainsFunc(t.d.Node.ExternalIPRanges, func(p netip.Prefix) bool { return p.Contains(key.Addr) }):
		t.end(NotService, "no Service has %s on this node, and as an external IP the address is not allowed (agent flag --external-ip-ranges)", key)
	default:
		t.end(NotService, "no Service has %s on this node", key)
	}
}

// healthCheck reports whether the packet is a load balancer's question.
func (t *tracer) healthCheck() bool {
	for name, svc := range t.d.Services {
		if svc.HealthCheckPort == t.p.Port && t.p.Protocol == model.TCP {
			t.path.Service = name
			t.end(NotService, "the agent answers: it is the healthCheckNodePort of %s, with %d ready endpoints on this node", name, svc.LocalReady)
			return true
		}
	}
	return false
}

// view: a frontend has the packet.
func (t *tracer) view(f *Frontend, v *View) {
	if v.Restricted {
		ok, rule := find(v.SourceRanges, t.p.Source)
		if !ok {
			t.end(Dropped, "loadBalancerSourceRanges of the Service do not include %s", t.p.Source)
			return
		}
		t.step(t.object(), rule, "loadBalancerSourceRanges include %s", t.p.Source)
	}
	switch _, listens := t.s.Listeners[Listener{model.FamilyOf(t.p.Destination), t.p.Protocol, !t.inside}]; {
	case v.Action == model.Reject:
		t.end(Rejected, "no endpoint of the Service is ready or serving, on any node")
	case v.Action == model.Drop:
		t.end(Dropped, "%s is Local and no endpoint on this node is ready or serving%s", t.policy(), t.health())
	case t.s.Proxies && !listens:
		t.end(Dropped, "the proxy does not listen: the agent is down or starts")
	case len(v.Endpoints) == 0:
		t.end(Dropped, "the kernel lacks the endpoints of the frontend")
	default:
		t.forward(f, v)
	}
}

// policy names the one that leaves a view without endpoints.
func (t *tracer) policy() string {
	if t.owner.Frontend != nil && t.owner.Kind != model.ClusterIP {
		return "externalTrafficPolicy"
	}
	return "internalTrafficPolicy"
}

// health says what external load balancers are told.
func (t *tracer) health() string {
	svc := t.d.Services[t.owner.service]
	if svc == nil || svc.HealthCheckPort == 0 {
		return ""
	}
	return fmt.Sprintf("; the health check at port %d tells load balancers of %d", svc.HealthCheckPort, svc.LocalReady)
}

func (t *tracer) forward(f *Frontend, v *View) {
	t.path.Sticky, t.path.Affinity = v.Affinity > 0 || v.Hashed, v.Affinity
	switch {
	case v.Affinity > 0:
		t.step(t.object(), "", "sessionAffinity ClientIP: a client that has connected in the last %s gets its endpoint again", v.Affinity)
	case v.Hashed:
		t.step(t.object(), "", "The client's address alone selects the endpoint")
	}
	left := 1.0
	for _, e := range v.Endpoints {
		hop := Hop{Endpoint: e}
		var why string
		hop.Masqueraded, why = t.masquerades(f, e.Addr())
		t.path.Endpoints = append(t.path.Endpoints, hop)
		t.step("EndpointSlice endpoint "+e.AddrPort.String(), e.Rule, "%s of new connections go to %s, %s", percent(e.Share), e.AddrPort, why)
		left -= e.Share
	}
	if left > maxError {
		t.step("", "", "%s of new connections find no endpoint, as the kernel lacks elements", percent(left))
	}
	t.end(Forwarded, "%d endpoints take connections from %s", len(v.Endpoints), map[bool]string{true: "inside", false: "outside"}[t.inside])
}

// masquerades tells whether an endpoint sees the node's address: see the table in
// package model.
func (t *tracer) masquerades(f *Frontend, ep netip.Addr) (bool, string) {
	own := "masqueraded: "
	_, hairpin := t.s.Hairpin[ep]
	_, local := t.s.LocalEndpoints[ep]
	_, address := t.s.Closed[t.p.Source]
	switch {
	case t.s.Proxies:
		return true, "from the node's address, as the proxy connects"
	case t.p.Self && t.p.Source == ep:
		return false, "without leaving the node"
	case t.d.Node.MasqueradeAll && !f.KeepsClient:
		return true, own + "the agent masquerades all"
	case hairpin && t.p.Source == ep:
		return true, own + "the client is the endpoint itself (hairpin)"
	case t.s.Local && address:
		return true, own + "the client's address is one of Services"
	case t.inside && !t.p.Self:
		return false, "with the client's address, as replies to Pods of this node return by themselves"
	case t.p.Source.IsLoopback():
		return true, own + "replies to a loopback address would not return"
	case local:
		return false, "with the client's address, as the endpoint is on this node"
	}
	return true, own + "replies from another node would not return"
}
