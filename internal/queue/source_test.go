// SPDX-License-Identifier: Apache-2.0

package queue

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	toolscache "k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"
)

// fakeCache has one informer for all kinds; those of a kind that is listed in
// fails cannot be had.
type fakeCache struct {
	cache.Cache // nil: what is not below is not used
	fails       client.Object
	synced      chan struct{}
	handlers    chan toolscache.ResourceEventHandler
}

func newFakeCache() *fakeCache {
	return &fakeCache{synced: make(chan struct{}), handlers: make(chan toolscache.ResourceEventHandler, 10)}
}

func (c *fakeCache) GetInformer(_ context.Context, object client.Object, _ ...cache.InformerGetOption) (cache.Informer, error) {
	if c.fails == object {
		return nil, errors.New("no such kind")
	}
	return fakeInformer{cache: c}, nil
}

type fakeInformer struct {
	cache.Informer
	cache *fakeCache
}

func (i fakeInformer) AddEventHandler(h toolscache.ResourceEventHandler) (toolscache.ResourceEventHandlerRegistration, error) {
	i.cache.handlers <- h
	return fakeRegistration{cache: i.cache}, nil
}

type fakeRegistration struct {
	toolscache.ResourceEventHandlerRegistration
	cache *fakeCache
}

func (i fakeRegistration) HasSynced() bool {
	select {
	case <-i.cache.synced:
		return true
	default:
		return false
	}
}

func newQueue(t *testing.T) Queue {
	q := workqueue.NewTypedRateLimitingQueue(workqueue.DefaultTypedControllerRateLimiter[reconcile.Request]())
	t.Cleanup(q.ShutDown)
	return q
}

func names(q Queue) (out []string) {
	for q.Len() > 0 {
		request, _ := q.Get()
		q.Done(request)
		out = append(out, request.Name)
	}
	return out
}

// The barrier opens when the last watch has synced, and never if one fails.
func TestBarrier(t *testing.T) {
	pods := On(&corev1.Pod{}, 1, func(_, _ *corev1.Pod) []types.NamespacedName { return nil }, func(*corev1.Pod) []types.NamespacedName { return nil })
	ended, end := context.WithCancel(t.Context())
	end()
	from := newFakeCache()
	s := NewSource(from)
	s.Watch(pods)
	waiter := s.Barrier()
	if err := waiter.Start(t.Context(), newQueue(t)); err != nil {
		t.Fatal(err)
	}
	if err := waiter.WaitForSync(ended); !errors.Is(err, context.Canceled) {
		t.Errorf("the source has not started, and the barrier says %v", err)
	}
	if err := s.For(1, nil).Start(t.Context(), newQueue(t)); err != nil {
		t.Fatal(err)
	}
	<-from.handlers
	if err := waiter.WaitForSync(ended); err == nil {
		t.Error("the watch has not synced, and the barrier is open")
	}
	close(from.synced)
	if err := waiter.WaitForSync(t.Context()); err != nil {
		t.Errorf("all have synced, and the barrier says %v", err)
	}

	from = newFakeCache()
	from.fails = pods.object
	s = NewSource(from)
	s.Watch(pods)
	if err := s.For(1, nil).Start(t.Context(), newQueue(t)); err != nil {
		t.Fatal(err)
	}
	if err := s.Barrier().WaitForSync(t.Context()); err == nil {
		t.Error("a watch has failed, and the barrier is open")
	}
}

// A change goes to the controllers that want its kind; a controller that starts
// late gets what is known; an object made again is gone first.
func TestSourceFeedsSeveralControllers(t *testing.T) {
	key := func(name string) types.NamespacedName { return types.NamespacedName{Name: name} }
	from := newFakeCache()
	s := NewSource(from)
	s.Watch(On(&corev1.Pod{}, 2,
		func(before, now *corev1.Pod) []types.NamespacedName {
			if before == nil {
				return []types.NamespacedName{key("new-" + now.Name)}
			}
			return []types.NamespacedName{key("changed-" + now.Name)}
		},
		func(last *corev1.Pod) []types.NamespacedName { return []types.NamespacedName{key("gone-" + last.Name)} }))
	wants, other, late := newQueue(t), newQueue(t), newQueue(t)
	for _, start := range []struct {
		source source.Source
		queue  Queue
	}{
		{s.For(3, nil), wants}, {s.For(1, nil), other},
		{s.For(3, func() []types.NamespacedName { return []types.NamespacedName{key("known")} }), late},
	} {
		if err := start.source.Start(t.Context(), start.queue); err != nil {
			t.Fatal(err)
		}
	}
	pod := func(uid string) *corev1.Pod {
		return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", UID: types.UID(uid)}}
	}
	handler := <-from.handlers
	handler.OnAdd(pod("1"), true)
	handler.OnUpdate(pod("1"), pod("1"))
	handler.OnUpdate(pod("1"), pod("2"))
	handler.OnDelete(toolscache.DeletedFinalStateUnknown{Obj: pod("2")})
	if got, want := names(wants), []string{"new-p", "changed-p", "gone-p"}; !slices.Equal(got, want) {
		t.Errorf("one controller gets %v, want %v", got, want)
	}
	if got := names(other); got != nil {
		t.Errorf("a controller that wants nothing of it gets %v", got)
	}
	if got, want := names(late), []string{"known", "new-p", "changed-p", "gone-p"}; !slices.Equal(got, want) {
		t.Errorf("the late one gets %v, want %v", got, want)
	}
}

// Any number of calls of Enqueue, also before the controller starts, make one event
// for each object, an interval later.
func TestDebouncer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := NewDebouncer(time.Second, func(context.Context) []reconcile.Request {
			return []reconcile.Request{{NamespacedName: types.NamespacedName{Name: "all"}}}
		})
		q := workqueue.NewTypedRateLimitingQueue(workqueue.DefaultTypedControllerRateLimiter[reconcile.Request]())
		defer q.ShutDown()
		d.Enqueue("a", "")
		if err := d.Source().Start(t.Context(), q); err != nil {
			t.Fatal(err)
		}
		d.Enqueue("a")
		time.Sleep(999 * time.Millisecond)
		if q.Len() != 0 {
			t.Error("an event before the interval is over")
		}
		time.Sleep(time.Millisecond)
		synctest.Wait()
		if got := names(q); !slices.Equal(got, []string{"a"}) {
			t.Errorf("events %v, want one of a", got)
		}
		d.Enqueue()
		d.Enqueue()
		time.Sleep(time.Second)
		synctest.Wait()
		if got := names(q); !slices.Equal(got, []string{"all"}) {
			t.Errorf("events %v, want one of everything", got)
		}
	})
}

// After an outage of the API server, however long, everything is tried again
// within half a minute.
func TestRetries(t *testing.T) {
	limiter, service := Retries(), reconcile.Request{NamespacedName: types.NamespacedName{Name: "web"}}
	var last time.Duration
	for range 40 {
		last = limiter.When(service)
	}
	if last > 30*time.Second {
		t.Errorf("tried again after %v", last)
	}
}
