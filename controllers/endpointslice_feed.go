// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"context"
	"errors"
	"fmt"
	"sync"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"
	toolscache "k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"github.com/causeway-lb/causeway/internal/endpointslice"
)

// endpointFeed keeps an endpointslice.Index from the manager's informers, and
// tells its subscribers, the queues of the endpoint controllers, which Services
// a change concerns. There is one of it however many controllers read from it.
//
//	informers: Service, Pod, Node, EndpointSlice
//	                |
//	              Index  ->  the Services concerned  ->  queues
//
// It starts with the first controller. No controller's worker runs before the
// Index has seen everything that the informers listed at first: slices that
// look superfluous only because a Pod is not yet known would be deleted.
type endpointFeed struct {
	cache cache.Cache
	index *endpointslice.Index

	mu          sync.Mutex
	subscribers []subscriber
	started     bool
	ready       chan struct{} // closed when registrations or err is final
	synced      []toolscache.InformerSynced
	err         error
}

// change is a set of kinds of objects.
type change int

const (
	changeService change = 1 << iota
	changePod
	changeNode
	changeSlice // one that we did not write just so
)

type subscriber struct {
	wants change
	queue workqueue.TypedRateLimitingInterface[reconcile.Request]
}

func newEndpointFeed(from cache.Cache) *endpointFeed {
	return &endpointFeed{cache: from, index: endpointslice.NewIndex(), ready: make(chan struct{})}
}

// Source returns a source that enqueues the Services which changes of the wanted
// kinds concern.
func (f *endpointFeed) Source(wants change) source.SyncingSource {
	return &feedSource{feed: f, wants: wants}
}

type feedSource struct {
	feed  *endpointFeed
	wants change
}

// Start implements source.Source.
func (s *feedSource) Start(ctx context.Context, queue workqueue.TypedRateLimitingInterface[reconcile.Request]) error {
	f := s.feed
	f.mu.Lock()
	defer f.mu.Unlock()
	f.subscribers = append(f.subscribers, subscriber{wants: s.wants, queue: queue})
	if !f.started {
		f.started = true
		go f.register(ctx)
		return nil
	}
	// What the index has seen before this queue was there is news to it.
	for _, name := range f.index.Names() {
		queue.Add(reconcile.Request{NamespacedName: name})
	}
	return nil
}

// WaitForSync implements source.SyncingSource.
func (s *feedSource) WaitForSync(ctx context.Context) error {
	f := s.feed
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-f.ready:
	}
	if f.err != nil {
		return f.err
	}
	if !toolscache.WaitForCacheSync(ctx.Done(), f.synced...) {
		return errors.New("wait for Services, Pods, Nodes and EndpointSlices: stopped before they were listed")
	}
	return nil
}

// register adds the handlers to the informers.
func (f *endpointFeed) register(ctx context.Context) {
	defer close(f.ready)
	for _, watch := range []struct {
		object client.Object
		set    func(old, object any) []types.NamespacedName
		delete func(object any) []types.NamespacedName
		kind   change
	}{
		{&corev1.Node{}, f.setNode, f.deleteNode, changeNode},
		{&corev1.Service{}, f.setService, f.deleteService, changeService},
		{&corev1.Pod{}, f.setPod, f.deletePod, changePod},
		{&discoveryv1.EndpointSlice{}, f.setSlice, f.deleteSlice, changeSlice},
	} {
		informer, err := f.cache.GetInformer(ctx, watch.object)
		if err != nil {
			f.err = fmt.Errorf("watch %T: %w", watch.object, err)
			return
		}
		registration, err := informer.AddEventHandler(toolscache.ResourceEventHandlerFuncs{
			AddFunc:    func(object any) { f.tell(watch.kind, watch.set(nil, object)) },
			UpdateFunc: func(old, object any) { f.tell(watch.kind, watch.set(old, object)) },
			DeleteFunc: func(object any) { f.tell(watch.kind, watch.delete(lastKnown(object))) },
		})
		if err != nil {
			f.err = fmt.Errorf("watch %T: %w", watch.object, err)
			return
		}
		f.synced = append(f.synced, registration.HasSynced)
	}
}

// lastKnown returns the last state of an object of which the watch missed the
// end.
func lastKnown(object any) any {
	if tombstone, ok := object.(toolscache.DeletedFinalStateUnknown); ok {
		return tombstone.Obj
	}
	return object
}

// tell enqueues the Services for every subscriber that wants to know.
func (f *endpointFeed) tell(kind change, services []types.NamespacedName) {
	if len(services) == 0 {
		return
	}
	f.mu.Lock()
	subscribers := f.subscribers
	f.mu.Unlock()
	for _, s := range subscribers {
		if s.wants&kind == 0 {
			continue
		}
		for _, name := range services {
			s.queue.Add(reconcile.Request{NamespacedName: name})
		}
	}
}

func (f *endpointFeed) setService(_, object any) []types.NamespacedName {
	service, ok := object.(*corev1.Service)
	if !ok {
		return nil
	}
	return f.index.SetService(service)
}

func (f *endpointFeed) deleteService(object any) []types.NamespacedName {
	service, ok := object.(*corev1.Service)
	if !ok {
		return nil
	}
	return f.index.DeleteService(client.ObjectKeyFromObject(service))
}

func (f *endpointFeed) setPod(_, object any) []types.NamespacedName {
	pod, ok := object.(*corev1.Pod)
	if !ok {
		return nil
	}
	return f.index.SetPod(pod)
}

func (f *endpointFeed) deletePod(object any) []types.NamespacedName {
	pod, ok := object.(*corev1.Pod)
	if !ok {
		return nil
	}
	return f.index.DeletePod(client.ObjectKeyFromObject(pod))
}

func (f *endpointFeed) setNode(_, object any) []types.NamespacedName {
	node, ok := object.(*corev1.Node)
	if !ok {
		return nil
	}
	return f.index.SetNode(endpointslice.NodeOf(node))
}

func (f *endpointFeed) deleteNode(object any) []types.NamespacedName {
	node, ok := object.(*corev1.Node)
	if !ok {
		return nil
	}
	return f.index.DeleteNode(node.Name)
}

func (f *endpointFeed) setSlice(old, object any) []types.NamespacedName {
	slice, ok := object.(*discoveryv1.EndpointSlice)
	if !ok {
		return nil
	}
	var moved []types.NamespacedName
	if before, ok := old.(*discoveryv1.EndpointSlice); ok &&
		before.Labels[discoveryv1.LabelServiceName] != slice.Labels[discoveryv1.LabelServiceName] {
		moved = f.index.DeleteSlice(before)
	}
	return append(moved, f.index.SetSlice(slice)...)
}

func (f *endpointFeed) deleteSlice(object any) []types.NamespacedName {
	slice, ok := object.(*discoveryv1.EndpointSlice)
	if !ok {
		return nil
	}
	return f.index.DeleteSlice(slice)
}
