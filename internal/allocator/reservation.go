// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	logf "sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/causeway-lb/causeway/api/v1alpha1"
	"github.com/causeway-lb/causeway/internal/alloc"
	"github.com/causeway-lb/causeway/internal/alloc/book"
)

// Annotations of the IPAddress objects that keep a resting address from the API
// server's own allocator.
const (
	holdSince   = "causeway.dev/released-at"
	holdUntil   = "causeway.dev/rests-until"
	holdService = "causeway.dev/released-by"
)

const (
	holdEvery = 500 * time.Millisecond
	// holdAtLeast is the rest that is worth two writes.
	holdAtLeast = 5 * time.Second
	// holdWithin is how long making one may take: a Service that is to have the
	// address waits for it.
	holdWithin = 3 * time.Second
)

// holdKeeper makes an IPAddress object for each address that rests, and takes
// it away after the rest. So the address rests even when Causeway is down and
// the API server allocates, and a restarted controller knows that it does.
//
// Between the release of an address in the API server and the creation of the
// object, holdEvery and a write, the API server could give it away; that takes
// a request that does not come by the webhook, which does not give it away. The
// other way round there is no gap: a Service that gets a resting address gets it
// by the webhook, which picks it first, then waits for the object that is just
// being made, if one is, and deletes it before it answers; and no object is made
// for an address that is picked.
type holdKeeper struct {
	client client.Client
	book   *serviceBook
	term   grantor
}

// NeedLeaderElection is false: the holder of the term keeps the holds.
func (k *holdKeeper) NeedLeaderElection() bool { return false }

// Start keeps the objects until ctx ends.
func (k *holdKeeper) Start(ctx context.Context) error {
	ticker := time.NewTicker(holdEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		if !k.term.held() {
			continue
		}
		if err := k.sync(ctx); err != nil && ctx.Err() == nil {
			logf.FromContext(ctx).Info("IPAddresses of resting addresses not kept, will retry", "reason", err.Error())
		}
	}
}

// sync makes the objects equal the rests. One that the API server refuses does
// not keep it from the others.
func (k *holdKeeper) sync(ctx context.Context) error {
	wanted := map[string]alloc.Lease[netip.Addr]{}
	unwanted := map[string]types.UID{}
	k.book.with(func(b *book.Book) {
		b.Expire(k.book.now())
		for _, family := range []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol} {
			for lease := range b.Addresses(family).Resting() {
				if _, ok := holdOf(b, lease); ok {
					wanted[lease.Value.String()] = lease
				}
			}
		}
		for name, uid := range k.book.holds {
			if _, ok := wanted[name]; !ok {
				unwanted[name] = uid
			}
			delete(wanted, name)
		}
	})
	var errs []error
	for name, uid := range unwanted {
		hold := &networkingv1.IPAddress{ObjectMeta: metav1.ObjectMeta{Name: name}}
		err := k.client.Delete(ctx, hold, client.Preconditions{UID: &uid})
		if client.IgnoreNotFound(err) != nil && !apierrors.IsConflict(err) { // it is another one by now
			errs = append(errs, fmt.Errorf("delete IPAddress %s: %w", name, err))
		}
	}
	for name, lease := range wanted {
		if err := k.create(ctx, lease); err != nil {
			errs = append(errs, fmt.Errorf("create IPAddress %s: %w", name, err))
		}
	}
	return errors.Join(errs...)
}

// create makes the object of an address that still rests.
func (k *holdKeeper) create(ctx context.Context, lease alloc.Lease[netip.Addr]) error {
	ctx, cancel := context.WithTimeout(ctx, holdWithin)
	defer cancel()
	k.book.holding.Lock()
	defer k.book.holding.Unlock()
	var hold *networkingv1.IPAddress
	k.book.with(func(b *book.Book) { hold, _ = holdOf(b, lease) })
	if hold == nil || !k.term.held() {
		return nil
	}
	// It exists already while the API server has not released it yet.
	return client.IgnoreAlreadyExists(k.client.Create(ctx, hold))
}

// awaitHold returns when no object is being made for an address that was picked
// before the call.
func (b *serviceBook) awaitHold() {
	b.holding.Lock()
	b.holding.Unlock() //nolint:staticcheck // whoever comes later sees the pick
}

// holdOf returns the object that a resting address is to have; false when it is
// to have none: it rests for a moment only, or no longer, or was picked.
func holdOf(b *book.Book, lease alloc.Lease[netip.Addr]) (*networkingv1.IPAddress, bool) {
	ledger := b.Addresses(alloc.FamilyOf(lease.Value))
	pools := ledger.PoolsOf(lease.Value)
	rests := slices.ContainsFunc(ledger.Leases(lease.Value), func(l alloc.Lease[netip.Addr]) bool { return l.State == alloc.Resting })
	if len(pools) == 0 || !rests || ledger.Taken(lease.Value) || lease.Until.Sub(lease.Since) < holdAtLeast {
		return nil, false
	}
	return newHold(lease, pools[0]), true
}

// ipAddressMetadata is an IPAddress without its spec, which says nothing new.
func ipAddressMetadata() *metav1.PartialObjectMetadata {
	return &metav1.PartialObjectMetadata{TypeMeta: metav1.TypeMeta{APIVersion: networkingv1.SchemeGroupVersion.String(), Kind: "IPAddress"}}
}

func newHold(lease alloc.Lease[netip.Addr], pool string) *networkingv1.IPAddress {
	return &networkingv1.IPAddress{
		ObjectMeta: metav1.ObjectMeta{
			Name:   lease.Value.String(),
			Labels: map[string]string{networkingv1.LabelManagedBy: v1alpha1.ManagedBy},
			Annotations: map[string]string{
				holdSince:   lease.Since.UTC().Format(time.RFC3339),
				holdUntil:   lease.Until.UTC().Format(time.RFC3339),
				holdService: lease.Owner.String(),
			},
		},
		Spec: networkingv1.IPAddressSpec{ParentRef: &networkingv1.ParentReference{
			Group: v1alpha1.GroupVersion.Group, Resource: "clusterippools", Name: pool,
		}},
	}
}

// isHold tells whether an IPAddress is one of ours.
func isHold(ip metav1.Object) bool {
	return ip.GetLabels()[networkingv1.LabelManagedBy] == v1alpha1.ManagedBy
}

// readHold returns what an IPAddress of ours says; false for others.
func readHold(ip metav1.Object) (owner alloc.Owner, since, until time.Time, ok bool) {
	if !isHold(ip) {
		return owner, since, until, false
	}
	since, err1 := time.Parse(time.RFC3339, ip.GetAnnotations()[holdSince])
	until, err2 := time.Parse(time.RFC3339, ip.GetAnnotations()[holdUntil])
	namespace, name, err3 := toolscache.SplitMetaNamespaceKey(ip.GetAnnotations()[holdService])
	return alloc.Owner{Namespace: namespace, Name: name}, since, until, err1 == nil && err2 == nil && err3 == nil
}
