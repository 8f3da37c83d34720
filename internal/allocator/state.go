// SPDX-License-Identifier: Apache-2.0

package allocator

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/resourceversion"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	logf "sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/causeway-lb/causeway/api/v1alpha1"
	"github.com/causeway-lb/causeway/internal/alloc"
	"github.com/causeway-lb/causeway/internal/alloc/services"
	"github.com/causeway-lb/causeway/internal/netaddr"
	"github.com/causeway-lb/causeway/internal/queue"
)

// State is the Allocations as the API shows them. Every replica has one, leader or not, so
// that a successor is ready immediately.
type State struct {
	now     func() time.Time
	changed func(Change)

	mu           sync.Mutex
	allocations  *services.Allocations
	cidrs        map[string]*networkingv1.ServiceCIDR
	seen         map[types.UID]string // the version of each Service that allocations has
	reservations map[string]types.UID // the IPAddresses with which addresses are kept from the API server's allocator
	// The newest versions that the watches delivered: nothing older is news.
	newestService, newestIPAddress string

	reserving  sync.Mutex    // while a reservation is being made; see Reservations
	synced     chan struct{} // closed when everything was seen that the API had at start
	unverified chan struct{} // has one item when ports are to be verified; see PortAudit
}

// Change is what changed in a State other than the allocations.
type Change struct {
	// Pools is true if pools changed.
	Pools bool
	// Sharing are the Services that share a value now, or no longer do.
	Sharing []types.NamespacedName
}

// NewState returns an empty State. now is the clock. changed is called after every change of
// the state; it must not block.
func NewState(config services.Config, now func() time.Time, changed func(Change)) *State {
	return &State{
		now: now, changed: changed,
		allocations:  services.New(config),
		cidrs:        map[string]*networkingv1.ServiceCIDR{},
		seen:         map[types.UID]string{},
		reservations: map[string]types.UID{},
		synced:       make(chan struct{}),
		unverified:   make(chan struct{}, 1),
	}
}

// Follow keeps the state up to date from the cache until ctx ends.
func (s *State) Follow(ctx context.Context, from cache.Cache) error {
	return queue.Follow(ctx, from, s.synced, s.Watches(ctx)...)
}

// Watches are the kinds of objects that the state consists of: pools before Services, because
// a new pool walks all allocations.
func (s *State) Watches(ctx context.Context) []queue.Watch {
	return []queue.Watch{
		watch(s, &networkingv1.ServiceCIDR{}, s.setCIDR, s.forgetCIDR),
		watchPools(ctx, s, &v1alpha1.ClusterIPPool{}, (*services.Allocations).KnowsClusterIPPool, (*services.Allocations).SetClusterIPPool, (*services.Allocations).DeleteClusterIPPool),
		watchPools(ctx, s, &v1alpha1.NodePortPool{}, (*services.Allocations).KnowsNodePortPool, (*services.Allocations).SetNodePortPool, (*services.Allocations).DeleteNodePortPool),
		watchPools(ctx, s, &v1alpha1.LoadBalancerPool{}, (*services.Allocations).KnowsLoadBalancerPool, (*services.Allocations).SetLoadBalancerPool, (*services.Allocations).DeleteLoadBalancerPool),
		// An IPAddress without its spec, which is not needed.
		watch(s, &metav1.PartialObjectMetadata{TypeMeta: metav1.TypeMeta{APIVersion: networkingv1.SchemeGroupVersion.String(), Kind: "IPAddress"}},
			s.setIPAddress, s.forgetIPAddress),
		watch(s, &corev1.Service{}, s.setService, s.forgetService),
	}
}

// watch calls set and forget with the lock held.
func watch[T client.Object](s *State, example T, set, forget func(T) Change) queue.Watch {
	locked := func(f func(T) Change, object T) []types.NamespacedName {
		s.mu.Lock()
		change := f(object)
		s.mu.Unlock()
		s.changed(change)
		return nil
	}
	return queue.On(example, 0,
		func(_, now T) []types.NamespacedName { return locked(set, now) },
		func(last T) []types.NamespacedName { return locked(forget, last) })
}

// watchPools is watch for a kind of pool. Of a pool with invalid ranges the valid ones are
// used; its reconciler reports the others.
func watchPools[T client.Object](ctx context.Context, s *State, example T, knows func(*services.Allocations, string, int64) bool,
	set func(*services.Allocations, T) error, forget func(*services.Allocations, string)) queue.Watch {
	return watch(s, example, func(pool T) Change {
		if knows(s.allocations, pool.GetName(), pool.GetGeneration()) {
			return Change{} // only its status changed
		}
		if err := set(s.allocations, pool); err != nil {
			logf.FromContext(ctx).Info("Pool is used in part", "kind", fmt.Sprintf("%T", pool), "pool", pool.GetName(), "reason", err.Error())
		}
		if _, ports := client.Object(pool).(*v1alpha1.NodePortPool); ports {
			s.unverifyPorts()
		}
		return Change{Pools: true}
	}, func(pool T) Change {
		forget(s.allocations, pool.GetName())
		return Change{Pools: true}
	})
}

// Ready is a health check: it returns an error until everything in the API was seen.
func (s *State) Ready(*http.Request) error {
	if !s.isSynced() {
		return errors.New("not all Services and pools have been read yet")
	}
	return nil
}

func (s *State) isSynced() bool {
	select {
	case <-s.synced:
		return true
	default:
		return false
	}
}

// With calls f with the allocations, which f must not keep, and the time.
func (s *State) With(f func(b *services.Allocations, now time.Time)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f(s.allocations, s.now())
}

func (s *State) setService(svc *corev1.Service) Change {
	s.newestService = newer(s.newestService, svc.ResourceVersion)
	return s.observe(svc)
}

// observe observes a Service, unless a later version was seen. The lock is held.
func (s *State) observe(svc *corev1.Service) Change {
	if seen, ok := s.seen[svc.UID]; ok && older(svc.ResourceVersion, seen) {
		return Change{}
	}
	s.seen[svc.UID] = svc.ResourceVersion
	owner := alloc.OwnerOf(svc)
	return sharing(owner, s.allocations.Observe(svc, s.now()))
}

// sharing is the Change of an owner that has, or had, values in common with
// others.
func sharing(owner alloc.Owner, others []alloc.Owner) Change {
	if len(others) == 0 {
		return Change{}
	}
	var c Change
	for _, o := range append(others, owner) {
		c.Sharing = append(c.Sharing, types.NamespacedName{Namespace: o.Namespace, Name: o.Name})
	}
	return c
}

func older(version, than string) bool {
	order, err := resourceversion.CompareResourceVersion(version, than)
	return err == nil && order < 0
}

// newer returns the later of two versions; the first may be empty, for none.
func newer(v, w string) string {
	if v == "" || older(v, w) {
		return w
	}
	return v
}

// catchUp observes a stored Service that the watch may deliver later: of a Service that is
// changed twice in a moment, the State would not know what the first change released. An
// unknown Service may be deleted by now, and is left to the watch.
func (s *State) catchUp(stored *corev1.Service) {
	var change Change
	s.mu.Lock()
	if seen, ok := s.seen[stored.UID]; ok && seen != stored.ResourceVersion {
		change = s.observe(stored)
	}
	s.mu.Unlock()
	s.notify(change)
}

// notify calls changed if something other than the allocations changed. The lock is not
// held.
func (s *State) notify(c Change) {
	if c.Pools || len(c.Sharing) > 0 {
		s.changed(c)
	}
}

func (s *State) forgetService(svc *corev1.Service) Change {
	s.newestService = newer(s.newestService, svc.ResourceVersion)
	delete(s.seen, svc.UID)
	owner := alloc.OwnerOf(svc)
	return sharing(owner, s.allocations.Forget(owner, s.now()))
}

// unverifyPorts marks all unused ports as unverified until the audit has asked the API server
// for them. The lock is held.
func (s *State) unverifyPorts() {
	s.allocations.Expire(s.now()) // a replica that grants nothing has not looked at the clock
	s.allocations.Ports().MarkUnverified(s.now(), s.now().Add(suspectFor))
	select {
	case s.unverified <- struct{}{}:
	default: // the audit has not seen the last one yet
	}
}

func (s *State) setCIDR(c *networkingv1.ServiceCIDR) Change {
	s.cidrs[c.Name] = c
	s.setCIDRs()
	return Change{}
}

func (s *State) forgetCIDR(c *networkingv1.ServiceCIDR) Change {
	delete(s.cidrs, c.Name)
	s.setCIDRs()
	return Change{}
}

// setCIDRs sets what the API server allocates from: the CIDRs that it was started with first,
// since they decide the default family. CIDRs that are being deleted, not ready, or so new
// that the API server may not know them yet are left out.
func (s *State) setCIDRs() {
	var cidrs []*networkingv1.ServiceCIDR
	for _, c := range s.cidrs {
		age := s.now().Sub(c.CreationTimestamp.Time)
		switch {
		case !c.DeletionTimestamp.IsZero() || meta.IsStatusConditionFalse(c.Status.Conditions, networkingv1.ServiceCIDRConditionReady):
		case age < cidrDelay && c.Name != apiServerCIDR:
			time.AfterFunc(cidrDelay-age, func() {
				s.With(func(*services.Allocations, time.Time) { s.setCIDRs() })
				s.changed(Change{})
			})
		default:
			cidrs = append(cidrs, c)
		}
	}
	slices.SortFunc(cidrs, func(c, d *networkingv1.ServiceCIDR) int {
		switch apiServerCIDR {
		case c.Name:
			return -1
		case d.Name:
			return 1
		}
		return strings.Compare(c.Name, d.Name)
	})
	var prefixes []netip.Prefix
	for _, c := range cidrs {
		prefixes = append(prefixes, netaddr.ParsePrefixes(c.Spec.CIDRs)...)
	}
	s.allocations.SetServiceCIDRs(prefixes)
}

const (
	// apiServerCIDR is the ServiceCIDR that the API server makes from its flags.
	apiServerCIDR = "kubernetes"
	// cidrDelay is how long a ServiceCIDR is ignored after its creation: the API server's
	// allocator sees it later, too, and creation times are in whole seconds.
	cidrDelay = 2 * time.Second
)

// setIPAddress observes an address that is booked in the API, which is nearly always a
// Service's, or a reservation of an earlier process.
func (s *State) setIPAddress(ip *metav1.PartialObjectMetadata) Change {
	addr, err := netip.ParseAddr(ip.Name)
	if err != nil {
		return Change{}
	}
	s.newestIPAddress = newer(s.newestIPAddress, ip.ResourceVersion)
	delete(s.reservations, ip.Name)
	if isReservation(ip) {
		s.reservations[ip.Name] = ip.UID
	}
	values := s.allocations.Addresses(alloc.FamilyOf(addr))
	owner, since, until, ours := readReservation(ip)
	if !ours {
		values.SetBooked(addr, true)
	} else if until.After(s.now()) {
		values.Quarantine(addr, owner, since, until)
	}
	return Change{}
}

func (s *State) forgetIPAddress(ip *metav1.PartialObjectMetadata) Change {
	s.newestIPAddress = newer(s.newestIPAddress, ip.ResourceVersion)
	delete(s.reservations, ip.Name)
	if addr, err := netip.ParseAddr(ip.Name); err == nil {
		s.allocations.Addresses(alloc.FamilyOf(addr)).SetBooked(addr, false)
	}
	return Change{}
}

// Deny takes back an address that was picked for an owner and that has an IPAddress other than
// a reservation. If the watch has delivered the deletion of that object already it does
// nothing: no event would undo it.
func (s *State) Deny(addr netip.Addr, owner alloc.Owner, booking client.Object) {
	s.mu.Lock()
	defer s.mu.Unlock()
	values := s.allocations.Addresses(alloc.FamilyOf(addr))
	if values.IsBooked(addr) || older(s.newestIPAddress, booking.GetResourceVersion()) {
		values.Deny(addr, owner)
	}
}

// Correct replaces what is known of a Service by its present state in the API, which may be
// that it is deleted.
func (s *State) Correct(ctx context.Context, live client.Reader, holder alloc.Owner) error {
	var svc corev1.Service
	err := live.Get(ctx, types.NamespacedName{Namespace: holder.Namespace, Name: holder.Name}, &svc)
	if client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("look at the holder: %w", err)
	}
	var change Change
	defer func() { s.notify(change) }()
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil || string(svc.UID) != holder.UID {
		change = sharing(holder, s.allocations.Forget(holder, s.now()))
	}
	// An unknown Service that is older than the newest known one was deleted after it
	// was read.
	if _, known := s.seen[svc.UID]; err == nil && (known || older(s.newestService, svc.ResourceVersion)) {
		change.Sharing = append(change.Sharing, s.observe(&svc).Sharing...)
	}
	return nil
}
