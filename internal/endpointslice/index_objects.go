// SPDX-License-Identifier: Apache-2.0

package endpointslice

import (
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/types"
)

// SetService adds or changes a Service.
func (x *Index) SetService(service *corev1.Service) []types.NamespacedName {
	x.mu.Lock()
	defer x.mu.Unlock()
	name := types.NamespacedName{Namespace: service.Namespace, Name: service.Name}
	namespace := x.namespace(name.Namespace)
	entry := namespace.service(name)
	old := entry.object
	entry.object = service
	if TopologyAuto(service) {
		x.auto[entry] = struct{}{}
	} else {
		delete(x.auto, entry)
	}
	if old != nil && old.UID != service.UID {
		entry.taken = false
	}
	if old == nil || !maps.Equal(old.Spec.Selector, service.Spec.Selector) {
		namespace.unfile(entry, old)
		namespace.file(entry)
	} else if sameForEndpoints(old, service) {
		return nil
	}
	return []types.NamespacedName{name}
}

// DeleteService removes a Service. Its slices stay until they are deleted too.
func (x *Index) DeleteService(name types.NamespacedName) []types.NamespacedName {
	x.mu.Lock()
	defer x.mu.Unlock()
	entry := x.lookUp(name)
	if entry == nil || entry.object == nil {
		return nil
	}
	namespace := x.namespaces[name.Namespace]
	namespace.unfile(entry, entry.object)
	entry.object, entry.gone, entry.taken = nil, nil, false
	delete(x.auto, entry)
	x.drop(namespace, entry)
	return []types.NamespacedName{name}
}

// sameForEndpoints reports whether two versions of a Service have the same slices.
func sameForEndpoints(a, b *corev1.Service) bool {
	return a.UID == b.UID &&
		(a.DeletionTimestamp == nil) == (b.DeletionTimestamp == nil) &&
		a.Spec.Type == b.Spec.Type &&
		a.Spec.ClusterIP == b.Spec.ClusterIP &&
		a.Spec.PublishNotReadyAddresses == b.Spec.PublishNotReadyAddresses &&
		slices.Equal(a.Spec.IPFamilies, b.Spec.IPFamilies) &&
		maps.Equal(a.Labels, b.Labels) &&
		maps.Equal(a.Annotations, b.Annotations) &&
		equality.Semantic.DeepEqual(a.Spec.TrafficDistribution, b.Spec.TrafficDistribution) &&
		equality.Semantic.DeepEqual(a.Spec.Ports, b.Spec.Ports)
}

// file puts the Service under the pair of its selector that has the fewest
// Services, and links it with the Pods that it selects.
func (n *namespaceIndex) file(entry *serviceEntry) {
	selector := entry.object.Spec.Selector
	if len(selector) == 0 {
		return
	}
	first := true
	var rare pair
	for key, value := range selector {
		p := pair{key, value}
		if first || n.fewerServices(p, entry.filed) {
			entry.filed = p
		}
		if first || len(n.podsByPair[p]) < len(n.podsByPair[rare]) {
			rare = p
		}
		first = false
	}
	insert(n.servicesByPair, entry.filed, entry)
	for pod := range n.podsByPair[rare] {
		if Selects(selector, pod.object.Labels) {
			entry.pods[pod] = struct{}{}
			pod.services = append(pod.services, entry)
		}
	}
}

// fewerServices reports whether a is a better pair to file under than b; the order
// among equals does not depend on that of the map.
func (n *namespaceIndex) fewerServices(a, b pair) bool {
	if x, y := len(n.servicesByPair[a]), len(n.servicesByPair[b]); x != y {
		return x < y
	}
	return a.key < b.key
}

// unfile undoes file; old is the Service as it was filed, nil for none.
func (n *namespaceIndex) unfile(entry *serviceEntry, old *corev1.Service) {
	if old == nil || len(old.Spec.Selector) == 0 {
		return
	}
	remove(n.servicesByPair, entry.filed, entry)
	for pod := range entry.pods {
		pod.services = slices.DeleteFunc(pod.services, func(e *serviceEntry) bool { return e == entry })
	}
	clear(entry.pods)
}

// SetPod adds or changes a Pod.
func (x *Index) SetPod(pod *corev1.Pod) []types.NamespacedName {
	x.mu.Lock()
	defer x.mu.Unlock()
	namespace := x.namespace(pod.Namespace)
	entry := namespace.pods[pod.Name]
	if entry == nil {
		entry = &podEntry{}
		namespace.pods[pod.Name] = entry
	}
	old := entry.object
	entry.object = pod
	if old == nil || old.Spec.NodeName != pod.Spec.NodeName {
		x.moveToNode(entry, old)
	}
	affected := map[*serviceEntry]struct{}{}
	changed := old == nil || !samePodForEndpoints(old, pod)
	if old == nil || !maps.Equal(old.Labels, pod.Labels) {
		namespace.relabel(entry, old, affected)
	}
	since := readySince(pod)
	retriggered := !since.IsZero() && (old == nil || since.After(readySince(old)))
	for _, service := range entry.services {
		if retriggered {
			service.triggered(since)
		}
		if changed {
			affected[service] = struct{}{}
		}
	}
	if old == nil && !Published(pod) {
		return nil // a Pod without an address is in no slice
	}
	return names(affected)
}

// DeletePod removes a Pod.
func (x *Index) DeletePod(name types.NamespacedName) []types.NamespacedName {
	x.mu.Lock()
	defer x.mu.Unlock()
	namespace := x.namespaces[name.Namespace]
	if namespace == nil || namespace.pods[name.Name] == nil {
		return nil
	}
	entry := namespace.pods[name.Name]
	affected := map[*serviceEntry]struct{}{}
	for _, service := range entry.services {
		affected[service] = struct{}{}
		delete(service.pods, entry)
	}
	for key, value := range entry.object.Labels {
		remove(namespace.podsByPair, pair{key, value}, entry)
	}
	x.leaveNode(entry, entry.object.Spec.NodeName)
	delete(namespace.pods, name.Name)
	if len(namespace.services) == 0 && len(namespace.pods) == 0 {
		delete(x.namespaces, name.Namespace)
	}
	if !Published(entry.object) {
		return nil // it was in no slice
	}
	return names(affected)
}

// samePodForEndpoints reports whether two versions of a Pod, labels apart, make the same
// endpoints. A new deadline of a terminating Pod, or an ended container, changes none.
func samePodForEndpoints(a, b *corev1.Pod) bool {
	return a.UID == b.UID && a.Spec.NodeName == b.Spec.NodeName &&
		a.Spec.Hostname == b.Spec.Hostname && a.Spec.Subdomain == b.Spec.Subdomain &&
		Published(a) == Published(b) && Ready(a) == Ready(b) &&
		(a.DeletionTimestamp == nil) == (b.DeletionTimestamp == nil) &&
		slices.Equal(a.Status.PodIPs, b.Status.PodIPs)
}

// relabel moves the Pod from the old labels' pairs to the new ones', and links
// it with the Services that select it now. Services that it leaves or joins are
// added to affected.
func (n *namespaceIndex) relabel(entry *podEntry, old *corev1.Pod, affected map[*serviceEntry]struct{}) {
	if old != nil {
		for key, value := range old.Labels {
			remove(n.podsByPair, pair{key, value}, entry)
		}
	}
	before := entry.services
	entry.services = nil
	for key, value := range entry.object.Labels {
		p := pair{key, value}
		insert(n.podsByPair, p, entry)
		for service := range n.servicesByPair[p] {
			if Selects(service.object.Spec.Selector, entry.object.Labels) {
				entry.services = append(entry.services, service)
			}
		}
	}
	for _, service := range before {
		if !slices.Contains(entry.services, service) {
			delete(service.pods, entry)
			affected[service] = struct{}{}
		}
	}
	for _, service := range entry.services {
		if !slices.Contains(before, service) {
			service.pods[entry] = struct{}{}
			affected[service] = struct{}{}
		}
	}
}
