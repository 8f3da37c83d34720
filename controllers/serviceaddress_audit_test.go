// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-lb/causeway/api/v1alpha1"
	"github.com/causeway-lb/causeway/internal/alloc"
	"github.com/causeway-lb/causeway/internal/alloc/services"
	"github.com/causeway-lb/causeway/internal/allocator"
)

// losePort has the API server lose a NodePort: an update that asks for it races
// against writes of a label, until one of them comes between the booking of the
// port and the write of the Service. The API server then tries again, finds the
// port booked, by itself, and refuses.
func losePort(ctx context.Context, namespace string) int32 {
	GinkgoHelper()
	svc := newService(namespace, "racer", func(svc *corev1.Service) {
		svc.Spec = corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "example.com"}
	})
	create(ctx, svc)
	racing, stop := context.WithCancel(ctx)
	var racers sync.WaitGroup
	defer racers.Wait()
	defer stop()
	for i := range 4 {
		racers.Go(func() {
			other := newService(namespace, "racer", nil)
			for n := 0; racing.Err() == nil; n++ {
				label := fmt.Sprintf(`{"metadata":{"labels":{"racer-%d":"%d"}}}`, i, n)
				_ = k8sClient.Patch(racing, other, client.RawPatch("application/merge-patch+json", []byte(label))) // who loses does not matter
			}
		})
	}
	for port := int32(31300); port < 31400; port++ {
		toNodePort := fmt.Sprintf(`{"spec":{"type":"NodePort","externalName":null,"ports":[{"port":80,"nodePort":%d}]}}`, port)
		err := k8sClient.Patch(ctx, svc, client.RawPatch("application/merge-patch+json", []byte(toNodePort)))
		if err != nil {
			Expect(err).To(MatchError(ContainSubstring(fmt.Sprint(port, ": provided port is already allocated"))))
			return port
		}
		back := `{"spec":{"type":"ExternalName","externalName":"example.com","clusterIP":null,"clusterIPs":null,"ipFamilies":null,"ipFamilyPolicy":null,` +
			`"externalTrafficPolicy":null,"internalTrafficPolicy":null,"ports":null}}`
		Expect(k8sClient.Patch(ctx, svc, client.RawPatch("application/merge-patch+json", []byte(back)))).To(Succeed())
	}
	Fail("a hundred updates, and none lost its race")
	return 0
}

// slowAnswer is an API server whose answer to the first creation of a Service
// with the NodePort takes long to arrive.
type slowAnswer struct {
	client.Client
	port      int32
	once      sync.Once
	meanwhile func()
}

func (s *slowAnswer) Create(ctx context.Context, obj client.Object, opts ...client.CreateOption) error {
	err := s.Client.Create(ctx, obj, opts...)
	if slices.ContainsFunc(obj.(*corev1.Service).Spec.Ports, func(p corev1.ServicePort) bool { return p.NodePort == s.port }) {
		s.once.Do(s.meanwhile)
	}
	return err
}

// allocationsOf returns what a state knows, for a spec that nothing else changes
// meanwhile.
func allocationsOf(state *allocator.State) (out *services.Allocations) {
	state.With(func(b *services.Allocations, _ time.Time) { out = b })
	return out
}

var _ = Describe("the audit of NodePorts", func() {
	It("finds what the API server lost, and avoids it", func(ctx SpecContext) {
		lost := uint16(losePort(ctx, newNamespace(ctx)))
		b := allocator.NewState(services.Config{}, time.Now, func(allocator.Change) {})
		Expect(allocationsOf(b).SetNodePortPool(&v1alpha1.NodePortPool{
			ObjectMeta: metav1.ObjectMeta{Name: "p"},
			Spec:       v1alpha1.NodePortPoolSpec{Ranges: []v1alpha1.PortRange{v1alpha1.PortRange(fmt.Sprint(lost)), "31400-31402"}},
		})).To(Succeed())
		audit := allocator.NewPortAudit(k8sClient, b, v1alpha1.SystemNamespace)
		audit.Begin(ctx)
		var order []uint16
		for i := range 4 {
			n, err := allocationsOf(b).Ports().Next("p", alloc.Ask{Owner: alloc.Owner{Namespace: "x", Name: fmt.Sprint(i)}, Now: time.Now(), PendingFor: time.Hour})
			Expect(err).NotTo(HaveOccurred())
			order = append(order, n)
		}
		Expect(order[:3]).To(ConsistOf(uint16(31400), uint16(31401), uint16(31402)), "those that the API server gives")
		Expect(order[3]).To(Equal(lost), "what it refuses, in need")
	}, SpecTimeout(time.Minute))

	It("believes no answer that is older than a grant", func(ctx SpecContext) {
		var clock atomic.Int64 // the audit asks in parts, several at once
		clock.Store(time.Now().UnixNano())
		now := func() time.Time { return time.Unix(0, clock.Load()) }
		b := allocator.NewState(services.Config{}, now, func(allocator.Change) {})
		Expect(allocationsOf(b).SetNodePortPool(&v1alpha1.NodePortPool{
			ObjectMeta: metav1.ObjectMeta{Name: "p"},
			Spec:       v1alpha1.NodePortPoolSpec{Ranges: []v1alpha1.PortRange{"31405-31406"}},
		})).To(Succeed())
		next := func(name string, hold time.Duration) (n uint16) {
			GinkgoHelper()
			ask := alloc.Ask{Owner: alloc.Owner{Namespace: "x", Name: name}, Now: now(), PendingFor: hold, SuspectFor: time.Hour}
			b.With(func(b *services.Allocations, _ time.Time) {
				var err error
				n, err = b.Ports().Next("p", ask)
				Expect(err).NotTo(HaveOccurred())
			})
			return n
		}
		var early, lost uint16
		slow := &slowAnswer{Client: k8sClient}
		audit := allocator.NewPortAudit(slow, b, v1alpha1.SystemNamespace)
		audit.Begin(ctx)
		// The API server has looked at both ports. Before it says so, an update is
		// granted one of them and loses its race.
		slow.port, slow.meanwhile = 31405, func() {
			defer GinkgoRecover()
			lost = next("lost", time.Second)
			clock.Add(int64(2 * time.Second))
		}
		Expect(audit.Audit(ctx)).To(BeTrue())
		early = next("a", time.Second)
		Expect(early).NotTo(Equal(lost), "the one that nobody was given")
		b.With(func(b *services.Allocations, _ time.Time) {
			b.Ports().Drop(early, alloc.Owner{Namespace: "x", Name: "a"})
		})

		By("asking again while the request may not have come to the API server's allocator")
		Expect(audit.Audit(ctx)).To(BeTrue())
		state := func() []alloc.Allocation[uint16] { return allocationsOf(b).Ports().Of(lost) }
		Expect(state()).To(ConsistOf(HaveField("State", alloc.Suspect)))

		By("asking again when it must be over")
		clock.Add(int64(time.Minute))
		Expect(audit.Audit(ctx)).To(BeTrue())
		Expect(state()).To(BeEmpty(), "free again")
	}, SpecTimeout(time.Minute))

	It("does not wear out when it may not ask", func(ctx SpecContext) {
		b := allocator.NewState(services.Config{}, time.Now, func(allocator.Change) {})
		Expect(allocationsOf(b).SetNodePortPool(&v1alpha1.NodePortPool{
			ObjectMeta: metav1.ObjectMeta{Name: "p"},
			Spec:       v1alpha1.NodePortPoolSpec{Ranges: []v1alpha1.PortRange{"31403-31404"}},
		})).To(Succeed())
		audit := allocator.NewPortAudit(k8sClient, b, "no-such-"+strings.ToLower(rand8()))
		audit.Begin(ctx)
		Expect(audit.Audit(ctx)).To(BeFalse())
		_, err := allocationsOf(b).Ports().Next("p", alloc.Ask{Now: time.Now(), PendingFor: time.Hour})
		Expect(err).NotTo(HaveOccurred(), "what is doubted is given all the same")
	})
})
