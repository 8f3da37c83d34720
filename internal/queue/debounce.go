// SPDX-License-Identifier: Apache-2.0

package queue

import (
	"context"
	"fmt"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/client"
	logf "sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"
)

// Retries returns when a controller tries an object again whose reconciliation
// failed: immediately at first, every half minute at last. The default's last is
// a quarter of an hour, so long after an API server has come back.
func Retries() workqueue.TypedRateLimiter[reconcile.Request] {
	return workqueue.NewTypedItemExponentialFailureRateLimiter[reconcile.Request](5*time.Millisecond, 30*time.Second)
}

// Soonest returns the shorter of two times of which 0 means never.
func Soonest(a, b time.Duration) time.Duration {
	if a == 0 || b != 0 && b < a {
		return b
	}
	return a
}

// Debouncer is a controller's source that turns any number of calls of Enqueue
// within an interval into one event for each object. Safe for concurrent use;
// Enqueue does not block.
type Debouncer struct {
	interval time.Duration
	all      func(context.Context) []reconcile.Request

	mu         sync.Mutex
	flush      func() // nil before the controller starts
	pending    map[reconcile.Request]struct{}
	everything bool
	armed      bool
}

// NewDebouncer returns a Debouncer. all lists what Enqueue without names stands
// for; nil for nothing.
func NewDebouncer(interval time.Duration, all func(context.Context) []reconcile.Request) *Debouncer {
	return &Debouncer{interval: interval, all: all, pending: map[reconcile.Request]struct{}{}}
}

// Enqueue enqueues the cluster-scoped objects of these names, or everything when
// no name is given, after the interval or when the controller starts. Empty
// names are ignored.
func (d *Debouncer) Enqueue(names ...string) {
	var keys []types.NamespacedName
	for _, name := range names {
		if name != "" {
			keys = append(keys, types.NamespacedName{Name: name})
		}
	}
	d.enqueue(len(names) == 0 && d.all != nil, keys)
}

// EnqueueKeys enqueues the objects of these names and namespaces, as Enqueue does; no
// keys mean none.
func (d *Debouncer) EnqueueKeys(keys ...types.NamespacedName) { d.enqueue(false, keys) }

func (d *Debouncer) enqueue(everything bool, keys []types.NamespacedName) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.everything = d.everything || everything
	for _, key := range keys {
		d.pending[reconcile.Request{NamespacedName: key}] = struct{}{}
	}
	d.arm()
}

// arm sets the timer if there is something to enqueue. The lock is held.
func (d *Debouncer) arm() {
	if d.flush != nil && !d.armed && (d.everything || len(d.pending) > 0) {
		d.armed = true
		time.AfterFunc(d.interval, d.flush)
	}
}

// Source returns the controller's source.
func (d *Debouncer) Source() source.Source {
	return source.Func(func(ctx context.Context, queue Queue) error {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.flush = func() {
			d.mu.Lock()
			pending, everything := d.pending, d.everything
			d.pending, d.everything, d.armed = map[reconcile.Request]struct{}{}, false, false
			d.mu.Unlock()
			for request := range pending {
				queue.Add(request)
			}
			if !everything || ctx.Err() != nil {
				return
			}
			for _, request := range d.all(ctx) {
				queue.Add(request)
			}
		}
		d.arm()
		return nil
	})
}

// List returns a request for each object of a kind, from the cache; none, and a
// log line, when they cannot be listed.
func List(ctx context.Context, c client.Reader, list client.ObjectList, opts ...client.ListOption) (out []reconcile.Request) {
	err := c.List(ctx, list, append(opts, client.UnsafeDisableDeepCopy)...)
	if err == nil {
		err = meta.EachListItem(list, func(object runtime.Object) error {
			out = append(out, reconcile.Request{NamespacedName: client.ObjectKeyFromObject(object.(client.Object))})
			return nil
		})
	}
	if err != nil && ctx.Err() == nil {
		logf.FromContext(ctx).Error(err, "Objects not listed", "kind", fmt.Sprintf("%T", list))
	}
	return out
}
