// SPDX-License-Identifier: Apache-2.0

package controllers

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
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	logf "sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/causeway-lb/causeway/api/v1alpha1"
	"github.com/causeway-lb/causeway/internal/alloc"
	"github.com/causeway-lb/causeway/internal/alloc/book"
	"github.com/causeway-lb/causeway/internal/netaddr"
)

// serviceBook is a book.Book that follows the API. Every replica keeps one,
// leader or not, so that a successor is ready at once.
type serviceBook struct {
	cache cache.Cache
	now   func() time.Time

	mu    sync.Mutex
	book  *book.Book
	cidrs map[string]*networkingv1.ServiceCIDR
	seen  map[types.UID]string // the version of each Service that the book has
	holds map[string]types.UID // the IPAddresses with which addresses are kept from the API server's allocator
	// How far the watches have told: nothing older than that is news.
	toldServices, toldIPAddresses string

	holding sync.Mutex // while one of the holds is being made; see holdKeeper

	synced   chan struct{} // closed when the book has everything that the API had at start
	changed  func()        // called after every change; it must not block
	unproven func()        // called when ports are to be audited; it must not block
	pools    func()        // called after a change of pools or ServiceCIDRs; it must not block
}

func newServiceBook(c cache.Cache, config book.Config) *serviceBook {
	return &serviceBook{
		cache:    c,
		now:      time.Now,
		book:     book.New(config),
		cidrs:    map[string]*networkingv1.ServiceCIDR{},
		seen:     map[types.UID]string{},
		holds:    map[string]types.UID{},
		synced:   make(chan struct{}),
		changed:  func() {},
		unproven: func() {},
		pools:    func() {},
	}
}

// NeedLeaderElection is false: the webhook answers in every replica.
func (b *serviceBook) NeedLeaderElection() bool { return false }

// Start feeds the book from the cache until ctx ends.
func (b *serviceBook) Start(ctx context.Context) error {
	feeds := []struct {
		obj         client.Object
		set, forget func(any)
	}{
		// Pools before Services: a pool that is set looks at every lease.
		{&networkingv1.ServiceCIDR{}, b.setCIDR, b.forgetCIDR},
		{&v1alpha1.ClusterIPPool{}, b.setClusterIPPool(ctx), b.forgetPool((*book.Book).DeleteClusterIPPool)},
		{&v1alpha1.NodePortPool{}, b.setNodePortPool(ctx), b.forgetPool((*book.Book).DeleteNodePortPool)},
		{&v1alpha1.LoadBalancerPool{}, b.setLoadBalancerPool(ctx), b.forgetPool((*book.Book).DeleteLoadBalancerPool)},
		{ipAddressMetadata(), b.setIPAddress, b.forgetIPAddress},
		{&corev1.Service{}, b.setService, b.forgetService},
	}
	for _, feed := range feeds {
		informer, err := b.cache.GetInformer(ctx, feed.obj)
		if err != nil {
			return fmt.Errorf("watch %T: %w", feed.obj, err)
		}
		registration, err := informer.AddEventHandler(b.handler(feed.set, feed.forget))
		if err != nil {
			return fmt.Errorf("watch %T: %w", feed.obj, err)
		}
		if !toolscache.WaitForCacheSync(ctx.Done(), registration.HasSynced) {
			return nil // ctx ended
		}
	}
	close(b.synced)
	<-ctx.Done()
	return nil
}

// ready is a health check: whether the book has everything that the API had.
func (b *serviceBook) ready(*http.Request) error {
	select {
	case <-b.synced:
		return nil
	default:
		return errors.New("not all Services and pools have been read yet")
	}
}

// handler calls set and forget with the lock held.
func (b *serviceBook) handler(set, forget func(any)) toolscache.ResourceEventHandler {
	locked := func(f func()) {
		b.mu.Lock()
		f()
		b.mu.Unlock()
		b.changed()
	}
	return toolscache.ResourceEventHandlerFuncs{
		AddFunc: func(obj any) { locked(func() { set(obj) }) },
		UpdateFunc: func(old, obj any) {
			locked(func() {
				// An object that was deleted and created again while the watch was
				// broken arrives as an update.
				if old.(client.Object).GetUID() != obj.(client.Object).GetUID() {
					forget(old)
				}
				set(obj)
			})
		},
		DeleteFunc: func(obj any) {
			if gone, ok := obj.(toolscache.DeletedFinalStateUnknown); ok {
				obj = gone.Obj
			}
			locked(func() { forget(obj) })
		},
	}
}

// with calls f with the book, which f must not keep.
func (b *serviceBook) with(f func(*book.Book)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	f(b.book)
}

func (b *serviceBook) setService(obj any) {
	svc := obj.(*corev1.Service)
	b.toldServices = newer(b.toldServices, svc.ResourceVersion)
	b.observe(svc)
}

// observe has the book see a Service, unless it saw a later version. The lock is
// held.
func (b *serviceBook) observe(svc *corev1.Service) {
	if seen, ok := b.seen[svc.UID]; ok && older(svc.ResourceVersion, seen) {
		return
	}
	b.seen[svc.UID] = svc.ResourceVersion
	b.book.Observe(svc, b.now())
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

// catchUp has the book see what the API server says is stored, which the watch
// may tell a moment later: a Service that was just changed, and is changed
// again, would not be known to be without what it let go. One that the book does
// not know may be gone by now, and is left to the watch.
func (b *serviceBook) catchUp(stored *corev1.Service) {
	b.with(func(*book.Book) {
		if seen, ok := b.seen[stored.UID]; ok && seen != stored.ResourceVersion {
			b.observe(stored)
		}
	})
}

func (b *serviceBook) forgetService(obj any) {
	svc := obj.(*corev1.Service)
	b.toldServices = newer(b.toldServices, svc.ResourceVersion)
	delete(b.seen, svc.UID)
	b.book.Forget(book.OwnerOf(svc), b.now())
}

// A pool whose ranges are wrong is used as far as they are right; its own
// reconciler tells the administrator.
func (b *serviceBook) setClusterIPPool(ctx context.Context) func(any) {
	return func(obj any) {
		pool := obj.(*v1alpha1.ClusterIPPool)
		if b.book.Knows(pool.Name, pool.Generation) {
			return // only its status changed
		}
		defer b.pools()
		if err := b.book.SetClusterIPPool(pool); err != nil {
			logf.FromContext(ctx).Info("ClusterIPPool is used in part", "pool", pool.Name, "reason", err.Error())
		}
	}
}

func (b *serviceBook) setNodePortPool(ctx context.Context) func(any) {
	return func(obj any) {
		pool := obj.(*v1alpha1.NodePortPool)
		if b.book.KnowsPorts(pool.Name, pool.Generation) {
			return
		}
		defer b.pools()
		if err := b.book.SetNodePortPool(pool); err != nil {
			logf.FromContext(ctx).Info("NodePortPool is used in part", "pool", pool.Name, "reason", err.Error())
		}
		b.unprovePorts()
	}
}

// unprovePorts takes no unused port for free before the API server was asked
// for it. The lock is held.
func (b *serviceBook) unprovePorts() {
	b.book.Expire(b.now()) // a replica that grants nothing has not looked at the clock
	b.book.Ports().Unprove(b.now(), b.now().Add(auditFor))
	b.unproven()
}

func (b *serviceBook) setLoadBalancerPool(ctx context.Context) func(any) {
	return func(obj any) {
		pool := obj.(*v1alpha1.LoadBalancerPool)
		if b.book.KnowsLoadBalancers(pool.Name, pool.Generation) {
			return
		}
		defer b.pools()
		if err := b.book.SetLoadBalancerPool(pool); err != nil {
			logf.FromContext(ctx).Info("LoadBalancerPool is guarded in part", "pool", pool.Name, "reason", err.Error())
		}
	}
}

func (b *serviceBook) forgetPool(forget func(*book.Book, string)) func(any) {
	return func(obj any) {
		defer b.pools()
		forget(b.book, obj.(client.Object).GetName())
	}
}

func (b *serviceBook) setCIDR(obj any) {
	c := obj.(*networkingv1.ServiceCIDR)
	b.cidrs[c.Name] = c
	b.recount()
}

func (b *serviceBook) forgetCIDR(obj any) {
	delete(b.cidrs, obj.(client.Object).GetName())
	b.recount()
}

// recount tells the book what the API server allocates from: the CIDRs that it
// was started with first, since they decide the default family. Those that are
// going away, not ready, or so new that the API server may not know them yet
// are left out.
func (b *serviceBook) recount() {
	var cidrs []*networkingv1.ServiceCIDR
	for _, c := range b.cidrs {
		age := b.now().Sub(c.CreationTimestamp.Time)
		switch {
		case !c.DeletionTimestamp.IsZero() || meta.IsStatusConditionFalse(c.Status.Conditions, networkingv1.ServiceCIDRConditionReady):
		case age < cidrSettle && c.Name != apiServerCIDR:
			time.AfterFunc(cidrSettle-age, func() {
				b.with(func(*book.Book) { b.recount() })
				b.changed()
			})
		default:
			cidrs = append(cidrs, c)
		}
	}
	slices.SortFunc(cidrs, func(c, d *networkingv1.ServiceCIDR) int {
		later := func(c *networkingv1.ServiceCIDR) string {
			if c.Name == apiServerCIDR {
				return ""
			}
			return c.Name
		}
		return strings.Compare(later(c), later(d))
	})
	var prefixes []netip.Prefix
	for _, c := range cidrs {
		for _, s := range c.Spec.CIDRs {
			if p, ok := netaddr.ParsePrefix(s); ok {
				prefixes = append(prefixes, p)
			}
		}
	}
	b.book.SetServiceCIDRs(prefixes)
}

// apiServerCIDR is the ServiceCIDR that the API server makes from its flags.
const apiServerCIDR = "kubernetes"

// cidrSettle is how long a ServiceCIDR is left alone after its creation: the API
// server hears of it a moment later, too, and its clock counts in seconds.
const cidrSettle = 2 * time.Second

// setIPAddress learns of an address that is booked in the API, which is nearly
// always a Service's, and of those with which an earlier process kept released
// addresses from the API server's allocator.
func (b *serviceBook) setIPAddress(obj any) {
	ip := obj.(*metav1.PartialObjectMetadata)
	addr, err := netip.ParseAddr(ip.Name)
	if err != nil {
		return
	}
	b.toldIPAddresses = newer(b.toldIPAddresses, ip.ResourceVersion)
	if isHold(ip) {
		b.holds[ip.Name] = ip.UID
	} else {
		delete(b.holds, ip.Name)
	}
	ledger := b.book.Addresses(alloc.FamilyOf(addr))
	owner, since, until, ours := readHold(ip)
	if !ours {
		ledger.Booked(addr, true)
	} else if until.After(b.now()) {
		ledger.Rest(addr, owner, since, until)
	}
}

func (b *serviceBook) forgetIPAddress(obj any) {
	ip := obj.(client.Object)
	b.toldIPAddresses = newer(b.toldIPAddresses, ip.GetResourceVersion())
	delete(b.holds, ip.GetName())
	if addr, err := netip.ParseAddr(ip.GetName()); err == nil {
		b.book.Addresses(alloc.FamilyOf(addr)).Booked(addr, false)
	}
}

// deny takes an address back that was picked for an owner and that an IPAddress
// which is not ours stands for. If the watch has told of the end of that object
// already, nothing is left to take back for: nobody would ever tell of it again.
func (b *serviceBook) deny(addr netip.Addr, owner alloc.Owner, booking client.Object) {
	b.with(func(bk *book.Book) {
		ledger := bk.Addresses(alloc.FamilyOf(addr))
		if ledger.IsBooked(addr) || older(b.toldIPAddresses, booking.GetResourceVersion()) {
			ledger.Deny(addr, owner)
		}
	})
}

// correct replaces what the book believes about a Service by what the API
// server says now, which may be that it is gone.
func (b *serviceBook) correct(ctx context.Context, live client.Reader, holder alloc.Owner) error {
	var svc corev1.Service
	err := live.Get(ctx, types.NamespacedName{Namespace: holder.Namespace, Name: holder.Name}, &svc)
	if client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("look at the holder: %w", err)
	}
	b.with(func(bk *book.Book) {
		if err != nil || string(svc.UID) != holder.UID {
			bk.Forget(holder, b.now())
		}
		// A Service that the book does not know, and that is no news, was deleted
		// after it was read.
		if _, known := b.seen[svc.UID]; err == nil && (known || older(b.toldServices, svc.ResourceVersion)) {
			b.observe(&svc)
		}
	})
	return nil
}
