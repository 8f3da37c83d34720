// SPDX-License-Identifier: Apache-2.0

package endpointslice

import (
	"cmp"
	"math"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// setHints decides who should prefer which endpoint. Only ready endpoints have
// hints.
//
//	topology-mode: Auto (KEP-2433)               zones get endpoints by their CPU
//	trafficDistribution (KEP-4444, KEP-3015):
//	  PreferSameZone, PreferClose                the endpoint's own zone
//	  PreferSameNode                             its own zone and Node
//
// The annotation wins, as it does in kube-controller-manager.
func (l *layout) setHints(family discoveryv1.AddressType, targets []target, in *Input) {
	if TopologyAuto(in.Service) {
		l.readHints(family, targets)
		if reason := assignZones(targets, in.Shares); reason != "" {
			l.plan.Problems = append(l.plan.Problems, Problem{ReasonHintsUnavailable,
				"no topology hints for " + string(family) + " endpoints: " + reason})
		}
		return
	}
	zone, node := closeHints(in.Service)
	for i := range targets {
		t := &targets[i]
		if zone && t.conditions.ready {
			t.hint.zone = t.zone
		}
		if node && t.conditions.ready {
			t.hint.node = t.node
		}
	}
}

// TopologyAuto reports whether the Service asks for hints by zone capacity.
func TopologyAuto(service *corev1.Service) bool {
	mode, ok := service.Annotations[corev1.DeprecatedAnnotationTopologyAwareHints]
	if !ok {
		mode = service.Annotations[corev1.AnnotationTopologyMode]
	}
	return mode == "Auto" || mode == "auto"
}

func closeHints(service *corev1.Service) (zone, node bool) {
	if service.Spec.TrafficDistribution == nil {
		return false, false
	}
	switch *service.Spec.TrafficDistribution {
	case corev1.ServiceTrafficDistributionPreferClose, corev1.ServiceTrafficDistributionPreferSameZone:
		return true, false
	case corev1.ServiceTrafficDistributionPreferSameNode:
		return true, true
	}
	return false, false
}

// readHints notes for each target the zone for which its endpoint is hinted now.
func (l *layout) readHints(family discoveryv1.AddressType, targets []target) {
	hinted := map[string]string{}
	keyOf := podKey(l.template.namespace)
	for _, slice := range l.existing[family] {
		for i := range slice.Endpoints {
			endpoint := &slice.Endpoints[i]
			key, ok := keyOf(endpoint, "")
			if ok && endpoint.Hints != nil && len(endpoint.Hints.ForZones) == 1 && hinted[key] == "" {
				hinted[key] = endpoint.Hints.ForZones[0].Name
			}
		}
	}
	for i := range targets {
		targets[i].hint.before = hinted[targets[i].key]
	}
}

// Shares is which part of the cluster's CPU each zone has.
type Shares struct {
	// ByZone sums up to 1; nil if hints cannot be given.
	ByZone map[string]float64
	// Reason is why ByZone is nil.
	Reason string
}

// ZoneShares weighs the zones by the allocatable CPU of their ready Nodes. It returns no
// shares if one of those Nodes lacks a zone or CPU, or if there is one zone only: hints
// by capacity would then do harm or nothing.
func ZoneShares(nodes []Node) Shares {
	total, byZone := int64(0), map[string]int64{}
	for i := range nodes {
		node := &nodes[i]
		if !node.Ready || node.ControlPlane {
			continue
		}
		if node.Zone == "" || node.MilliCPU == 0 {
			return Shares{Reason: "a ready Node has no topology.kubernetes.io/zone label or no allocatable CPU"}
		}
		byZone[node.Zone] += node.MilliCPU
		total += node.MilliCPU
	}
	if len(byZone) < 2 {
		return Shares{Reason: "the ready Nodes are in fewer than two zones"}
	}
	shares := make(map[string]float64, len(byZone))
	for zone, cpu := range byZone {
		shares[zone] = float64(cpu) / float64(total)
	}
	return Shares{ByZone: shares}
}

// overload is by how much an endpoint may get more than its fair share of the
// traffic before hints move.
const overload = 0.2

// zoneLoad is a zone's count of hinted endpoints while they are assigned.
type zoneLoad struct {
	name          string
	desired       float64
	minimum, goal int
	members       []*target
}

// assignZones sets a zone hint on each ready target so that no zone has so few endpoints
// that one of them is overloaded. Hints stay as they are while that holds. If it cannot
// hold, there are no hints, and it returns why.
func assignZones(targets []target, shares Shares) string {
	var ready []*target
	for i := range targets {
		if targets[i].conditions.ready {
			ready = append(ready, &targets[i])
		}
	}
	slices.SortFunc(ready, func(a, b *target) int { return cmp.Compare(a.key, b.key) })
	loads, reason := zoneLoads(len(ready), shares)
	if reason != "" {
		return reason
	}
	for _, t := range ready {
		if t.zone == "" {
			return "an endpoint's Node has no topology.kubernetes.io/zone label"
		}
	}
	byZone := make(map[string]*zoneLoad, len(loads))
	for _, load := range loads {
		byZone[load.name] = load
	}
	unassigned := &zoneLoad{}
	for _, t := range ready {
		load := byZone[t.hint.before]
		if load == nil {
			load = byZone[t.zone]
		}
		if load == nil {
			load = unassigned
		}
		load.members = append(load.members, t)
	}
	rebalance(loads, unassigned)
	for _, load := range loads {
		for _, t := range load.members {
			t.hint.zone = load.name
		}
	}
	return ""
}

// zoneLoads returns the zones, sorted by name, with how many of n endpoints each
// should have, and at least has to.
func zoneLoads(n int, shares Shares) ([]*zoneLoad, string) {
	if shares.ByZone == nil {
		return nil, shares.Reason
	}
	if n < len(shares.ByZone) {
		return nil, "there are fewer ready endpoints than zones"
	}
	var loads []*zoneLoad
	left := n
	for name, share := range shares.ByZone {
		desired := share * float64(n)
		minimum := int(math.Ceil(desired / (1 + overload)))
		loads = append(loads, &zoneLoad{name: name, desired: desired, minimum: minimum, goal: minimum})
		left -= minimum
	}
	if left < 0 {
		return nil, "the zones' CPU differs too much for the number of ready endpoints"
	}
	slices.SortFunc(loads, func(a, b *zoneLoad) int { return cmp.Compare(a.name, b.name) })
	for ; left > 0; left-- {
		neediest := slices.MaxFunc(loads, func(a, b *zoneLoad) int {
			return cmp.Or(cmp.Compare(a.desired-float64(a.goal), b.desired-float64(b.goal)), cmp.Compare(b.name, a.name))
		})
		neediest.goal++
	}
	return loads, ""
}

// rebalance moves members until every zone has its goal, if a zone has less than
// its minimum; else it only finds homes for the unassigned.
func rebalance(loads []*zoneLoad, unassigned *zoneLoad) {
	short := false
	for _, load := range loads {
		short = short || len(load.members) < load.minimum
	}
	if !short && len(unassigned.members) == 0 {
		return
	}
	for _, receiver := range loads {
		for len(receiver.members) < receiver.goal {
			from, i := donor(loads, unassigned, receiver)
			receiver.members = append(receiver.members, from.members[i])
			from.members = slices.Delete(from.members, i, i+1)
		}
	}
}

// donor picks the member that moves to the receiver: a unassigned one, else from a
// zone that has more than its goal one that comes home, else one that is away
// from home already, else the last one. There always is one, since the goals
// sum up to the number of members.
func donor(loads []*zoneLoad, unassigned, receiver *zoneLoad) (*zoneLoad, int) {
	if n := len(unassigned.members); n > 0 {
		return unassigned, n - 1
	}
	var best *zoneLoad
	bestIndex, bestRank := 0, -1
	for _, load := range loads {
		if len(load.members) <= load.goal {
			continue
		}
		for i, t := range load.members {
			rank := 0
			switch {
			case t.zone == receiver.name:
				rank = 2
			case t.zone != load.name:
				rank = 1
			}
			if rank >= bestRank {
				best, bestIndex, bestRank = load, i, rank
			}
		}
	}
	return best, bestIndex
}
