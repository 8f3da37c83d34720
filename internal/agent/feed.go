// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/resourceversion"
	"k8s.io/client-go/tools/cache"

	"github.com/causeway-lb/causeway/internal/proxy/model"
)

// feed puts what a reflector reads into the Store. It implements
// cache.ReflectorStore.
type feed struct {
	store *Store
	kind  Kind
	once  sync.Once
	// put and remove change the Store, with its lock held, and return the events.
	put    func(obj any) []Event
	remove func(name types.NamespacedName) []Event
	// names lists what the Store has of the kind, with its lock held.
	names func() []types.NamespacedName
}

var _ cache.ReflectorStore = (*feed)(nil)

func objectName(obj any) (types.NamespacedName, error) {
	m, err := meta.Accessor(obj)
	if err != nil {
		return types.NamespacedName{}, fmt.Errorf("name object of type %T: %w", obj, err)
	}
	return types.NamespacedName{Namespace: m.GetNamespace(), Name: m.GetName()}, nil
}

// Add is part of cache.ReflectorStore.
func (f *feed) Add(obj any) error {
	f.store.mu.Lock()
	events := f.put(obj)
	f.store.mu.Unlock()
	f.store.notify(events...)
	return nil
}

// Update is part of cache.ReflectorStore.
func (f *feed) Update(obj any) error { return f.Add(obj) }

// Delete is part of cache.ReflectorStore.
func (f *feed) Delete(obj any) error {
	name, err := objectName(obj)
	if err != nil {
		return err
	}
	f.store.mu.Lock()
	events := f.remove(name)
	f.store.mu.Unlock()
	f.store.notify(events...)
	return nil
}

// Replace is part of cache.ReflectorStore: the result of a list. Everything else is
// removed from the Store.
func (f *feed) Replace(objs []any, _ string) error {
	var events []Event
	f.store.mu.Lock()
	gone := map[types.NamespacedName]bool{}
	for _, name := range f.names() {
		gone[name] = true
	}
	for _, obj := range objs {
		name, err := objectName(obj)
		if err != nil {
			f.store.mu.Unlock()
			return err
		}
		delete(gone, name)
		events = append(events, f.put(obj)...)
	}
	for name := range gone {
		events = append(events, f.remove(name)...)
	}
	f.store.mu.Unlock()
	f.once.Do(func() { close(f.store.listed[f.kind]) })
	f.store.notify(events...)
	return nil
}

// Resync is part of cache.ReflectorStore.
func (f *feed) Resync() error { return nil }

// ServiceFeed is what the reflector of Services writes to, for filling a Store without
// an API server.
func (s *Store) ServiceFeed() cache.ReflectorStore { return s.serviceFeed() }

// SliceFeed is ServiceFeed for EndpointSlices.
func (s *Store) SliceFeed() cache.ReflectorStore { return s.sliceFeed() }

func (s *Store) serviceFeed() *feed {
	event := func(name types.NamespacedName) []Event { return []Event{{Kind: KindService, Name: name}} }
	return &feed{
		store: s, kind: KindService,
		put: func(obj any) []Event {
			svc := stripService(obj.(*corev1.Service))
			name := types.NamespacedName{Namespace: svc.Namespace, Name: svc.Name}
			s.noteFormer(name, s.services[name], svc)
			s.services[name] = svc
			return event(name)
		},
		remove: func(name types.NamespacedName) []Event {
			delete(s.services, name)
			delete(s.older, name)
			return event(name)
		},
		names: func() []types.NamespacedName { return slices.Collect(maps.Keys(s.services)) },
	}
}

func (s *Store) sliceFeed() *feed {
	remove := func(name types.NamespacedName) []Event {
		of, ok := s.owners[name]
		if !ok {
			return nil
		}
		owner := of.service
		delete(s.owners, name)
		if delete(s.slices[owner], name.Name); len(s.slices[owner]) == 0 {
			delete(s.slices, owner)
		}
		s.forgetFormer(owner, name.Name)
		return []Event{{Kind: KindEndpointSlice, Name: owner}}
	}
	return &feed{
		store: s, kind: KindEndpointSlice, remove: remove,
		put: func(obj any) []Event {
			sl := obj.(*discoveryv1.EndpointSlice)
			name := types.NamespacedName{Namespace: sl.Namespace, Name: sl.Name}
			owner := types.NamespacedName{Namespace: sl.Namespace, Name: sl.Labels[discoveryv1.LabelServiceName]}
			var events []Event
			old, known := s.owners[name]
			if known && old.service != owner {
				events = remove(name)
			}
			if owner.Name == "" {
				return events // belongs to no Service
			}
			of := sliceOwner{owner, triggerTime(sl)}
			trigger := of.trigger
			if known && trigger.Equal(old.trigger) {
				trigger = time.Time{} // not what caused this update
			}
			if s.slices[owner] == nil {
				s.slices[owner] = map[string]*discoveryv1.EndpointSlice{}
			}
			s.slices[owner][sl.Name] = s.stripSlice(sl)
			s.forgetFormer(owner, sl.Name)
			s.owners[name] = of
			return append(events, Event{Kind: KindEndpointSlice, Name: owner, Trigger: trigger})
		},
		names: func() []types.NamespacedName { return slices.Collect(maps.Keys(s.owners)) },
	}
}

// noteFormer keeps a Service's former ports for those of its slices that were written
// before the ports changed: until the slices follow, only the former ports tell two
// apart that have swapped names. A slice that was written later may have followed
// already, whichever event comes first. The Store's lock is held.
func (s *Store) noteFormer(name types.NamespacedName, old, svc *corev1.Service) {
	same := func(a, b corev1.ServicePort) bool {
		return a.Name == b.Name && a.Protocol == b.Protocol && a.Port == b.Port && a.TargetPort == b.TargetPort
	}
	if old == nil || old.UID != svc.UID || len(svc.Spec.Selector) == 0 || slices.EqualFunc(old.Spec.Ports, svc.Spec.Ports, same) {
		return
	}
	for _, sl := range s.slices[name] {
		order, err := resourceversion.CompareResourceVersion(sl.ResourceVersion, svc.ResourceVersion)
		if err != nil || order >= 0 {
			continue
		}
		if s.older[name] == nil {
			s.older[name] = map[string][]corev1.ServicePort{}
		}
		if _, known := s.older[name][sl.Name]; !known {
			s.older[name][sl.Name] = old.Spec.Ports
		}
	}
}

func (s *Store) forgetFormer(service types.NamespacedName, slice string) {
	if delete(s.older[service], slice); len(s.older[service]) == 0 {
		delete(s.older, service)
	}
}

// triggerTime returns when the endpoints changed, as the slice controller records.
func triggerTime(sl *discoveryv1.EndpointSlice) time.Time {
	t, err := time.Parse(time.RFC3339Nano, sl.Annotations[corev1.EndpointsLastChangeTriggerTime])
	if err != nil {
		return time.Time{} // absent: older controllers, or made by hand
	}
	return t
}

func (s *Store) nodeFeed() *feed {
	f := clusterFeed(s, KindNode, s.nodes, stripNode)
	put, remove := f.put, f.remove
	f.put = func(obj any) []Event {
		n := obj.(*corev1.Node)
		before := s.nodes[n.Name]
		if before == nil {
			before = s.former[n.Name]
		}
		delete(s.former, n.Name)
		events := put(obj)
		if before != nil {
			if has := inherit(s.nodes[n.Name], before, s.inherited[n.Name]); has != nil {
				s.inherited[n.Name] = has
			} else {
				delete(s.inherited, n.Name)
			}
		}
		return events
	}
	f.remove = func(name types.NamespacedName) []Event {
		gone := s.nodes[name.Name]
		events := remove(name)
		switch {
		case gone == nil:
		case name.Name == s.self:
			s.nodes[name.Name] = leaving(gone)
		default:
			if len(s.former) >= maxFormer {
				for other := range s.former {
					delete(s.inherited, other)
				}
				clear(s.former)
			}
			s.former[name.Name] = gone
		}
		return events
	}
	return f
}

func (s *Store) addressFeed() *feed {
	return clusterFeed(s, KindLoadBalancerAddress, s.addresses, stripManagedFields)
}

func (s *Store) poolFeed() *feed {
	return clusterFeed(s, KindLoadBalancerPool, s.pools, stripManagedFields)
}

// clusterFeed fills a map of cluster-scoped objects.
func clusterFeed[T metav1.Object](s *Store, k Kind, m map[string]T, strip func(T) T) *feed {
	return &feed{
		store: s, kind: k,
		put: func(obj any) []Event {
			o := strip(obj.(T))
			m[o.GetName()] = o
			return []Event{{Kind: k, Name: types.NamespacedName{Name: o.GetName()}}}
		},
		remove: func(name types.NamespacedName) []Event {
			delete(m, name.Name)
			return []Event{{Kind: k, Name: name}}
		},
		names: func() []types.NamespacedName {
			var names []types.NamespacedName
			for name := range m {
				names = append(names, types.NamespacedName{Name: name})
			}
			return names
		},
	}
}

// stripMeta keeps what identifies an object, and what policies read.
func stripMeta(m metav1.ObjectMeta, labels, annotations map[string]string) metav1.ObjectMeta {
	return metav1.ObjectMeta{
		Namespace: m.Namespace, Name: m.Name, UID: m.UID, ResourceVersion: m.ResourceVersion,
		CreationTimestamp: m.CreationTimestamp, DeletionTimestamp: m.DeletionTimestamp,
		Labels: labels, Annotations: annotations,
	}
}

// anySelector stands for every selector: what matters here is whether there is one.
var anySelector = map[string]string{"any": ""}

func stripService(svc *corev1.Service) *corev1.Service {
	spec := svc.Spec
	if len(spec.Selector) > 0 {
		spec.Selector = anySelector
	}
	return &corev1.Service{
		ObjectMeta: stripMeta(svc.ObjectMeta, svc.Labels, svc.Annotations),
		Spec:       spec,
		Status:     corev1.ServiceStatus{LoadBalancer: svc.Status.LoadBalancer},
	}
}

// stripSlice keeps addresses, conditions, hints, the weight and interned node names. The
// Store's lock is held.
func (s *Store) stripSlice(sl *discoveryv1.EndpointSlice) *discoveryv1.EndpointSlice {
	var annotations map[string]string
	if weight, ok := sl.Annotations[model.WeightAnnotation]; ok {
		annotations = map[string]string{model.WeightAnnotation: weight}
	}
	out := &discoveryv1.EndpointSlice{
		ObjectMeta:  stripMeta(sl.ObjectMeta, nil, annotations),
		AddressType: sl.AddressType,
		Ports:       sl.Ports,
		Endpoints:   make([]discoveryv1.Endpoint, len(sl.Endpoints)),
	}
	for i := range sl.Endpoints {
		ep := &sl.Endpoints[i]
		addresses := ep.Addresses
		if len(addresses) > 1 {
			addresses = addresses[:1:1] // only the first counts, by the API's definition
		}
		out.Endpoints[i] = discoveryv1.Endpoint{
			Addresses: addresses, Conditions: internConditions(ep.Conditions), Hints: ep.Hints, NodeName: s.intern(ep.NodeName),
		}
	}
	return out
}

var shared = [2]bool{false, true}

func internBool(b *bool) *bool {
	switch {
	case b == nil:
		return nil
	case *b:
		return &shared[1]
	}
	return &shared[0]
}

func internConditions(c discoveryv1.EndpointConditions) discoveryv1.EndpointConditions {
	return discoveryv1.EndpointConditions{
		Ready: internBool(c.Ready), Serving: internBool(c.Serving), Terminating: internBool(c.Terminating),
	}
}

func (s *Store) intern(p *string) *string {
	if p == nil {
		return nil
	}
	if q := s.strings[*p]; q != nil {
		return q
	}
	s.strings[*p] = p
	return p
}

func stripManagedFields[T metav1.Object](o T) T {
	o.SetManagedFields(nil)
	return o
}

func stripNode(n *corev1.Node) *corev1.Node {
	return &corev1.Node{
		ObjectMeta: stripMeta(n.ObjectMeta, n.Labels, n.Annotations),
		Spec: corev1.NodeSpec{
			PodCIDR: n.Spec.PodCIDR, PodCIDRs: n.Spec.PodCIDRs, Unschedulable: n.Spec.Unschedulable, Taints: n.Spec.Taints,
		},
		Status: corev1.NodeStatus{Addresses: n.Status.Addresses, Conditions: n.Status.Conditions},
	}
}
