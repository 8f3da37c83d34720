// SPDX-License-Identifier: Apache-2.0

package endpointslice

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/causeway-lb/causeway/internal/netaddr"
)

const (
	// MaxLegacyEndpoints is how many addresses an Endpoints object holds at most.
	// What is beyond is left out, and the object annotated as truncated.
	MaxLegacyEndpoints = 1000

	// LegacyManagedByLabel says who keeps an Endpoints object; LegacyManagedBy
	// is our value of it.
	LegacyManagedByLabel = "endpoints.kubernetes.io/managed-by"
	LegacyManagedBy      = "endpoint-controller.causeway.dev"
	// LegacyKubeManagedBy is kube-controller-manager's value.
	LegacyKubeManagedBy = "endpoint-controller"

	overCapacity = "truncated"
)

// Generated reports whether a controller made an Endpoints object from a selector:
// it has Causeway's label or kube-controller-manager's, or, as before Kubernetes
// 1.33, the annotation that only a controller writes, and stands for Pods.
func Generated(endpoints *corev1.Endpoints) bool { //nolint:staticcheck
	switch endpoints.Labels[LegacyManagedByLabel] {
	case LegacyManagedBy, LegacyKubeManagedBy:
		return true
	}
	_, written := endpoints.Annotations[corev1.EndpointsLastChangeTriggerTime]
	return written && len(endpoints.Subsets) > 0 && StandsForPods(endpoints)
}

// StandsForPods reports whether each address of the object is a Pod's, as in those
// that controllers make. Users who write an address name no Pod.
func StandsForPods(endpoints *corev1.Endpoints) bool { //nolint:staticcheck
	for i := range endpoints.Subsets {
		for _, list := range [][]corev1.EndpointAddress{endpoints.Subsets[i].Addresses, endpoints.Subsets[i].NotReadyAddresses} {
			if slices.ContainsFunc(list, func(a corev1.EndpointAddress) bool { return a.TargetRef == nil || a.TargetRef.Kind != "Pod" }) {
				return false
			}
		}
	}
	return true
}

// SliceStandsForPods is StandsForPods for a slice.
func SliceStandsForPods(slice *discoveryv1.EndpointSlice) bool {
	return !slices.ContainsFunc(slice.Endpoints, func(e discoveryv1.Endpoint) bool { return e.TargetRef == nil || e.TargetRef.Kind != "Pod" })
}

// ComputeEndpoints returns the Endpoints object (deprecated since Kubernetes
// 1.33, still read by old clients) of a Service with a selector, nil if the
// existing one is right. It has the Service's first family only, no terminating
// Pods, and not-ready Pods apart. existing is nil if there is none; it is not
// changed.
//
// Each port's addresses are found first, and ports with equal addresses then
// share a subset, so that Pods that differ in one named port share the others'.
func ComputeEndpoints(service *corev1.Service, pods []*corev1.Pod, existing *corev1.Endpoints) *corev1.Endpoints { //nolint:staticcheck // the deprecated type is the point
	subsets, truncated := truncate(subsetsOf(service, pods))
	labels := legacyLabels(service)
	if existing != nil {
		annotated := existing.Annotations[corev1.EndpointsOverCapacity] == overCapacity
		if annotated == truncated && maps.Equal(existing.Labels, labels) &&
			equality.Semantic.DeepEqual(existing.Subsets, subsets) {
			return nil
		}
	}
	wanted := &corev1.Endpoints{ //nolint:staticcheck
		ObjectMeta: metav1.ObjectMeta{Namespace: service.Namespace, Name: service.Name},
	}
	if existing != nil {
		existing.ObjectMeta.DeepCopyInto(&wanted.ObjectMeta)
	}
	wanted.Labels, wanted.Subsets = labels, subsets
	delete(wanted.Annotations, corev1.EndpointsOverCapacity)
	if truncated {
		metav1.SetMetaDataAnnotation(&wanted.ObjectMeta, corev1.EndpointsOverCapacity, overCapacity)
	}
	delete(wanted.Annotations, corev1.EndpointsLastChangeTriggerTime) // slices carry it
	return wanted
}

func legacyLabels(service *corev1.Service) map[string]string {
	labels := copiedLabels(service)
	labels[LegacyManagedByLabel] = LegacyManagedBy
	return labels
}

// legacyAddress is a Pod's place in an Endpoints object.
type legacyAddress struct {
	addr    netip.Addr
	address corev1.EndpointAddress
	ready   bool
}

// portAddresses are the Pods, by index, that serve one port.
type portAddresses struct {
	port corev1.EndpointPort
	pods []int
}

// subsetsOf groups the Pods' addresses into subsets, canonically ordered.
func subsetsOf(service *corev1.Service, pods []*corev1.Pod) []corev1.EndpointSubset { //nolint:staticcheck
	addresses, kept := legacyAddresses(service, pods)
	if len(service.Spec.Ports) == 0 {
		if !isHeadless(service) || len(addresses) == 0 {
			return nil
		}
		all := make([]int, len(addresses))
		for i := range all {
			all[i] = i
		}
		return []corev1.EndpointSubset{subset(addresses, all, nil)} //nolint:staticcheck
	}
	byPods := map[string][]corev1.EndpointPort{}
	members := map[string][]int{}
	for _, entry := range servedPorts(service, kept) {
		key := make([]byte, 0, 4*len(entry.pods))
		for _, pod := range entry.pods {
			key = append(strconv.AppendInt(key, int64(pod), 36), ',')
		}
		byPods[string(key)] = append(byPods[string(key)], entry.port)
		members[string(key)] = entry.pods
	}
	var subsets []corev1.EndpointSubset //nolint:staticcheck
	for key, ports := range byPods {
		slices.SortFunc(ports, comparePorts)
		subsets = append(subsets, subset(addresses, members[key], ports))
	}
	slices.SortFunc(subsets, func(a, b corev1.EndpointSubset) int { return comparePorts(a.Ports[0], b.Ports[0]) }) //nolint:staticcheck
	return subsets
}

// legacyAddresses returns the addresses that belong into the object, and their
// Pods, sorted by address.
func legacyAddresses(service *corev1.Service, pods []*corev1.Pod) ([]legacyAddress, []*corev1.Pod) {
	type pair struct {
		address legacyAddress
		pod     *corev1.Pod
	}
	var list []pair
	for _, pod := range pods {
		if !Published(pod) || pod.DeletionTimestamp != nil && !service.Spec.PublishNotReadyAddresses {
			continue
		}
		text, _ := podAddresses(pod, legacyFamily(service, pod))
		addr, ok := netaddr.Parse(text)
		if !ok {
			continue
		}
		list = append(list, pair{legacyAddress{
			addr: addr, ready: service.Spec.PublishNotReadyAddresses || Ready(pod),
			address: corev1.EndpointAddress{
				IP: text, Hostname: hostname(pod, service), NodeName: textOrNil(pod.Spec.NodeName),
				TargetRef: &corev1.ObjectReference{Kind: "Pod", Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID},
			},
		}, pod})
	}
	slices.SortFunc(list, func(a, b pair) int {
		return cmp.Or(a.address.addr.Compare(b.address.addr), cmp.Compare(a.pod.Name, b.pod.Name))
	})
	addresses, kept := make([]legacyAddress, len(list)), make([]*corev1.Pod, len(list))
	for i := range list {
		addresses[i], kept[i] = list[i].address, list[i].pod
	}
	return addresses, kept
}

// legacyFamily returns the one family of the Service's Endpoints object. A
// headless Service of an API server that knows no ipFamilies goes by the Pod.
func legacyFamily(service *corev1.Service, pod *corev1.Pod) discoveryv1.AddressType {
	if len(service.Spec.IPFamilies) > 0 || !isHeadless(service) {
		return Families(service)[0]
	}
	return familyOf(pod.Status.PodIP)
}

// servedPorts returns each distinct port, with the Pods that serve it.
func servedPorts(service *corev1.Service, pods []*corev1.Pod) []portAddresses {
	var list []portAddresses
	for i := range service.Spec.Ports {
		port := &service.Spec.Ports[i]
		byNumber := map[int32]int{}
		for p, pod := range pods {
			number, ok := findPort(pod, port)
			if !ok {
				continue
			}
			at, known := byNumber[number]
			if !known {
				at = len(list)
				byNumber[number] = at
				list = append(list, portAddresses{port: corev1.EndpointPort{
					Name: port.Name, Port: number, Protocol: port.Protocol, AppProtocol: copyOf(port.AppProtocol),
				}})
			}
			list[at].pods = append(list[at].pods, p)
		}
	}
	return list
}

func comparePorts(a, b corev1.EndpointPort) int {
	return cmp.Or(strings.Compare(a.Name, b.Name), cmp.Compare(a.Port, b.Port), cmp.Compare(a.Protocol, b.Protocol))
}

func subset(addresses []legacyAddress, pods []int, ports []corev1.EndpointPort) corev1.EndpointSubset { //nolint:staticcheck
	var result corev1.EndpointSubset //nolint:staticcheck
	for _, i := range pods {
		if addresses[i].ready {
			result.Addresses = append(result.Addresses, addresses[i].address)
		} else {
			result.NotReadyAddresses = append(result.NotReadyAddresses, addresses[i].address)
		}
	}
	result.Ports = ports
	return result
}

// truncate cuts the subsets down to MaxLegacyEndpoints addresses: first the
// ready ones, and of these each subset's share. It reports whether it cut.
func truncate(subsets []corev1.EndpointSubset) ([]corev1.EndpointSubset, bool) { //nolint:staticcheck
	ready, notReady := 0, 0
	for i := range subsets {
		ready += len(subsets[i].Addresses)
		notReady += len(subsets[i].NotReadyAddresses)
	}
	if ready+notReady <= MaxLegacyEndpoints {
		return subsets, false
	}
	readyRoom := min(ready, MaxLegacyEndpoints)
	restRoom := MaxLegacyEndpoints - readyRoom
	for i := range subsets {
		s := &subsets[i]
		n, m := share(len(s.Addresses), &ready, &readyRoom), share(len(s.NotReadyAddresses), &notReady, &restRoom)
		s.Addresses, s.NotReadyAddresses = s.Addresses[:n:n], s.NotReadyAddresses[:m:m]
		if m == 0 {
			s.NotReadyAddresses = nil
		}
		if n == 0 {
			s.Addresses = nil
		}
	}
	return slices.DeleteFunc(subsets, func(s corev1.EndpointSubset) bool { //nolint:staticcheck
		return len(s.Addresses)+len(s.NotReadyAddresses) == 0
	}), true
}

// share returns how many of a subset's n addresses are kept, given how many are
// left in all subsets that have not had their share, and for how many there is
// room left; it takes both down.
func share(n int, left, room *int) int {
	if *left == 0 {
		return 0
	}
	kept := (n**room + *left - 1) / *left // rounded up, so that the last gets the rest
	kept = min(kept, n, *room)
	*left -= n
	*room -= kept
	return kept
}
