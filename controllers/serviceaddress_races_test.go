// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"net/netip"
	"path/filepath"
	"sync/atomic"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/uuid"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"github.com/causeway-lb/causeway/api/v1alpha1"
	"github.com/causeway-lb/causeway/controllers/clusterip"
	"github.com/causeway-lb/causeway/internal/alloc"
	"github.com/causeway-lb/causeway/internal/alloc/services"
	"github.com/causeway-lb/causeway/internal/allocator"
)

// oldNews is an API server whose answers arrive after something else has happened.
type oldNews struct {
	client.Client
	meanwhile func()
}

func (o *oldNews) Get(ctx context.Context, key client.ObjectKey, obj client.Object, opts ...client.GetOption) error {
	err := o.Client.Get(ctx, key, obj, opts...)
	o.meanwhile()
	return err
}

// successor is a term that another replica seems to hold, until it is this one's.
type successor struct {
	address string
	mine    atomic.Bool
}

func (s *successor) IsLeader() bool     { return s.mine.Load() }
func (s *successor) Leader() string     { return s.address }
func (s *successor) Epoch() alloc.Epoch { return alloc.Epoch{} }

// tell has a state see a change as its watches do: before is nil for an object
// that is new, now for one that was deleted.
func tell(ctx context.Context, state *allocator.State, before, now client.Object) {
	GinkgoHelper()
	for _, watch := range state.Watches(ctx) {
		if object := cmp.Or(now, before); watch.Of(object) {
			if now == nil {
				watch.Delete(before)
			} else {
				watch.Update(before, now)
			}
			return
		}
	}
	Fail("nothing watches this kind of object")
}

// staleCache has one Service as it was before.
type staleCache struct {
	client.Client
	svc *corev1.Service
}

func (c staleCache) Get(_ context.Context, _ client.ObjectKey, into client.Object, _ ...client.GetOption) error {
	c.svc.DeepCopyInto(into.(*corev1.Service))
	return nil
}

var _ = Describe("a state that is behind, or ahead", func() {
	// bookOf is a book of its own with a pool for everybody.
	bookOf := func(ranges ...v1alpha1.AddressRange) *allocator.State {
		GinkgoHelper()
		b := allocator.NewState(services.Config{}, time.Now, func(allocator.Change) {})
		allocationsOf(b).SetServiceCIDRs([]netip.Prefix{netip.MustParsePrefix("10.96.0.0/16")})
		Expect(allocationsOf(b).SetClusterIPPool(&v1alpha1.ClusterIPPool{
			ObjectMeta: metav1.ObjectMeta{Name: "p"},
			Spec:       v1alpha1.ClusterIPPoolSpec{Ranges: ranges, Quarantine: &metav1.Duration{Duration: time.Hour}},
		})).To(Succeed())
		Expect(allocationsOf(b).SetNodePortPool(&v1alpha1.NodePortPool{
			ObjectMeta: metav1.ObjectMeta{Name: "p"}, Spec: v1alpha1.NodePortPoolSpec{Ranges: []v1alpha1.PortRange{"31440-31459"}},
		})).To(Succeed())
		return b
	}
	created := func(svc *corev1.Service) admission.Request {
		GinkgoHelper()
		raw, err := json.Marshal(svc)
		Expect(err).NotTo(HaveOccurred())
		return admission.Request{AdmissionRequest: admissionv1.AdmissionRequest{
			UID: uuid.NewUUID(), Operation: admissionv1.Create, Namespace: svc.Namespace, Name: svc.Name, Object: runtime.RawExtension{Raw: raw},
		}}
	}

	It("keeps no address from the API server that a Service is just given", func(ctx SpecContext) {
		b := bookOf("10.96.43.1-10.96.43.9")
		keeper := allocator.NewReservations(k8sClient, b, everHolder{})
		address := netip.MustParseAddr("10.96.43.7")
		owner := alloc.Owner{Namespace: "shop", Name: "web", UID: "first"}
		hold := &networkingv1.IPAddress{ObjectMeta: metav1.ObjectMeta{Name: address.String()}}
		deleteAfterwards(hold)
		there := func() bool {
			GinkgoHelper()
			err := k8sClient.Get(ctx, client.ObjectKeyFromObject(hold), hold)
			Expect(client.IgnoreNotFound(err)).To(Succeed())
			return err == nil
		}
		ledger := allocationsOf(b).Addresses(corev1.IPv4Protocol)
		ledger.Observe(owner, []netip.Addr{address}, time.Now())
		ledger.Forget(owner, time.Now())
		Expect(keeper.Sync(ctx)).To(Succeed())
		Expect(there()).To(BeTrue(), "it rests")
		tell(ctx, b, nil, &metav1.PartialObjectMetadata{ObjectMeta: hold.ObjectMeta})

		again := alloc.Owner{Namespace: "shop", Name: "web", UID: "request"}
		lease := ledger.Of(address)[0]
		Expect(ledger.Take(address, alloc.Ask{Owner: again, Now: time.Now(), PendingFor: time.Minute})).To(Succeed())
		Expect(client.IgnoreNotFound(k8sClient.Delete(ctx, hold))).To(Succeed()) // as the webhook does
		tell(ctx, b, &metav1.PartialObjectMetadata{ObjectMeta: hold.ObjectMeta}, nil)
		Expect(keeper.Sync(ctx)).To(Succeed())
		Expect(there()).To(BeFalse(), "the API server is about to book it")
		Expect(keeper.Reserve(ctx, lease)).To(Succeed())
		Expect(there()).To(BeFalse(), "not even if it was wanted a moment ago")

		ledger.Drop(address, again)
		Expect(keeper.Sync(ctx)).To(Succeed())
		Expect(there()).To(BeTrue(), "it rests on")
	})

	It("learns of no Service whose end it was told of", func(ctx SpecContext) {
		b := bookOf("10.96.43.16/28")
		svc := newService(newNamespace(ctx), "web", nil)
		create(ctx, svc)
		slow := &oldNews{Client: k8sClient, meanwhile: func() {
			gone := svc.DeepCopy()
			Expect(k8sClient.Delete(ctx, gone)).To(Succeed())
			later := newService(svc.Namespace, "later", nil)
			create(ctx, later)
			gone.ResourceVersion = later.ResourceVersion // no older than that of its deletion
			tell(ctx, b, gone, nil)
		}}
		tell(ctx, b, nil, svc)
		Expect(b.Correct(ctx, slow, alloc.OwnerOf(svc))).To(Succeed())
		Expect(allocationsOf(b).Addresses(corev1.IPv4Protocol).Has(alloc.OwnerOf(svc))).To(BeEmpty())

		By("one that it has not heard of yet")
		late := newService(svc.Namespace, "late", nil)
		create(ctx, late)
		Expect(b.Correct(ctx, k8sClient, alloc.Owner{Namespace: late.Namespace, Name: late.Name, UID: "request"})).To(Succeed())
		Expect(allocationsOf(b).Addresses(corev1.IPv4Protocol).Has(alloc.OwnerOf(late))).To(HaveLen(1))
	})

	It("takes no address for booked for ever that was freed while it looked", func(ctx SpecContext) {
		b := bookOf("10.96.43.32/28")
		address := netip.MustParseAddr("10.96.43.40")
		booking := &networkingv1.IPAddress{ObjectMeta: metav1.ObjectMeta{Name: address.String(), ResourceVersion: "100"}}
		gone := &metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{Name: address.String(), ResourceVersion: "101"}}
		tell(ctx, b, gone, nil)
		b.Deny(address, alloc.Owner{Namespace: "shop", Name: "web"}, booking)
		Expect(allocationsOf(b).Addresses(corev1.IPv4Protocol).IsBooked(address)).To(BeFalse())
		booking.ResourceVersion = "102"
		b.Deny(address, alloc.Owner{Namespace: "shop", Name: "web"}, booking)
		Expect(allocationsOf(b).Addresses(corev1.IPv4Protocol).IsBooked(address)).To(BeTrue())
	})

	It("gives nothing to a Service that is no longer what it was", func(ctx SpecContext) {
		ns := newNamespace(ctx)
		svc := newService(ns, "web", func(svc *corev1.Service) {
			svc.Spec.Type, svc.Spec.ClusterIP = corev1.ServiceTypeNodePort, "10.96.43.50"
		})
		create(ctx, svc)
		stale := svc.DeepCopy()
		stale.Spec.Ports[0].NodePort = 0 // as it may have been before
		Expect(k8sClient.Patch(ctx, svc, client.RawPatch("application/merge-patch+json", []byte(`{"metadata":{"labels":{"touched":"yes"}}}`)))).To(Succeed())
		r := &clusterip.ServiceReconciler{Client: staleCache{k8sClient, stale}, Allocator: &allocator.Allocator{
			Client: k8sClient, Live: k8sClient, State: bookOf("10.96.43.48/28"), Leadership: everHolder{},
		}}
		_, err := r.Reconcile(ctx, reconcile.Request{NamespacedName: client.ObjectKeyFromObject(svc)})
		Expect(err).To(MatchError(ContainSubstring("write addresses and ports")))
		Expect(refresh(ctx, svc.DeepCopy())(Default).Spec).To(Equal(svc.Spec))
	})

	It("asks the successor of a replica that takes requests and answers none", func(ctx SpecContext) {
		certs := testEnv.WebhookInstallOptions.LocalServingCertDir
		certificate, err := tls.LoadX509KeyPair(filepath.Join(certs, "tls.crt"), filepath.Join(certs, "tls.key"))
		Expect(err).NotTo(HaveOccurred())
		silent, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{certificate}})
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(silent.Close)
		term := &successor{address: silent.Addr().String()}
		go func() {
			conn, err := silent.Accept()
			if err != nil {
				return
			}
			defer conn.Close()
			_, _ = conn.Read(make([]byte, 1<<20)) // the request
			term.mine.Store(true)                 // its lease has ended meanwhile
			<-ctx.Done()
		}()
		hook := &clusterip.Webhook{Allocator: &allocator.Allocator{
			Client: k8sClient, Live: k8sClient, State: bookOf("10.96.43.64/28"), Leadership: term,
			Forwarder: allocator.NewForwarder(allocator.Peers{ServerName: "127.0.0.1", CA: func(context.Context) ([]byte, error) {
				return testEnv.WebhookInstallOptions.LocalServingCAData, nil
			}}, v1alpha1.SystemNamespace, k8sClient),
		}}
		response := hook.Handle(ctx, created(newService(newNamespace(ctx), "web", nil)))
		Expect(response.Warnings).To(BeEmpty())
		Expect(response.Patches).To(ContainElement(HaveField("Path", "/spec/clusterIP")))
	}, SpecTimeout(time.Minute))
})
