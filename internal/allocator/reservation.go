// SPDX-License-Identifier: Apache-2.0

package allocator

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
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
	"github.com/causeway-lb/causeway/internal/alloc/services"
)

// Annotations of the IPAddress objects that keep a quarantined address from the
// API server's own allocator.
const (
	releasedAtAnnotation = "causeway.dev/released-at"
	untilAnnotation      = "causeway.dev/quarantined-until"
	releasedByAnnotation = "causeway.dev/released-by"

	// formerUntilAnnotation is what versions up to 0.1 call untilAnnotation.
	formerUntilAnnotation = "causeway.dev/rests-until"
)

const (
	reserveEvery = 500 * time.Millisecond
	// reserveAtLeast is the shortest quarantine that is worth two writes.
	reserveAtLeast = 5 * time.Second
	// reserveTimeout bounds the creation of one: a Service that gets the address waits
	// for it.
	reserveTimeout = 3 * time.Second
)

// Reservations creates an IPAddress object for each quarantined address, and deletes it
// after the quarantine. So no other Service gets the address, even when Causeway is down and
// the API server allocates, and a restarted controller knows of it.
//
// Between the release of an address in the API server and the creation of the object,
// reserveEvery and a write later, the API server could allocate it, for a request that does
// not pass the webhook. In the other direction there is no gap: a Service gets a quarantined
// address by the webhook, which makes it pending, waits for an object that is being created,
// and deletes the object before it answers; and no object is created for a pending address.
type Reservations struct {
	client     client.Client
	state      *State
	leadership Leadership
}

// NewReservations returns the reservations of the state's addresses.
func NewReservations(c client.Client, state *State, leadership Leadership) *Reservations {
	return &Reservations{client: c, state: state, leadership: leadership}
}

// Run syncs the objects, while this replica leads, until ctx ends.
func (r *Reservations) Run(ctx context.Context) error {
	ticker := time.NewTicker(reserveEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		if !r.leadership.IsLeader() {
			continue
		}
		if err := r.Sync(ctx); err != nil && ctx.Err() == nil {
			logf.FromContext(ctx).Info("IPAddresses of quarantined addresses not synced, will retry", "reason", err.Error())
		}
	}
}

// Sync makes the objects equal the quarantines. It continues after an error and joins all.
func (r *Reservations) Sync(ctx context.Context) error {
	wanted := map[string]alloc.Allocation[netip.Addr]{}
	unwanted := map[string]types.UID{}
	r.state.With(func(b *services.Allocations, now time.Time) {
		b.Expire(now)
		for _, family := range []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol} {
			for allocation := range b.Addresses(family).Quarantined() {
				if reservationOf(b, allocation) != nil {
					wanted[allocation.Value.String()] = allocation
				}
			}
		}
		for name, uid := range r.state.reservations {
			if _, ok := wanted[name]; !ok {
				unwanted[name] = uid
			}
			delete(wanted, name)
		}
	})
	var errs []error
	for name, uid := range unwanted {
		ip := &networkingv1.IPAddress{ObjectMeta: metav1.ObjectMeta{Name: name}}
		err := r.client.Delete(ctx, ip, client.Preconditions{UID: &uid})
		if client.IgnoreNotFound(err) != nil && !apierrors.IsConflict(err) { // it is another one by now
			errs = append(errs, fmt.Errorf("delete IPAddress %s: %w", name, err))
		}
	}
	for name, allocation := range wanted {
		if err := r.Reserve(ctx, allocation); err != nil {
			errs = append(errs, fmt.Errorf("create IPAddress %s: %w", name, err))
		}
	}
	return errors.Join(errs...)
}

// Reserve creates the object of an address that is still quarantined.
func (r *Reservations) Reserve(ctx context.Context, allocation alloc.Allocation[netip.Addr]) error {
	ctx, cancel := context.WithTimeout(ctx, reserveTimeout)
	defer cancel()
	r.state.reserving.Lock()
	defer r.state.reserving.Unlock()
	var ip *networkingv1.IPAddress
	r.state.With(func(b *services.Allocations, _ time.Time) { ip = reservationOf(b, allocation) })
	if ip == nil || !r.leadership.IsLeader() {
		return nil
	}
	// It exists already while the API server has not released it yet.
	return client.IgnoreAlreadyExists(r.client.Create(ctx, ip))
}

// awaitReservation returns when no object is being created for an address that was picked
// before the call.
func awaitReservation(reserving *sync.Mutex) {
	reserving.Lock()
	reserving.Unlock() //nolint:staticcheck // a later caller sees that it is pending
}

// reservationOf returns the object for a quarantined address; nil if the quarantine is short
// or over, or the address was picked.
func reservationOf(b *services.Allocations, allocation alloc.Allocation[netip.Addr]) *networkingv1.IPAddress {
	values := b.Addresses(alloc.FamilyOf(allocation.Value))
	pools := values.PoolsOf(allocation.Value)
	quarantined := slices.ContainsFunc(values.Of(allocation.Value), func(l alloc.Allocation[netip.Addr]) bool { return l.State == alloc.Quarantined })
	if len(pools) == 0 || !quarantined || values.Taken(allocation.Value) || allocation.Until.Sub(allocation.Since) < reserveAtLeast {
		return nil
	}
	return NewReservation(allocation, pools[0])
}

// NewReservation returns the object of a quarantined address of a pool.
func NewReservation(allocation alloc.Allocation[netip.Addr], pool string) *networkingv1.IPAddress {
	return &networkingv1.IPAddress{
		ObjectMeta: metav1.ObjectMeta{
			Name:   allocation.Value.String(),
			Labels: map[string]string{networkingv1.LabelManagedBy: v1alpha1.ManagedBy},
			Annotations: map[string]string{
				releasedAtAnnotation: allocation.Since.UTC().Format(time.RFC3339),
				untilAnnotation:      allocation.Until.UTC().Format(time.RFC3339),
				releasedByAnnotation: allocation.Owner.String(),
			},
		},
		Spec: networkingv1.IPAddressSpec{ParentRef: &networkingv1.ParentReference{
			Group: v1alpha1.GroupVersion.Group, Resource: "clusterippools", Name: pool,
		}},
	}
}

// isReservation reports whether an IPAddress is a reservation.
func isReservation(ip metav1.Object) bool {
	return ip.GetLabels()[networkingv1.LabelManagedBy] == v1alpha1.ManagedBy
}

// readReservation returns the content of a reservation; false for other IPAddresses.
func readReservation(ip metav1.Object) (owner alloc.Owner, since, until time.Time, ok bool) {
	since, err1 := time.Parse(time.RFC3339, ip.GetAnnotations()[releasedAtAnnotation])
	until, err2 := time.Parse(time.RFC3339, cmp.Or(ip.GetAnnotations()[untilAnnotation], ip.GetAnnotations()[formerUntilAnnotation]))
	namespace, name, err3 := toolscache.SplitMetaNamespaceKey(ip.GetAnnotations()[releasedByAnnotation])
	return alloc.Owner{Namespace: namespace, Name: name}, since, until, isReservation(ip) && errors.Join(err1, err2, err3) == nil
}
