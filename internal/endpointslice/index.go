// SPDX-License-Identifier: Apache-2.0

package endpointslice

import (
	"cmp"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Index knows which Pods each Service selects and which slices it has. The cost of a
// change of an object is that of the Services that it concerns; it walks neither the
// namespace's Services nor its Pods:
//
//	Pod changed:      for each of its labels, the Services filed under that pair
//	Service changed:  the Pods that have the rarest pair of its selector
//
// A Service is filed under one pair of its selector, the one with the fewest Services:
// five thousand Services that all select env=prod are found by their other label.
//
// Each Set and Delete returns the Services whose endpoints may have changed, sorted; nil
// for a change that no endpoint shows (an annotation of a Pod, a Service's status). The
// Index keeps the objects and View returns them; they must not be changed.
//
// An Index is safe for concurrent use.
type Index struct {
	mu          sync.RWMutex
	namespaces  map[string]*namespaceIndex
	nodes       map[string]*nodeEntry
	auto        map[*serviceEntry]struct{} // Services with topology-mode: Auto
	kubeManaged int                        // slices of kube-controller-manager
	shares      Shares
	sharesOld   bool // shares must be computed again
}

// pair is one label.
type pair struct{ key, value string }

type namespaceIndex struct {
	services       map[string]*serviceEntry
	pods           map[string]*podEntry
	servicesByPair map[pair]map[*serviceEntry]struct{}
	podsByPair     map[pair]map[*podEntry]struct{}
}

// serviceEntry is a Service, or only its slices and tombstones while object is
// nil.
type serviceEntry struct {
	name   types.NamespacedName
	object *corev1.Service
	filed  pair // under which it is in servicesByPair, if it has a selector
	pods   map[*podEntry]struct{}
	slices map[string]*discoveryv1.EndpointSlice
	// gone has the UIDs, by name, of slices that this process deleted and of which late
	// events may come.
	gone map[string]types.UID

	trigger time.Time // the earliest change since TakeTrigger
	taken   bool      // TakeTrigger was called before
}

type podEntry struct {
	object   *corev1.Pod
	services []*serviceEntry
}

type nodeEntry struct {
	node  Node
	known bool
	pods  map[*podEntry]struct{}
}

// NewIndex returns an empty Index.
func NewIndex() *Index {
	return &Index{
		namespaces: map[string]*namespaceIndex{},
		nodes:      map[string]*nodeEntry{},
		auto:       map[*serviceEntry]struct{}{},
		sharesOld:  true,
	}
}

// View is what the Index knows of one Service.
type View struct {
	Service *corev1.Service // nil if there is none
	Pods    []*corev1.Pod   // those that it selects, in no order
	// Slices are all that have its name, of every manager, in no order.
	Slices []*discoveryv1.EndpointSlice
	// Nodes are those that its Pods run on.
	Nodes map[string]Node
	// Shares are the zones' for topology-mode: Auto.
	Shares Shares
}

// NodeByName is an Input.Nodes.
func (v *View) NodeByName(name string) (Node, bool) {
	node, ok := v.Nodes[name]
	return node, ok
}

// View returns the present state of a Service.
func (x *Index) View(name types.NamespacedName) View {
	x.mu.Lock()
	defer x.mu.Unlock()
	entry := x.lookUp(name)
	if entry == nil {
		return View{}
	}
	view := View{Service: entry.object, Nodes: map[string]Node{}}
	for _, slice := range entry.slices {
		view.Slices = append(view.Slices, slice)
	}
	if entry.object == nil {
		return view
	}
	view.Pods = make([]*corev1.Pod, 0, len(entry.pods))
	for pod := range entry.pods {
		view.Pods = append(view.Pods, pod.object)
		if node := x.nodes[pod.object.Spec.NodeName]; node != nil && node.known {
			view.Nodes[node.node.Name] = node.node
		}
	}
	if TopologyAuto(entry.object) {
		view.Shares = x.currentShares()
	}
	return view
}

// TakeTrigger returns when the earliest change of a Service or its Pods since the last
// call happened, zero if there was none or it is unknown. A caller that could not act on
// it returns it with Retrigger.
//
// The first time it is unknown which changes were handled before this process started: a
// Service without slices has waited since its creation.
func (x *Index) TakeTrigger(name types.NamespacedName) time.Time {
	x.mu.Lock()
	defer x.mu.Unlock()
	entry := x.lookUp(name)
	if entry == nil || entry.object == nil {
		return time.Time{}
	}
	trigger := entry.trigger
	entry.trigger = time.Time{}
	if entry.taken {
		return trigger
	}
	entry.taken = true
	if len(entry.slices) > 0 {
		return time.Time{}
	}
	return entry.object.CreationTimestamp.Time
}

// Retrigger takes back what TakeTrigger returned.
func (x *Index) Retrigger(name types.NamespacedName, trigger time.Time) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if entry := x.lookUp(name); entry != nil {
		entry.triggered(trigger)
	}
}

func (e *serviceEntry) triggered(at time.Time) {
	if !at.IsZero() && (e.trigger.IsZero() || at.Before(e.trigger)) {
		e.trigger = at
	}
}

// KubeManagedSlices returns how many slices in the cluster kube-controller-manager
// manages (see KubeManaged). Above 0, it runs or has run.
func (x *Index) KubeManagedSlices() int {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.kubeManaged
}

// Names returns the names of all Services, with a selector or without, and of deleted
// ones that have slices left, sorted.
func (x *Index) Names() []types.NamespacedName {
	x.mu.RLock()
	defer x.mu.RUnlock()
	all := make(map[*serviceEntry]struct{})
	for _, namespace := range x.namespaces {
		for _, entry := range namespace.services {
			all[entry] = struct{}{}
		}
	}
	return names(all)
}

func (x *Index) lookUp(name types.NamespacedName) *serviceEntry {
	if namespace := x.namespaces[name.Namespace]; namespace != nil {
		return namespace.services[name.Name]
	}
	return nil
}

func (x *Index) namespace(name string) *namespaceIndex {
	namespace := x.namespaces[name]
	if namespace == nil {
		namespace = &namespaceIndex{
			services:       map[string]*serviceEntry{},
			pods:           map[string]*podEntry{},
			servicesByPair: map[pair]map[*serviceEntry]struct{}{},
			podsByPair:     map[pair]map[*podEntry]struct{}{},
		}
		x.namespaces[name] = namespace
	}
	return namespace
}

// service returns the entry of a Service, which it creates if necessary.
func (n *namespaceIndex) service(name types.NamespacedName) *serviceEntry {
	entry := n.services[name.Name]
	if entry == nil {
		entry = &serviceEntry{
			name:   name,
			pods:   map[*podEntry]struct{}{},
			slices: map[string]*discoveryv1.EndpointSlice{},
		}
		n.services[name.Name] = entry
	}
	return entry
}

// drop removes the entry, and the namespace, if nothing is left in it.
func (x *Index) drop(namespace *namespaceIndex, entry *serviceEntry) {
	if entry.object == nil && len(entry.slices) == 0 && len(entry.gone) == 0 {
		delete(namespace.services, entry.name.Name)
	}
	if len(namespace.services) == 0 && len(namespace.pods) == 0 {
		delete(x.namespaces, entry.name.Namespace)
	}
}

// names returns the names of the entries, sorted.
func names(entries map[*serviceEntry]struct{}) []types.NamespacedName {
	if len(entries) == 0 {
		return nil
	}
	list := make([]types.NamespacedName, 0, len(entries))
	for entry := range entries {
		list = append(list, entry.name)
	}
	slices.SortFunc(list, func(a, b types.NamespacedName) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	return list
}

// insert adds the element to the set under the key, which it creates if necessary.
func insert[K comparable, E comparable](sets map[K]map[E]struct{}, key K, element E) {
	set := sets[key]
	if set == nil {
		set = map[E]struct{}{}
		sets[key] = set
	}
	set[element] = struct{}{}
}

// remove removes the element from the set under the key.
func remove[K comparable, E comparable](sets map[K]map[E]struct{}, key K, element E) {
	set := sets[key]
	delete(set, element)
	if len(set) == 0 {
		delete(sets, key)
	}
}
