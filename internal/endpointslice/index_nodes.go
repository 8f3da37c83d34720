// SPDX-License-Identifier: Apache-2.0

package endpointslice

import (
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/resourceversion"
)

// NodeOf returns what endpoints need to know of a Node.
func NodeOf(node *corev1.Node) Node {
	_, controlPlane := node.Labels["node-role.kubernetes.io/control-plane"]
	_, master := node.Labels["node-role.kubernetes.io/master"]
	result := Node{
		Name:         node.Name,
		Zone:         node.Labels[corev1.LabelTopologyZone],
		ControlPlane: controlPlane || master,
		MilliCPU:     node.Status.Allocatable.Cpu().MilliValue(),
	}
	for i := range node.Status.Conditions {
		if condition := &node.Status.Conditions[i]; condition.Type == corev1.NodeReady {
			result.Ready = condition.Status == corev1.ConditionTrue
		}
	}
	return result
}

// SetNode adds or changes a Node. It affects Services with Pods on it, if it is new or
// its zone changed, and those with topology-mode: Auto, if the zones' shares changed.
func (x *Index) SetNode(node Node) []types.NamespacedName {
	x.mu.Lock()
	defer x.mu.Unlock()
	entry := x.node(node.Name)
	old, known := entry.node, entry.known
	entry.node, entry.known = node, true
	return names(x.nodeChanged(entry, known && old.Zone == node.Zone, known && old == node))
}

// DeleteNode removes a Node.
func (x *Index) DeleteNode(name string) []types.NamespacedName {
	x.mu.Lock()
	defer x.mu.Unlock()
	entry := x.nodes[name]
	if entry == nil || !entry.known {
		return nil
	}
	entry.known = false
	affected := names(x.nodeChanged(entry, false, false))
	if len(entry.pods) == 0 {
		delete(x.nodes, name)
	}
	return affected
}

func (x *Index) nodeChanged(entry *nodeEntry, sameZone, sameWeight bool) map[*serviceEntry]struct{} {
	affected := map[*serviceEntry]struct{}{}
	if !sameZone {
		for pod := range entry.pods {
			for _, service := range pod.services {
				affected[service] = struct{}{}
			}
		}
	}
	if !sameWeight {
		x.sharesOld = true
		for service := range x.auto {
			affected[service] = struct{}{}
		}
	}
	return affected
}

// currentShares returns the zones' shares, computed again if Nodes changed.
func (x *Index) currentShares() Shares {
	if x.sharesOld {
		list := make([]Node, 0, len(x.nodes))
		for _, entry := range x.nodes {
			if entry.known {
				list = append(list, entry.node)
			}
		}
		x.shares, x.sharesOld = ZoneShares(list), false
	}
	return x.shares
}

func (x *Index) node(name string) *nodeEntry {
	entry := x.nodes[name]
	if entry == nil {
		entry = &nodeEntry{pods: map[*podEntry]struct{}{}}
		x.nodes[name] = entry
	}
	return entry
}

// moveToNode files the Pod under its Node instead of the old one.
func (x *Index) moveToNode(entry *podEntry, old *corev1.Pod) {
	if old != nil {
		x.leaveNode(entry, old.Spec.NodeName)
	}
	if name := entry.object.Spec.NodeName; name != "" {
		x.node(name).pods[entry] = struct{}{}
	}
}

func (x *Index) leaveNode(entry *podEntry, name string) {
	node := x.nodes[name]
	if node == nil {
		return
	}
	delete(node.pods, entry)
	if !node.known && len(node.pods) == 0 {
		delete(x.nodes, name)
	}
}

// SetSlice adds or changes a slice, from a watch or from the answer to a write of this
// process. It ignores versions older than the known one, and slices after ForgetSlice,
// so that the answer to a write can be set immediately and the watch's later event
// changes nothing.
func (x *Index) SetSlice(slice *discoveryv1.EndpointSlice) []types.NamespacedName {
	name, ok := serviceOf(slice)
	if !ok {
		return nil
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	namespace := x.namespace(name.Namespace)
	entry := namespace.service(name)
	if entry.gone[slice.Name] == slice.UID && slice.UID != "" {
		return nil
	}
	delete(entry.gone, slice.Name)
	old := entry.slices[slice.Name]
	if old != nil && old.UID == slice.UID && !newer(slice, old) {
		return nil
	}
	entry.slices[slice.Name] = slice
	x.kubeManaged += kubeManaged(slice) - kubeManaged(old)
	return []types.NamespacedName{name}
}

// DeleteSlice removes a slice of which the watch reported the deletion.
func (x *Index) DeleteSlice(slice *discoveryv1.EndpointSlice) []types.NamespacedName {
	return x.removeSlice(slice, false)
}

// ForgetSlice removes a slice that this process deleted or did not find; later events of
// the watch about it are ignored.
func (x *Index) ForgetSlice(slice *discoveryv1.EndpointSlice) { x.removeSlice(slice, true) }

func (x *Index) removeSlice(slice *discoveryv1.EndpointSlice, ours bool) []types.NamespacedName {
	name, ok := serviceOf(slice)
	if !ok {
		return nil
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	entry := x.lookUp(name)
	if entry == nil {
		return nil
	}
	known := entry.slices[slice.Name]
	same := known != nil && known.UID == slice.UID
	switch {
	case ours && same && entry.object != nil:
		if entry.gone == nil {
			entry.gone = map[string]types.UID{}
		}
		entry.gone[slice.Name] = slice.UID
	case !ours && entry.gone[slice.Name] == slice.UID:
		delete(entry.gone, slice.Name)
	}
	if same {
		delete(entry.slices, slice.Name)
		x.kubeManaged -= kubeManaged(known)
	}
	x.drop(x.namespaces[name.Namespace], entry)
	if !same {
		return nil
	}
	return []types.NamespacedName{name}
}

// serviceOf returns the Service that a slice names.
func serviceOf(slice *discoveryv1.EndpointSlice) (types.NamespacedName, bool) {
	name := slice.Labels[discoveryv1.LabelServiceName]
	return types.NamespacedName{Namespace: slice.Namespace, Name: name}, name != ""
}

// newer reports whether a is a later version than b. Versions that cannot be
// compared count as newer if they differ (KEP-5504).
func newer(a, b *discoveryv1.EndpointSlice) bool {
	order, err := resourceversion.CompareResourceVersion(a.ResourceVersion, b.ResourceVersion)
	if err != nil {
		return a.ResourceVersion != b.ResourceVersion
	}
	return order > 0
}

func kubeManaged(slice *discoveryv1.EndpointSlice) int {
	if slice != nil && isKubeManaged(slice) {
		return 1
	}
	return 0
}
