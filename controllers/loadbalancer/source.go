// SPDX-License-Identifier: Apache-2.0

package loadbalancer

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/causeway-lb/causeway/api/v1alpha1"
	"github.com/causeway-lb/causeway/internal/alloc"
	"github.com/causeway-lb/causeway/internal/netaddr"
	"github.com/causeway-lb/causeway/internal/provisioner"
	"github.com/causeway-lb/causeway/internal/provisioner/pool"
	"github.com/causeway-lb/causeway/internal/queue"
)

// reclaimTime is how long the owners of a record that a user deleted have to create it
// again before others may get the address.
const reclaimTime = 5 * time.Second

// everyChange is the one kind of change here.
const everyChange queue.Kind = 1

type keys = []types.NamespacedName

func keysOf(owners []alloc.Owner) keys {
	out := make(keys, 0, len(owners))
	for _, o := range owners {
		out = append(out, types.NamespacedName{Namespace: o.Namespace, Name: o.Name})
	}
	return out
}

// watches feed the Index and return the Services to retry.
func (r *ServiceReconciler) watches(ctx context.Context) []queue.Watch {
	out := []queue.Watch{
		r.watchServices(), r.watchNamespaces(), r.watchAddresses(ctx), r.watchPools(),
		watchExclusions(r, &corev1.Node{}, nodeExclusions), watchExclusions(r, &networkingv1.ServiceCIDR{}, serviceExclusions),
	}
	if r.needsNodes() {
		out = append(out, r.watchNodes(), r.watchSlices())
	}
	return out
}

// watchServices retries the Services that the ports and the policy of another concern:
// those that share an address with it, or request to.
func (r *ServiceReconciler) watchServices() queue.Watch {
	affected := func(svc *corev1.Service) keys {
		owner := alloc.OwnerOf(svc)
		out := keysOf(r.Index.Sharers(owner))
		for _, a := range r.Index.AddressesOf(owner) {
			out = append(out, r.waiting.forAddr(a)...)
		}
		return out
	}
	return queue.On(&corev1.Service{}, everyChange, func(before, now *corev1.Service) keys {
		if before == nil || slices.Equal(before.Spec.Ports, now.Spec.Ports) && provisioner.LocalPods(before) == provisioner.LocalPods(now) {
			return nil
		}
		return affected(now)
	}, affected)
}

// watchAddresses puts records into the index, and retries the Services that have the
// address, had it, or wait for it.
func (r *ServiceReconciler) watchAddresses(ctx context.Context) queue.Watch {
	return queue.On(&v1alpha1.LoadBalancerAddress{}, everyChange, func(_, now *v1alpha1.LoadBalancerAddress) keys {
		rec, err := pool.FromAddress(now)
		if err != nil {
			log.FromContext(ctx).Error(err, "Address record is ignored", "address", now.Name)
			return nil
		}
		before, existed := r.Index.Put(rec)
		if existed && before.Version == rec.Version {
			before = rec // a write of this process: other changes were seen before
		}
		r.pools.Enqueue(before.Pool, rec.Pool, r.Index.PoolFor(rec.Address))
		out := slices.Concat(keysOf(rec.Owners), keysOf(before.Owners))
		if rec.ReservedFor.Name != "" {
			out = append(out, keysOf([]alloc.Owner{rec.ReservedFor})...)
		}
		return append(out, r.waiting.forAddr(rec.Address)...)
	}, func(last *v1alpha1.LoadBalancerAddress) keys {
		rec, err := pool.FromAddress(last)
		if err != nil {
			return nil
		}
		known, there := r.Index.Lookup(rec.Address)
		r.Index.Delete(rec.Address, rec.UID)
		containing := r.Index.PoolFor(rec.Address)
		r.pools.Enqueue(rec.Pool, containing)
		owners, next := keysOf(rec.Owners), r.waiting.freed(rec.Address, containing)
		if byHand := there && known.UID == rec.UID; !byHand || len(owners) == 0 {
			return append(owners, next...)
		}
		// Its owners, if they still exist, get it again first.
		r.source.EnqueueAfter(everyChange, reclaimTime, next)
		return owners
	})
}

// watchPools puts pools into the index. From a pool that cannot be read nothing is
// assigned; its reconciler reports why.
func (r *ServiceReconciler) watchPools() queue.Watch {
	changed := func(names ...string) keys {
		r.pools.Enqueue(append(names, r.Index.Pools()...)...)
		return append(r.waiting.all(), keysOf(r.Index.Mismatched())...)
	}
	return queue.On(&v1alpha1.LoadBalancerPool{}, everyChange, func(_, now *v1alpha1.LoadBalancerPool) keys {
		p, err := pool.FromPool(now)
		if err != nil {
			r.Index.DeletePool(now.Name)
		} else if !r.Index.SetPool(p) {
			return nil
		}
		return changed()
	}, func(last *v1alpha1.LoadBalancerPool) keys {
		r.Index.DeletePool(last.Name)
		return changed(last.Name) // for what is quarantined in it
	})
}

// watchNamespaces retries the waiting Services of a namespace whose labels changed.
func (r *ServiceReconciler) watchNamespaces() queue.Watch {
	return queue.On(&corev1.Namespace{}, everyChange, func(before, now *corev1.Namespace) keys {
		if before != nil && maps.Equal(before.Labels, now.Labels) {
			return nil
		}
		return r.waiting.in(now.Name)
	}, func(*corev1.Namespace) keys { return nil })
}

// watchExclusions puts into the index which addresses belong to others.
func watchExclusions[T client.Object](r *ServiceReconciler, example T, of func(T) []pool.Exclusion) queue.Watch {
	set := func(object T, exclusions []pool.Exclusion) keys {
		if !r.Index.SetExclusions(fmt.Sprintf("%T/%s", object, object.GetName()), exclusions) {
			return nil
		}
		r.pools.Enqueue(r.Index.Pools()...)
		return r.waiting.all()
	}
	return queue.On(example, everyChange,
		func(_, now T) keys { return set(now, of(now)) },
		func(last T) keys { return set(last, nil) })
}

// watchNodes retries remote Services when a node is added, deleted, or changed in what
// load balancers read.
func (r *ServiceReconciler) watchNodes() queue.Watch {
	remote := func() (out keys) {
		r.remote.Range(func(key, _ any) bool {
			out = append(out, key.(types.NamespacedName))
			return true
		})
		return out
	}
	return queue.On(&corev1.Node{}, everyChange, func(before, now *corev1.Node) keys {
		if before == nil || takesTraffic(before) != takesTraffic(now) ||
			v1alpha1.ExcludedByLabel(before.Labels) != v1alpha1.ExcludedByLabel(now.Labels) ||
			!equality.Semantic.DeepEqual(before.Status.Addresses, now.Status.Addresses) {
			return remote()
		}
		return nil
	}, func(*corev1.Node) keys { return remote() })
}

// watchSlices retries a remote Service whose endpoints matter.
func (r *ServiceReconciler) watchSlices() queue.Watch {
	follows := func(s *discoveryv1.EndpointSlice) keys {
		key := types.NamespacedName{Namespace: s.Namespace, Name: s.Labels[discoveryv1.LabelServiceName]}
		if follows, _ := r.remote.Load(key); follows == true {
			return keys{key}
		}
		return nil
	}
	return queue.On(&discoveryv1.EndpointSlice{}, everyChange, func(_, now *discoveryv1.EndpointSlice) keys { return follows(now) }, follows)
}

// nodeExclusions are a node's own addresses and its Pods'.
func nodeExclusions(node *corev1.Node) []pool.Exclusion {
	var out []pool.Exclusion
	for _, a := range node.Status.Addresses {
		if addr, ok := netaddr.Parse(a.Address); ok {
			out = append(out, pool.Exclusion{Range: pool.AddrRange(addr), Why: "node " + node.Name})
		}
	}
	return append(out, prefixExclusions(node.Spec.PodCIDRs, "the Pods of node "+node.Name)...)
}

// serviceExclusions are a range of ClusterIPs.
func serviceExclusions(cidr *networkingv1.ServiceCIDR) []pool.Exclusion {
	return prefixExclusions(cidr.Spec.CIDRs, "ServiceCIDR "+cidr.Name)
}

func prefixExclusions(cidrs []string, why string) []pool.Exclusion {
	var out []pool.Exclusion
	for _, p := range netaddr.ParsePrefixes(cidrs) {
		out = append(out, pool.Exclusion{Range: pool.PrefixRange(p), Why: why})
	}
	return out
}
