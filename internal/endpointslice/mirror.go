// SPDX-License-Identifier: Apache-2.0

package endpointslice

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"github.com/causeway-lb/causeway/internal/netaddr"
)

// MaxMirrored is how many addresses of a subset are mirrored, the number that a
// slice can hold.
const MaxMirrored = 1000

// leaderAnnotation marks Endpoints objects that are locks of an old kind.
const leaderAnnotation = "control-plane.alpha.kubernetes.io/leader"

// Mirrors reports whether an Endpoints object of a Service without a selector is
// to be mirrored into slices: it is not a lock, does not ask to be skipped, and
// was not made from a selector that the Service had before.
func Mirrors(endpoints *corev1.Endpoints) bool { //nolint:staticcheck
	_, lock := endpoints.Annotations[leaderAnnotation]
	return !lock && endpoints.Labels[discoveryv1.LabelSkipMirror] != "true" && !Generated(endpoints)
}

// ComputeMirror returns the slices that mirror a hand-made Endpoints object of a
// Service without a selector (KEP-752), as changes to those that exist. existing
// are the mirrored slices and, if the Service had a selector before, those that
// followed from it: they become mirrored ones in place. A family without
// addresses has no slice.
func ComputeMirror(service *corev1.Service, endpoints *corev1.Endpoints, existing []*discoveryv1.EndpointSlice) Plan { //nolint:staticcheck
	l := &layout{
		template: template{
			namespace: endpoints.Namespace, base: endpoints.Name,
			owner:       ownerReference("Endpoints", endpoints.Name, endpoints.UID),
			labels:      mirrorLabels(endpoints),
			annotations: mirrorAnnotations(endpoints),
		},
		adoptable:     []types.UID{endpoints.UID, service.UID},
		max:           MaxMirrored,
		deleting:      endpoints.DeletionTimestamp != nil || service.DeletionTimestamp != nil,
		noPlaceholder: true,
	}
	l.addExisting(existing)
	m := mirror{groups: map[portKey]int32{}, targets: map[discoveryv1.AddressType]map[string]target{}}
	for i := range endpoints.Subsets {
		m.add(&endpoints.Subsets[i])
	}
	families := []discoveryv1.AddressType{discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6}
	for _, family := range families {
		targets := slices.SortedFunc(maps.Values(m.targets[family]), func(a, b target) int { return cmp.Compare(a.key, b.key) })
		l.family(family, targets, m.lists, mirroredKey)
	}
	l.dropOtherFamilies(families)
	plan := l.finish()
	plan.Problems = m.problems()
	return plan
}

func mirrorLabels(endpoints *corev1.Endpoints) map[string]string { //nolint:staticcheck
	labels := make(map[string]string, len(endpoints.Labels)+2)
	maps.Copy(labels, endpoints.Labels)
	labels[discoveryv1.LabelServiceName] = endpoints.Name
	labels[discoveryv1.LabelManagedBy] = ManagedByMirror
	return labels
}

func mirrorAnnotations(endpoints *corev1.Endpoints) map[string]string { //nolint:staticcheck
	annotations := make(map[string]string, len(endpoints.Annotations))
	maps.Copy(annotations, endpoints.Annotations)
	delete(annotations, corev1.EndpointsLastChangeTriggerTime)
	delete(annotations, corev1.LastAppliedConfigAnnotation)
	return annotations
}

// mirror collects the targets of an Endpoints object.
type mirror struct {
	groups  map[portKey]int32
	lists   [][]discoveryv1.EndpointPort
	targets map[discoveryv1.AddressType]map[string]target // by key

	invalid, skipped int
	firstInvalid     string
}

// add takes a subset's addresses in, ready ones first. The same address on the
// same ports counts once, and as ready if it is listed as such.
func (m *mirror) add(subset *corev1.EndpointSubset) { //nolint:staticcheck
	ports := mirrorPorts(subset.Ports)
	key := keyOfPorts(ports)
	group, ok := m.groups[key]
	if !ok {
		group = int32(len(m.lists))
		m.groups[key] = group
		m.lists = append(m.lists, ports)
	}
	room := MaxMirrored
	for i := range subset.Addresses {
		m.addAddress(&subset.Addresses[i], target{group: group, conditions: conditions{ready: true}}, key, &room)
	}
	for i := range subset.NotReadyAddresses {
		m.addAddress(&subset.NotReadyAddresses[i], target{group: group}, key, &room)
	}
}

// addAddress completes the target with the address, and takes it in if there is
// room.
func (m *mirror) addAddress(address *corev1.EndpointAddress, t target, ports portKey, room *int) {
	addr, ok := netaddr.Parse(address.IP)
	if !ok {
		m.invalid++
		if m.firstInvalid == "" {
			m.firstInvalid = address.IP
		}
		return
	}
	if *room == 0 {
		m.skipped++
		return
	}
	*room--
	family := discoveryv1.AddressTypeIPv4
	if addr.Is6() {
		family = discoveryv1.AddressTypeIPv6
	}
	t.address, t.hostname, t.ref = canonical(address.IP, addr), address.Hostname, address.TargetRef
	t.node = ptr.Deref(address.NodeName, "")
	t.key = mirrorKey(t.address, t.hostname, ports)
	if m.targets[family] == nil {
		m.targets[family] = map[string]target{}
	}
	if _, twice := m.targets[family][t.key]; !twice {
		m.targets[family][t.key] = t
	}
}

// mirrorKey identifies a mirrored endpoint. One address may be served on
// several port lists, and then is an endpoint of each.
func mirrorKey(address, hostname string, ports portKey) string {
	return address + "/" + hostname + "/" + string(ports)
}

// mirroredKey is the keyFunc of mirrored endpoints.
func mirroredKey(endpoint *discoveryv1.Endpoint, ports portKey) (string, bool) {
	if len(endpoint.Addresses) != 1 {
		return "", false
	}
	return mirrorKey(endpoint.Addresses[0], ptr.Deref(endpoint.Hostname, ""), ports), true
}

func mirrorPorts(ports []corev1.EndpointPort) []discoveryv1.EndpointPort {
	list := make([]discoveryv1.EndpointPort, len(ports))
	for i := range ports {
		list[i] = discoveryv1.EndpointPort{
			Name: new(ports[i].Name), Port: new(ports[i].Port), Protocol: new(ports[i].Protocol),
			AppProtocol: copyOf(ports[i].AppProtocol),
		}
	}
	return list
}

// problems reports what could not be mirrored.
func (m *mirror) problems() []Problem {
	var problems []Problem
	if m.invalid > 0 {
		problems = append(problems, Problem{ReasonAddressInvalid, fmt.Sprintf(
			"%d addresses are not IP addresses and are not mirrored to EndpointSlices (first: %q); correct them", m.invalid, m.firstInvalid)})
	}
	if m.skipped > 0 {
		problems = append(problems, Problem{ReasonMirrorTruncated, fmt.Sprintf(
			"%d addresses are not mirrored to EndpointSlices: at most %d of a subset are; write EndpointSlices instead", m.skipped, MaxMirrored)})
	}
	return problems
}
