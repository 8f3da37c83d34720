// SPDX-License-Identifier: Apache-2.0

package clusterip

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	logf "sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/causeway-lb/causeway/api/v1alpha1"
	"github.com/causeway-lb/causeway/internal/alloc"
	"github.com/causeway-lb/causeway/internal/alloc/services"
	"github.com/causeway-lb/causeway/internal/allocator"
	"github.com/causeway-lb/causeway/internal/netaddr"
	"github.com/causeway-lb/causeway/internal/queue"
)

const (
	// poolLabel on a ServiceCIDR names the ClusterIPPool that needs it.
	poolLabel = "causeway.dev/pool"
	// cidrRecheck is when a ServiceCIDR that is still in use is checked again.
	cidrRecheck = 5 * time.Second
)

// ClusterIPPoolReconciler keeps the status of ClusterIPPools and the
// ServiceCIDRs that they need.
type ClusterIPPoolReconciler struct {
	client   client.Client
	state    *allocator.State
	problems *problems
}

func (r *ClusterIPPoolReconciler) setup(mgr ctrl.Manager, changes *queue.Debouncer) error {
	return ctrl.NewControllerManagedBy(mgr).
		Named("clusterippool").
		For(&v1alpha1.ClusterIPPool{}).
		Watches(&corev1.Node{}, handler.EnqueueRequestsFromMapFunc(func(context.Context, client.Object) []reconcile.Request {
			changes.Enqueue() // all pools once for any number of nodes
			return nil
		}), builder.WithPredicates(predicate.Funcs{UpdateFunc: func(e event.UpdateEvent) bool {
			before, after := e.ObjectOld.(*corev1.Node), e.ObjectNew.(*corev1.Node)
			return !slices.Equal(before.Status.Addresses, after.Status.Addresses)
		}})).
		WatchesRawSource(changes.Source()).
		Complete(r)
}

// Reconcile reconciles one pool.
func (r *ClusterIPPoolReconciler) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	var pool v1alpha1.ClusterIPPool
	if err := r.client.Get(ctx, req.NamespacedName, &pool); err != nil {
		if client.IgnoreNotFound(err) == nil {
			observeUsage(req.Name, "IPv4", nil)
			observeUsage(req.Name, "IPv6", nil)
			return r.removeCIDRs(ctx, req.Name, nil)
		}
		return reconcile.Result{}, fmt.Errorf("get ClusterIPPool: %w", err)
	}
	if !pool.DeletionTimestamp.IsZero() {
		return reconcile.Result{}, nil
	}
	result, fault := r.ensureCIDRs(ctx, &pool)
	before := pool.DeepCopy()
	var known bool
	var v4, v6 services.PoolState
	r.state.With(func(a *services.Allocations, now time.Time) {
		known = a.KnowsClusterIPPool(pool.Name, pool.Generation)
		v4, v6 = a.ClusterIPPool(pool.Name, corev1.IPv4Protocol, now), a.ClusterIPPool(pool.Name, corev1.IPv6Protocol, now)
	})
	if !known {
		return reconcile.Result{RequeueAfter: notSeenRecheck}, nil
	}
	pool.Status.IPv4, pool.Status.IPv6 = usage(v4.Stats), usage(v6.Stats)
	observeUsage(pool.Name, "IPv4", pool.Status.IPv4)
	observeUsage(pool.Name, "IPv6", pool.Status.IPv6)
	ranges, invalid := alloc.ParseRanges("spec.ranges", pool.Spec.Ranges)
	nodes, err := r.nodesInside(ctx, ranges)
	if err != nil {
		return reconcile.Result{}, err
	}
	pool.Status.ObservedGeneration = pool.Generation
	setConditions(&pool.Status.Conditions, pool.Generation, errors.Join(invalid, fault),
		finding{v1alpha1.PoolDisjoint, slices.Concat(v4.Overlaps, v6.Overlaps, nodes), "Overlap", "an address can have one meaning only: change one of them", "NoOverlap"},
		finding{v1alpha1.PoolInServiceCIDR, append(v4.Outside, v6.Outside...), "Outside", "the API server refuses these: create a ServiceCIDR that has them, or write them as CIDRs for Causeway to create it", "Inside"},
		servicesOutside(r.problems.of(pool.Name, true)),
	)
	if err := writeStatus(ctx, r.client, before, &pool, before.Status, pool.Status); err != nil {
		return reconcile.Result{}, err
	}
	result.RequeueAfter = queue.Soonest(result.RequeueAfter, passing(v4.Stats, v6.Stats))
	return result, fault
}

// nodesInside returns the nodes whose addresses lie in the ranges.
func (r *ClusterIPPoolReconciler) nodesInside(ctx context.Context, ranges []alloc.Range) ([]string, error) {
	var nodes corev1.NodeList
	if err := r.client.List(ctx, &nodes, client.UnsafeDisableDeepCopy); err != nil {
		return nil, fmt.Errorf("list nodes: %w", err)
	}
	var out []string
	for i := range nodes.Items {
		for _, address := range nodes.Items[i].Status.Addresses {
			a, ok := netaddr.Parse(address.Address)
			if ok && slices.ContainsFunc(ranges, func(r alloc.Range) bool { return r.Contains(a) }) {
				out = append(out, fmt.Sprintf("%s is the address of node %s", a, nodes.Items[i].Name))
			}
		}
	}
	slices.Sort(out)
	return out, nil
}

// ensureCIDRs creates the ServiceCIDRs that the pool needs, and removes those
// that it no longer needs.
func (r *ClusterIPPoolReconciler) ensureCIDRs(ctx context.Context, pool *v1alpha1.ClusterIPPool) (reconcile.Result, error) {
	var list networkingv1.ServiceCIDRList
	if err := r.client.List(ctx, &list); err != nil {
		return reconcile.Result{}, fmt.Errorf("list ServiceCIDRs: %w", err)
	}
	ranges, _ := alloc.ParseRanges("spec.ranges", pool.Spec.Ranges)
	wanted := map[string]bool{}
	var errs []error
	for _, rg := range ranges {
		if !rg.Prefix.IsValid() {
			continue
		}
		name := cidrName(pool.Name, rg.Prefix)
		if hasCIDR(list.Items, name, rg.Prefix) {
			continue
		}
		wanted[name] = true
		cidr := &networkingv1.ServiceCIDR{
			ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{v1alpha1.ManagedByLabel: v1alpha1.ManagedBy, poolLabel: pool.Name}},
			Spec:       networkingv1.ServiceCIDRSpec{CIDRs: []string{rg.Prefix.String()}},
		}
		if slices.ContainsFunc(list.Items, func(c networkingv1.ServiceCIDR) bool { return c.Name == name }) {
			continue
		}
		if err := controllerutil.SetControllerReference(pool, cidr, r.client.Scheme()); err != nil {
			return reconcile.Result{}, fmt.Errorf("own ServiceCIDR: %w", err)
		}
		if err := r.client.Create(ctx, cidr); client.IgnoreAlreadyExists(err) != nil {
			errs = append(errs, fmt.Errorf("create ServiceCIDR for %s: %w", rg, err))
			continue
		}
		logf.FromContext(ctx).Info("Created ServiceCIDR", "serviceCIDR", name, "cidr", rg.String())
	}
	result, err := r.removeCIDRs(ctx, pool.Name, wanted)
	return result, errors.Join(append(errs, err)...)
}

// hasCIDR reports whether a ServiceCIDR other than the named one has all of the
// prefix.
func hasCIDR(cidrs []networkingv1.ServiceCIDR, but string, p netip.Prefix) bool {
	for _, c := range cidrs {
		if c.Name == but || !c.DeletionTimestamp.IsZero() {
			continue
		}
		if slices.ContainsFunc(netaddr.ParsePrefixes(c.Spec.CIDRs), func(q netip.Prefix) bool { return q.Bits() <= p.Bits() && q.Contains(p.Addr()) }) {
			return true
		}
	}
	return false
}

// cidrName is the name of a pool's ServiceCIDR: causeway-blue-10.96.64.0-20.
func cidrName(pool string, p netip.Prefix) string {
	address := strings.ReplaceAll(p.Addr().StringExpanded(), ":", "-")
	return "causeway-" + pool + "-" + address + "-" + strconv.Itoa(p.Bits())
}

// removeCIDRs deletes the pool's ServiceCIDRs that are not wanted. One with addresses of
// Services stays: without it the API server would deny every change of theirs.
func (r *ClusterIPPoolReconciler) removeCIDRs(ctx context.Context, pool string, wanted map[string]bool) (reconcile.Result, error) {
	var list networkingv1.ServiceCIDRList
	if err := r.client.List(ctx, &list, client.MatchingLabels{v1alpha1.ManagedByLabel: v1alpha1.ManagedBy, poolLabel: pool}); err != nil {
		return reconcile.Result{}, fmt.Errorf("list ServiceCIDRs: %w", err)
	}
	var result reconcile.Result
	for i := range list.Items {
		c := &list.Items[i]
		if wanted[c.Name] || !c.DeletionTimestamp.IsZero() {
			continue
		}
		if r.inUse(c) {
			result.RequeueAfter = cidrRecheck
			continue
		}
		if err := r.client.Delete(ctx, c); client.IgnoreNotFound(err) != nil {
			return result, fmt.Errorf("delete ServiceCIDR %s: %w", c.Name, err)
		}
		logf.FromContext(ctx).Info("Deleted ServiceCIDR", "serviceCIDR", c.Name)
	}
	return result, nil
}

func (r *ClusterIPPoolReconciler) inUse(c *networkingv1.ServiceCIDR) (yes bool) {
	r.state.With(func(a *services.Allocations, _ time.Time) {
		yes = slices.ContainsFunc(netaddr.ParsePrefixes(c.Spec.CIDRs), a.InUse)
	})
	return yes
}
