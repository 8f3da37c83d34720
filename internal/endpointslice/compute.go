// SPDX-License-Identifier: Apache-2.0

package endpointslice

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/causeway-lb/causeway/internal/netaddr"
)

// MaxEndpoints is how many endpoints a slice holds at most, unless Input says
// otherwise: the value that kube-controller-manager defaults to. The API allows
// 1,000.
const MaxEndpoints = 100

// Node is what endpoints need to know of the Node that a Pod runs on.
type Node struct {
	Name string
	// Zone is the Node's topology.kubernetes.io/zone label, "" for none.
	Zone string
	// Ready is the Node's Ready condition, MilliCPU its allocatable CPU, and
	// ControlPlane is true if it runs no ordinary Pods. The three are for ZoneShares.
	Ready        bool
	ControlPlane bool
	MilliCPU     int64
}

// Input is everything that a Service's slices depend on. Compute changes and keeps
// nothing of it.
type Input struct {
	// Service has a selector. Pods are those that it selects, in any order.
	Service *corev1.Service
	Pods    []*corev1.Pod

	// Slices are those that Causeway manages for the Service, and those of another
	// controller that it takes over, which are relabelled with their next update, in
	// any order.
	Slices []*discoveryv1.EndpointSlice

	// Nodes looks a Node up by name. Pods on unknown Nodes are left out, unless the
	// Service publishes Pods that are not ready.
	Nodes func(name string) (Node, bool)

	// Shares is the result of ZoneShares, for topology-mode: Auto.
	Shares Shares

	// TriggerTime is when the change happened that is the cause, zero if unknown, for
	// the annotation of the slices that are written.
	TriggerTime time.Time

	// MaxEndpoints a slice; 0 means the constant of that name.
	MaxEndpoints int

	// OwnName labels the slices endpointslice.kubernetes.io/managed-by=ManagedBy, by
	// which earlier versions recognise theirs.
	OwnName bool

	// Compact allows writes that only reduce the number of slices.
	Compact bool
}

// Plan is how to get from the existing slices to the wanted ones. Create and
// Update may be written in any order or immediately. Shrink comes after all of them
// have succeeded, and Delete after all of that, because endpoints move from the
// slices in these to the ones before.
type Plan struct {
	Create []*discoveryv1.EndpointSlice // named, ready to be created
	Update []*discoveryv1.EndpointSlice // with the resource version they are based on
	Shrink []*discoveryv1.EndpointSlice // updates of slices whose endpoints move to others
	Delete []*discoveryv1.EndpointSlice // the input's own objects, not to be changed

	// Endpoints is how many there are afterwards, Slices in how many slices, and
	// Needed how few slices could hold them.
	Endpoints, Slices, Needed int

	// Added and Removed count endpoints. Duplicates counts those that are removed
	// because an earlier slice has them too; verify that in the API, not only in a
	// cache, before the removal.
	Added, Removed, Duplicates int

	Problems []Problem
}

// Empty reports whether the plan has no writes.
func (p *Plan) Empty() bool { return p.Writes() == 0 }

// Writes counts the plan's API writes.
func (p *Plan) Writes() int {
	return len(p.Create) + len(p.Update) + len(p.Shrink) + len(p.Delete)
}

// Sparse reports whether a compaction is worth its writes: it would delete at least half
// of the slices.
func (p *Plan) Sparse() bool { return p.Slices >= 2*p.Needed && p.Slices > p.Needed }

// Problem is something wrong with a Service. Equal situations give equal Problems, so
// that their events are counted.
type Problem struct {
	Reason  string // CamelCase, as events want it
	Message string // what is wrong and what to do
}

// Reasons of Problems.
const (
	ReasonNodeUnknown       = "EndpointNodeUnknown"
	ReasonAddressInvalid    = "EndpointAddressInvalid"
	ReasonAddressMissing    = "EndpointAddressMissing"
	ReasonPortUnknown       = "EndpointPortUnknown"
	ReasonHostnameDuplicate = "EndpointHostnameDuplicate"
	ReasonHintsUnavailable  = "TopologyHintsUnavailable"
	ReasonFamilyMismatch    = "EndpointSliceFamilyMismatch"
	ReasonMirrorTruncated   = "EndpointMirrorTruncated"
	ReasonNotMirrored       = "EndpointsNotMirrored"
	ReasonSelectorInvalid   = "SelectorInvalid"
	ReasonSelectorEmpty     = "SelectorEmpty"
)

// Compute returns the slices that a Service with a selector should have, as
// changes to those that exist. Equal inputs, in any order, give equal plans; a
// plan for the result of a plan is empty.
func Compute(in Input) Plan {
	ports := newPortResolver(in.Service)
	pods := publishedPods(&in, ports)
	layout := newLayout(&in)
	families := Families(in.Service)
	for _, family := range families {
		targets := pods.targets(family, in.Service)
		layout.setHints(family, targets, &in)
		layout.family(family, targets, ports.lists, podKey(in.Service.Namespace))
	}
	layout.dropOtherFamilies(families)
	plan := layout.finish()
	plan.Problems = slices.Concat(plan.Problems, pods.problems, portProblems(ports), hostnameProblems(pods.list, in.Service), selectorProblems(&in))
	slices.SortFunc(plan.Problems, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.Reason, b.Reason), cmp.Compare(a.Message, b.Message))
	})
	return plan
}

// Families returns the address types of a Service's slices. Without ipFamilies, as in
// objects of old API servers, it is that of the ClusterIP, and both for a headless
// Service.
func Families(service *corev1.Service) []discoveryv1.AddressType {
	var families []discoveryv1.AddressType
	for _, family := range service.Spec.IPFamilies {
		families = append(families, discoveryv1.AddressType(family))
	}
	switch {
	case len(families) > 0:
		return families
	case isHeadless(service):
		return []discoveryv1.AddressType{discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6}
	}
	return []discoveryv1.AddressType{familyOf(service.Spec.ClusterIP)}
}

// familyOf returns the address type of an IP address; IPv4 for what is none.
func familyOf(ip string) discoveryv1.AddressType {
	if addr, ok := netaddr.Parse(ip); ok && addr.Is6() {
		return discoveryv1.AddressTypeIPv6
	}
	return discoveryv1.AddressTypeIPv4
}

// isHeadless reports whether the Service has no ClusterIP.
func isHeadless(service *corev1.Service) bool {
	return service.Spec.ClusterIP == "" || service.Spec.ClusterIP == corev1.ClusterIPNone
}

// podSet is the published Pods of a Service with their Nodes and port lists.
type podSet struct {
	list     []podOnNode
	bare     []string // names of those that serve and have no address
	problems []Problem
}

type podOnNode struct {
	pod   *corev1.Pod
	zone  string
	group int32
}

// publishedPods selects the Pods that become endpoints.
func publishedPods(in *Input, ports *portResolver) podSet {
	set := podSet{list: make([]podOnNode, 0, len(in.Pods))}
	var unknown, invalid []string
	for _, pod := range in.Pods {
		if !Published(pod) {
			if serves(pod) {
				set.bare = append(set.bare, pod.Name)
			}
			continue
		}
		node, known := in.Nodes(pod.Spec.NodeName)
		if !known && !in.Service.Spec.PublishNotReadyAddresses {
			unknown = append(unknown, pod.Name+" on "+pod.Spec.NodeName)
			continue
		}
		if hasInvalidAddress(pod) {
			invalid = append(invalid, pod.Name)
		}
		set.list = append(set.list, podOnNode{pod: pod, zone: node.Zone, group: ports.group(pod)})
	}
	if len(unknown) > 0 {
		set.problems = append(set.problems, Problem{ReasonNodeUnknown, fmt.Sprintf(
			"%d Pods are left out because their Node does not exist (first: %s); delete the Pods, or wait for the Node to register",
			len(unknown), slices.Min(unknown))})
	}
	if len(invalid) > 0 {
		set.problems = append(set.problems, Problem{ReasonAddressInvalid, fmt.Sprintf(
			"%d Pods have a status.podIPs entry that is not an IP address (first: %s); it is left out",
			len(invalid), slices.Min(invalid))})
	}
	return set
}

func hasInvalidAddress(pod *corev1.Pod) bool {
	return slices.ContainsFunc(pod.Status.PodIPs, func(ip corev1.PodIP) bool {
		_, ok := netaddr.Parse(ip.IP)
		return !ok
	})
}

// targets returns one target per Pod that has an address of the family. Pods that should
// have one become a Problem.
func (s *podSet) targets(family discoveryv1.AddressType, service *corev1.Service) []target {
	targets := make([]target, 0, len(s.list))
	missing := slices.Clone(s.bare)
	for i := range s.list {
		pod := s.list[i].pod
		address, more := podAddresses(pod, family)
		if address == "" {
			if serves(pod) {
				missing = append(missing, pod.Name)
			}
			continue
		}
		targets = append(targets, target{
			key:     pod.Name,
			address: address, more: more,
			conditions: conditions{
				ready:     ready(pod, service),
				lifecycle: true, serving: Ready(pod), terminating: pod.DeletionTimestamp != nil,
			},
			node: pod.Spec.NodeName, zone: s.list[i].zone, hostname: hostname(pod, service),
			pod:   pod,
			group: s.list[i].group,
		})
	}
	if len(missing) > 0 {
		s.problems = append(s.problems, addressProblem(family, missing))
	}
	return targets
}

// ready reports whether the Pod's endpoint is ready: the Pod is ready and not
// terminating, or the Service publishes Pods that are not ready.
func ready(pod *corev1.Pod, service *corev1.Service) bool {
	return service.Spec.PublishNotReadyAddresses || Ready(pod) && pod.DeletionTimestamp == nil
}

// podAddresses returns the Pod's addresses of a family: the first, and the rest.
func podAddresses(pod *corev1.Pod, family discoveryv1.AddressType) (first string, more []string) {
	for i := range pod.Status.PodIPs {
		text := pod.Status.PodIPs[i].IP
		addr, ok := netaddr.Parse(text)
		if !ok || addr.Is4() != (family == discoveryv1.AddressTypeIPv4) {
			continue
		}
		if text = canonical(text, addr); first == "" {
			first = text
		} else {
			more = append(more, text)
		}
	}
	return first, more
}

// portProblems reports named target ports that no Pod has. Some Pods without one are
// normal during a rollout.
func portProblems(ports *portResolver) []Problem {
	var problems []Problem
	for i := range ports.ports {
		if port := &ports.ports[i]; ports.resolved > 0 && ports.missing[i] == ports.resolved {
			problems = append(problems, Problem{ReasonPortUnknown, fmt.Sprintf(
				"port %d: no selected Pod has a container port named %q with protocol %s; correct targetPort or name the container's port",
				port.Port, port.TargetPort.String(), port.Protocol)})
		}
	}
	return problems
}

// serves reports whether the Pod is ready and not terminating: it should have an address.
func serves(pod *corev1.Pod) bool {
	return pod.Status.Phase == corev1.PodRunning && pod.DeletionTimestamp == nil && Ready(pod)
}

// addressProblem reports Pods that serve but have no address of one of the
// Service's families, so that its clients of that family never reach them.
func addressProblem(family discoveryv1.AddressType, missing []string) Problem {
	return Problem{ReasonAddressMissing, fmt.Sprintf(
		"%d ready Pods have no %s address and get none of that traffic (first: %s); change the Service's ipFamilyPolicy or give the Pods' network that family",
		len(missing), family, slices.Min(missing))}
}

// selectorProblems reports a selector that no Pod can match. Current API servers deny
// it; objects of older ones may have it.
func selectorProblems(in *Input) []Problem {
	if len(in.Pods) > 0 {
		return nil // it has matched
	}
	var wrong []string
	for key, value := range in.Service.Spec.Selector {
		if len(validation.IsQualifiedName(key))+len(validation.IsValidLabelValue(value)) > 0 {
			wrong = append(wrong, fmt.Sprintf("%q: %q", key, value))
		}
	}
	if len(wrong) == 0 {
		return nil
	}
	return []Problem{{ReasonSelectorInvalid, fmt.Sprintf(
		"selector %s cannot be a Pod's label, so that the Service has no endpoints; correct it", slices.Min(wrong))}}
}

// hostnameProblems reports Pods that share one DNS name, which only ready ones
// have.
func hostnameProblems(pods []podOnNode, service *corev1.Service) []Problem {
	seen, twice := map[string]bool{}, map[string]bool{}
	for i := range pods {
		if name := hostname(pods[i].pod, service); name != "" && ready(pods[i].pod, service) {
			twice[name] = seen[name]
			seen[name] = true
		}
	}
	var problems []Problem
	for name, duplicate := range twice {
		if duplicate {
			problems = append(problems, Problem{ReasonHostnameDuplicate, fmt.Sprintf(
				"several Pods have hostname %q in subdomain %q, so their DNS name has several addresses; give each Pod a hostname of its own",
				name, service.Name)})
		}
	}
	return problems
}
