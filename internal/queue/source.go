// SPDX-License-Identifier: Apache-2.0

package queue

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"
	toolscache "k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/priorityqueue"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"
)

// Queue is a controller's work queue.
type Queue = workqueue.TypedRateLimitingInterface[reconcile.Request]

// Kind is a set of kinds of changes, one bit a kind; what a bit stands for is
// the caller's.
type Kind uint

// Watch is a kind of object and what its changes mean.
type Watch struct {
	object client.Object
	kind   Kind
	of     func(client.Object) bool
	// set and gone return the objects to reconcile.
	set  func(before, now client.Object) []types.NamespacedName
	gone func(last client.Object) []types.NamespacedName
}

// On returns the Watch of objects of the type of example. set is called with an
// object that is new or has changed, and with its former state, the zero value
// of T for a new one; gone is called with the last known state of a deleted
// object. Both return the objects to reconcile. An object that was deleted and
// created again while the watch was broken is first gone, then new.
func On[T client.Object](example T, kind Kind, set func(before, now T) []types.NamespacedName, gone func(last T) []types.NamespacedName) Watch {
	return Watch{
		object: example, kind: kind,
		of: func(object client.Object) bool { _, ok := object.(T); return ok },
		set: func(before, now client.Object) []types.NamespacedName {
			b, _ := before.(T)
			return set(b, now.(T))
		},
		gone: func(last client.Object) []types.NamespacedName { return gone(last.(T)) },
	}
}

// Source keeps an index up to date from the manager's informers and enqueues
// what a change concerns. It may feed the queues of several controllers.
//
//	informers ─> Watch.set, Watch.gone (the index) ─> keys ─> queues
//
// It starts with the first controller. No worker of a controller that uses it
// runs before every Watch has seen what the informers listed at first.
type Source struct {
	cache   cache.Cache
	watches []Watch

	mu     sync.Mutex
	queues []subscription
	start  sync.Once
	ready  chan struct{} // closed when synced and err are final
	synced []toolscache.InformerSynced
	err    error
}

type subscription struct {
	kinds Kind
	queue Queue
}

// NewSource returns a Source without watches.
func NewSource(from cache.Cache) *Source {
	return &Source{cache: from, ready: make(chan struct{})}
}

// Watch adds watches. It is called before any controller starts.
func (s *Source) Watch(watches ...Watch) { s.watches = append(s.watches, watches...) }

// For returns the source of a controller that reconciles what changes of these
// kinds concern. known returns what is enqueued if another controller started
// the Source before; nil if there is no other.
func (s *Source) For(kinds Kind, known func() []types.NamespacedName) source.SyncingSource {
	return &controllerSource{Source: s, start: func(ctx context.Context, queue Queue) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.queues = append(s.queues, subscription{kinds, queue})
		started := true
		s.start.Do(func() { started = false; go s.register(ctx) })
		if started && known != nil {
			add(queue, 0, false, known())
		}
	}}
}

// Barrier returns a source without events whose controller starts after the
// Source has synced. It does not start the Source.
func (s *Source) Barrier() source.SyncingSource {
	return &controllerSource{Source: s, start: func(context.Context, Queue) {}}
}

type controllerSource struct {
	*Source
	start func(context.Context, Queue)
}

// Start implements source.Source.
func (c *controllerSource) Start(ctx context.Context, queue Queue) error {
	c.start(ctx, queue)
	return nil
}

// WaitForSync implements source.SyncingSource.
func (s *Source) WaitForSync(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return fmt.Errorf("wait for the watches to start: %w", ctx.Err())
	case <-s.ready:
	}
	if s.err != nil {
		return s.err
	}
	if !toolscache.WaitForCacheSync(ctx.Done(), s.synced...) {
		return errors.New("wait for the watches: stopped before everything was listed")
	}
	return nil
}

// register adds the handlers to the informers.
func (s *Source) register(ctx context.Context) {
	defer close(s.ready)
	for _, w := range s.watches {
		synced, err := w.register(ctx, s.cache, func(initial bool, keys []types.NamespacedName) { s.enqueue(w.kind, 0, initial, keys) })
		if err != nil {
			s.err = err
			return
		}
		s.synced = append(s.synced, synced)
	}
}

// EnqueueAfter enqueues keys after a delay, for a change of the kinds.
func (s *Source) EnqueueAfter(kinds Kind, delay time.Duration, keys []types.NamespacedName) {
	s.enqueue(kinds, delay, false, keys)
}

func (s *Source) enqueue(kinds Kind, delay time.Duration, initial bool, keys []types.NamespacedName) {
	if len(keys) == 0 {
		return
	}
	s.mu.Lock()
	queues := s.queues
	s.mu.Unlock()
	for _, q := range queues {
		if q.kinds&kinds != 0 {
			add(q.queue, delay, initial, keys)
		}
	}
}

// add enqueues keys; behind all others if they stem from the initial list.
func add(queue Queue, delay time.Duration, initial bool, keys []types.NamespacedName) {
	for _, key := range keys {
		request := reconcile.Request{NamespacedName: key}
		if by, ok := queue.(priorityqueue.PriorityQueue[reconcile.Request]); ok && initial {
			by.AddWithOpts(priorityqueue.AddOpts{After: delay, Priority: new(handler.LowPriority)}, request)
		} else {
			queue.AddAfter(request, delay) // immediately for 0
		}
	}
}

// Follow calls the watches without any queue until ctx ends. Each starts when
// the one before has seen everything that was listed; synced is closed when the
// last has.
func Follow(ctx context.Context, from cache.Cache, synced chan<- struct{}, watches ...Watch) error {
	for _, w := range watches {
		done, err := w.register(ctx, from, func(bool, []types.NamespacedName) {})
		if err != nil {
			return err
		}
		if !toolscache.WaitForCacheSync(ctx.Done(), done) {
			return nil // ctx ended
		}
	}
	close(synced)
	<-ctx.Done()
	return nil
}

func (w Watch) register(ctx context.Context, from cache.Cache, enqueue func(initial bool, keys []types.NamespacedName)) (toolscache.InformerSynced, error) {
	informer, err := from.GetInformer(ctx, w.object)
	if err != nil {
		return nil, fmt.Errorf("watch %T: %w", w.object, err)
	}
	registration, err := informer.AddEventHandler(w.handler(enqueue))
	if err != nil {
		return nil, fmt.Errorf("watch %T: %w", w.object, err)
	}
	return registration.HasSynced, nil
}

func (w Watch) handler(enqueue func(initial bool, keys []types.NamespacedName)) toolscache.ResourceEventHandler {
	return toolscache.ResourceEventHandlerDetailedFuncs{
		AddFunc:    func(object any, initial bool) { enqueue(initial, w.set(nil, object.(client.Object))) },
		UpdateFunc: func(old, object any) { enqueue(false, w.Update(old.(client.Object), object.(client.Object))) },
		DeleteFunc: func(object any) {
			if unseen, ok := object.(toolscache.DeletedFinalStateUnknown); ok {
				object = unseen.Obj
			}
			enqueue(false, w.gone(object.(client.Object)))
		},
	}
}

// Of reports whether the Watch is of the object's type.
func (w Watch) Of(object client.Object) bool { return w.of(object) }

// Update tells the Watch of an object that is new (before is nil) or has changed,
// and returns what to reconcile.
func (w Watch) Update(before, now client.Object) []types.NamespacedName {
	if before == nil || before.GetUID() == now.GetUID() {
		return w.set(before, now)
	}
	return append(w.gone(before), w.set(nil, now)...)
}

// Delete tells the Watch of the last known state of a deleted object, and
// returns what to reconcile.
func (w Watch) Delete(last client.Object) []types.NamespacedName { return w.gone(last) }
