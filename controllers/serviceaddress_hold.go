// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
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
)

// holdKeeper makes an IPAddress object for each address that rests, and takes
// it away after the rest. So the address rests even when Causeway is down and
// the API server allocates, and a restarted controller knows that it does.
//
// Between the release of an address in the API server and the creation of the
// object, holdEvery and a write, the API server could give it away; that takes
// a request that does not come by the webhook, which does not give it away. The
// other way round there is no gap: a Service that gets a resting address gets it
// by the webhook, which deletes the object before it answers.
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

// sync makes the objects equal the rests.
func (k *holdKeeper) sync(ctx context.Context) error {
	wanted := map[string]*networkingv1.IPAddress{}
	k.book.with(func(b *book.Book) {
		b.Expire(k.book.now())
		for _, family := range []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol} {
			ledger := b.Addresses(family)
			for lease := range ledger.Resting() {
				pools := ledger.PoolsOf(lease.Value)
				if len(pools) > 0 && lease.Until.Sub(lease.Since) >= holdAtLeast {
					wanted[lease.Value.String()] = newHold(lease, pools[0])
				}
			}
		}
	})
	list := metav1.PartialObjectMetadataList{TypeMeta: metav1.TypeMeta{APIVersion: networkingv1.SchemeGroupVersion.String(), Kind: "IPAddressList"}}
	if err := k.client.List(ctx, &list, client.MatchingLabels{networkingv1.LabelManagedBy: v1alpha1.ManagedBy}); err != nil {
		return fmt.Errorf("list IPAddresses: %w", err)
	}
	for i := range list.Items {
		hold := &list.Items[i]
		if wanted[hold.Name] != nil {
			delete(wanted, hold.Name)
			continue
		}
		if err := k.client.Delete(ctx, hold, client.Preconditions{UID: &hold.UID}); client.IgnoreNotFound(err) != nil {
			return fmt.Errorf("delete IPAddress %s: %w", hold.Name, err)
		}
	}
	for name, hold := range wanted {
		// It exists already while the API server has not released it yet.
		if err := k.client.Create(ctx, hold); client.IgnoreAlreadyExists(err) != nil {
			return fmt.Errorf("create IPAddress %s: %w", name, err)
		}
	}
	return nil
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

// readHold returns what an IPAddress of ours says; false for others.
func readHold(ip metav1.Object) (owner alloc.Owner, since, until time.Time, ok bool) {
	if ip.GetLabels()[networkingv1.LabelManagedBy] != v1alpha1.ManagedBy {
		return owner, since, until, false
	}
	since, err1 := time.Parse(time.RFC3339, ip.GetAnnotations()[holdSince])
	until, err2 := time.Parse(time.RFC3339, ip.GetAnnotations()[holdUntil])
	namespace, name, err3 := toolscache.SplitMetaNamespaceKey(ip.GetAnnotations()[holdService])
	return alloc.Owner{Namespace: namespace, Name: name}, since, until, err1 == nil && err2 == nil && err3 == nil
}
