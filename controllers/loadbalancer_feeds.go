// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"context"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/causeway-lb/causeway/api/v1alpha1"
	"github.com/causeway-lb/causeway/internal/netaddr"
	"github.com/causeway-lb/causeway/internal/provisioner"
	"github.com/causeway-lb/causeway/internal/provisioner/pool"
)

// reclaimTime is how long the owners of a record that somebody deleted have to
// make it again, before others may have the address.
const reclaimTime = 5 * time.Second

type queue = workqueue.TypedRateLimitingInterface[reconcile.Request]

// enqueue adds Services in order.
func enqueue(q queue, keys []types.NamespacedName) {
	for _, key := range keys {
		q.Add(reconcile.Request{NamespacedName: key})
	}
}

func keysOf(owners []provisioner.Owner) []types.NamespacedName {
	keys := make([]types.NamespacedName, 0, len(owners))
	for _, o := range owners {
		keys = append(keys, types.NamespacedName{Namespace: o.Namespace, Name: o.Name})
	}
	return keys
}

// watchFuncs makes a handler of two functions: seen with the object now and
// before (nil when it is new), and gone.
func watchFuncs[T client.Object](seen func(ctx context.Context, before, now T, q queue), gone func(ctx context.Context, last T, q queue)) handler.EventHandler {
	return handler.Funcs{
		CreateFunc: func(ctx context.Context, e event.CreateEvent, q queue) {
			var none T
			if now, ok := e.Object.(T); ok {
				seen(ctx, none, now, q)
			}
		},
		UpdateFunc: func(ctx context.Context, e event.UpdateEvent, q queue) {
			before, ok := e.ObjectOld.(T)
			if now, ok2 := e.ObjectNew.(T); ok && ok2 {
				seen(ctx, before, now, q)
			}
		},
		DeleteFunc: func(ctx context.Context, e event.DeleteEvent, q queue) {
			if last, ok := e.Object.(T); ok {
				gone(ctx, last, q)
			}
		},
	}
}

// serviceFeed tries those again whom a Service's ports and policy may concern:
// who shares an address with it, or would like to.
func (r *LoadBalancerReconciler) serviceFeed() handler.EventHandler {
	wake := func(svc *corev1.Service, q queue) {
		owner := provisioner.OwnerOf(svc)
		enqueue(q, keysOf(r.Index.Sharers(owner)))
		for _, a := range r.Index.Held(owner) {
			enqueue(q, r.waiting.forAddr(a))
		}
	}
	return watchFuncs(
		func(_ context.Context, before, now *corev1.Service, q queue) {
			if before != nil && (!slices.Equal(before.Spec.Ports, now.Spec.Ports) || provisioner.LocalPods(before) != provisioner.LocalPods(now)) {
				wake(now, q)
			}
		},
		func(_ context.Context, last *corev1.Service, q queue) { wake(last, q) })
}

// addressFeed puts records into the index, and tries again the Services that
// hold one, held it, or wait for it.
func (r *LoadBalancerReconciler) addressFeed() handler.EventHandler {
	seen := func(ctx context.Context, _, now *v1alpha1.LoadBalancerAddress, q queue) {
		rec, err := pool.FromAddress(now)
		if err != nil {
			log.FromContext(ctx).Error(err, "Address record is ignored", "address", now.Name)
			return
		}
		before, existed := r.Index.Put(rec)
		if existed && before.Version == rec.Version {
			before = rec // our own write: what else changed was seen before
		}
		r.touch(before.Pool, rec.Pool, r.Index.Home(rec.Address))
		enqueue(q, keysOf(rec.Owners))
		enqueue(q, keysOf(before.Owners))
		if rec.ReservedFor.Name != "" {
			enqueue(q, keysOf([]provisioner.Owner{rec.ReservedFor}))
		}
		enqueue(q, r.waiting.forAddr(rec.Address))
	}
	gone := func(_ context.Context, last *v1alpha1.LoadBalancerAddress, q queue) {
		rec, err := pool.FromAddress(last)
		if err != nil {
			return
		}
		known, there := r.Index.Lookup(rec.Address)
		r.Index.Delete(rec.Address, rec.UID)
		home := r.Index.Home(rec.Address)
		r.touch(rec.Pool, home)
		enqueue(q, keysOf(rec.Owners))
		wake := r.waiting.freed(rec.Address, home)
		if byHand := there && known.UID == rec.UID; !byHand || len(rec.Owners) == 0 {
			enqueue(q, wake)
			return
		}
		for _, key := range wake { // its owners, if they are still there, take it again first
			q.AddAfter(reconcile.Request{NamespacedName: key}, reclaimTime)
		}
	}
	return watchFuncs(seen, gone)
}

// poolFeed puts pools into the index. A pool that cannot be read gives nothing;
// its reconciler says why.
func (r *LoadBalancerReconciler) poolFeed() handler.EventHandler {
	changed := func(q queue) {
		enqueue(q, r.waiting.all())
		enqueue(q, keysOf(r.Index.Strays()))
		r.touch(r.Index.Pools()...)
	}
	return watchFuncs(
		func(_ context.Context, _, now *v1alpha1.LoadBalancerPool, q queue) {
			p, err := pool.FromPool(now)
			if err != nil {
				r.Index.DeletePool(now.Name)
				changed(q)
			} else if r.Index.SetPool(p) {
				changed(q)
			}
		},
		func(_ context.Context, last *v1alpha1.LoadBalancerPool, q queue) {
			r.Index.DeletePool(last.Name)
			changed(q)
			r.touch(last.Name) // for what rested in it
		})
}

// namespaceFeed tries the waiting Services of a namespace whose labels changed.
func (r *LoadBalancerReconciler) namespaceFeed() handler.EventHandler {
	return watchFuncs(
		func(_ context.Context, _, now *corev1.Namespace, q queue) { enqueue(q, r.waiting.in(now.Name)) },
		func(context.Context, *corev1.Namespace, queue) {})
}

// exclusionFeed tells the index what belongs to others.
func (r *LoadBalancerReconciler) exclusionFeed(of func(client.Object) []pool.Exclusion) handler.EventHandler {
	set := func(source string, exclusions []pool.Exclusion, q queue) {
		if r.Index.SetExclusions(source, exclusions) {
			enqueue(q, r.waiting.all())
			r.touch(r.Index.Pools()...)
		}
	}
	source := func(o client.Object) string { return fmt.Sprintf("%T/%s", o, o.GetName()) }
	return watchFuncs(
		func(_ context.Context, _, now client.Object, q queue) { set(source(now), of(now), q) },
		func(_ context.Context, last client.Object, q queue) { set(source(last), nil, q) })
}

// nodeExclusions are a node's own addresses and its Pods'.
func nodeExclusions(o client.Object) []pool.Exclusion {
	node, ok := o.(*corev1.Node)
	if !ok {
		return nil
	}
	var out []pool.Exclusion
	for _, a := range node.Status.Addresses {
		if addr, ok := netaddr.Parse(a.Address); ok {
			out = append(out, pool.Exclusion{Range: pool.AddrRange(addr), Why: "node " + node.Name})
		}
	}
	return append(out, prefixExclusions(node.Spec.PodCIDRs, "the Pods of node "+node.Name)...)
}

// serviceExclusions are a range of ClusterIPs.
func serviceExclusions(o client.Object) []pool.Exclusion {
	cidr, ok := o.(*networkingv1.ServiceCIDR)
	if !ok {
		return nil
	}
	return prefixExclusions(cidr.Spec.CIDRs, "ServiceCIDR "+cidr.Name)
}

func prefixExclusions(cidrs []string, why string) []pool.Exclusion {
	var out []pool.Exclusion
	for _, text := range cidrs {
		if p, ok := netaddr.ParsePrefix(text); ok {
			out = append(out, pool.Exclusion{Range: pool.PrefixRange(p), Why: why})
		}
	}
	return out
}
