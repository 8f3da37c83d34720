// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	admissionv1 "k8s.io/api/admission/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/uuid"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/metrics"

	"github.com/causeway-lb/causeway/api/v1alpha1"
	"github.com/causeway-lb/causeway/controllers/clusterip"
	"github.com/causeway-lb/causeway/internal/alloc"
	"github.com/causeway-lb/causeway/internal/allocator"
)

var _ = Describe("what a Service has and what the pools would give it", func() {
	inPool := func(ctx context.Context, svc *corev1.Service) func(Gomega) string {
		return func(g Gomega) string {
			return serviceCondition(refresh(ctx, svc)(g), v1alpha1.ConditionInPool)
		}
	}
	poolCondition := func(ctx context.Context, pool *v1alpha1.ClusterIPPool, conditionType string) func(Gomega) string {
		return func(g Gomega) string {
			return conditionText(refresh(ctx, pool)(g).Status.Conditions, conditionType)
		}
	}

	It("tells of a Service that was there before the pool, until it is made again", func(ctx SpecContext) {
		ns := newNamespace(ctx)
		svc := newService(ns, "early", nil)
		create(ctx, svc)
		pool := clusterIPPool(ctx, ns, nil, "10.96.32.0/24")
		Eventually(inPool(ctx, svc)).Should(Equal("False/OutsidePool"))
		Eventually(eventsOn(ctx, svc)).Should(ContainElement(ContainSubstring("OutsidePool: ClusterIP " + svc.Spec.ClusterIP + " is not in ClusterIPPool pool-" + ns)))
		Eventually(poolCondition(ctx, pool, v1alpha1.PoolInPolicy)).Should(Equal("False/OutOfPolicy"))
		Expect(k8sClient.Delete(ctx, svc)).To(Succeed())
		again := newService(ns, "early", nil)
		create(ctx, again)
		Expect(again.Spec.ClusterIP).To(Satisfy(inside("10.96.32.0/24")))
		Eventually(poolCondition(ctx, pool, v1alpha1.PoolInPolicy)).Should(Equal("True/InPolicy"))
		Consistently(inPool(ctx, again)).Should(BeEmpty())
	})

	It("tells of a Service in somebody else's pool, and stops when the pool selects it", func(ctx SpecContext) {
		ns, other := newNamespace(ctx), newNamespace(ctx)
		svc := newService(ns, "early", func(svc *corev1.Service) { svc.Spec.ClusterIP = "10.96.33.5" })
		create(ctx, svc)
		pool := clusterIPPool(ctx, other, nil, "10.96.33.0/24")
		Eventually(inPool(ctx, svc)).Should(Equal("False/PoolMismatch"))
		Expect(refresh(ctx, pool)(NewGomega(Fail)).Status.IPv4.Used).To(BeEquivalentTo(1), "what it holds is not free")
		selectIt := fmt.Sprintf(`{"spec":{"namespaceSelector":{"matchLabels":{%q:%q}}}}`, namespaceLabel, ns)
		Expect(k8sClient.Patch(ctx, pool, client.RawPatch(types.MergePatchType, []byte(selectIt)))).To(Succeed())
		Eventually(inPool(ctx, svc)).Should(BeEmpty())
	})

	It("tells of an external IP from a LoadBalancerPool that came, or changed, later", func(ctx SpecContext) {
		ns, other := newNamespace(ctx), newNamespace(ctx)
		svc := newService(ns, "early", func(svc *corev1.Service) { svc.Spec.ExternalIPs = []string{"198.51.100.55"} })
		create(ctx, svc)
		pool := &v1alpha1.LoadBalancerPool{
			ObjectMeta: metav1.ObjectMeta{Name: "pool-" + other},
			Spec:       v1alpha1.LoadBalancerPoolSpec{Addresses: []v1alpha1.AddressRange{"198.51.100.48/28"}, NamespaceSelector: inNamespace(other)},
		}
		create(ctx, pool)
		Eventually(inPool(ctx, svc)).Should(Equal("False/PoolMismatch"))
		selectIt := fmt.Sprintf(`{"spec":{"namespaceSelector":{"matchLabels":{%q:%q}}}}`, namespaceLabel, ns)
		Expect(k8sClient.Patch(ctx, pool, client.RawPatch(types.MergePatchType, []byte(selectIt)))).To(Succeed())
		Eventually(inPool(ctx, svc)).Should(BeEmpty())
	})

	It("tells of ports that the API server refuses, and counts nothing of a pool that is gone", func(ctx SpecContext) {
		pool := nodePortPool(ctx, newNamespace(ctx), nil, "29990-29999", "31460-31469")
		condition := func(g Gomega) *metav1.Condition {
			return meta.FindStatusCondition(refresh(ctx, pool)(g).Status.Conditions, v1alpha1.PoolInNodePortRange)
		}
		Eventually(condition).Should(And(HaveField("Status", metav1.ConditionFalse), HaveField("Message", HavePrefix("29990-29999: the API server refuses these"))))
		Expect(pool.Status.Ports).To(And(HaveField("Capacity", int64(20)), HaveField("Excluded", int64(10)), HaveField("Free", int64(10))))
		counted := func(g Gomega) (series int) {
			families, err := metrics.Registry.Gather()
			g.Expect(err).NotTo(HaveOccurred())
			for _, family := range families {
				for _, m := range family.GetMetric() {
					for _, label := range m.GetLabel() {
						if family.GetName() == "causeway_allocation_pool_values" && label.GetName() == "pool" && label.GetValue() == pool.Name {
							series++
						}
					}
				}
			}
			return series
		}
		Eventually(counted).Should(Equal(4))
		Expect(k8sClient.Delete(ctx, pool)).To(Succeed())
		Eventually(counted).Should(BeZero())
	})

	It("leaves Services what they have when a pool shrinks, and tells", func(ctx SpecContext) {
		ns := newNamespace(ctx)
		pool := clusterIPPool(ctx, ns, nil, "10.96.34.0/24")
		svc := newService(ns, "web", nil)
		create(ctx, svc)
		Expect(k8sClient.Patch(ctx, pool, client.RawPatch(types.MergePatchType, []byte(`{"spec":{"ranges":["10.96.35.0/24"]}}`)))).To(Succeed())
		Eventually(inPool(ctx, svc)).Should(Equal("False/OutsidePool"))
		Expect(svc.Spec.ClusterIP).To(Satisfy(inside("10.96.34.0/24")))
	})

	It("creates the ServiceCIDR that a pool needs, and removes it after the last Service", func(ctx SpecContext) {
		ns := newNamespace(ctx)
		pool := clusterIPPool(ctx, ns, nil, "10.97.5.0/24", "10.97.6.1-10.97.6.9")
		cidr := &networkingv1.ServiceCIDR{ObjectMeta: metav1.ObjectMeta{Name: "causeway-pool-" + ns + "-10.97.5.0-24"}}
		Eventually(refresh(ctx, cidr)).Should(HaveField("Spec.CIDRs", []string{"10.97.5.0/24"}))
		Eventually(poolCondition(ctx, pool, v1alpha1.PoolInServiceCIDR)).Should(Equal("False/Outside"))
		Eventually(func(g Gomega) string {
			for _, c := range refresh(ctx, pool)(g).Status.Conditions {
				if c.Type == v1alpha1.PoolInServiceCIDR {
					return c.Message
				}
			}
			return ""
		}).Should(HavePrefix("10.97.6.1-10.97.6.9: the API server refuses these"))
		svc := newService(ns, "web", nil)
		create(ctx, svc)
		Expect(svc.Spec.ClusterIP).To(Satisfy(inside("10.97.5.0/24")))
		Expect(k8sClient.Delete(ctx, pool)).To(Succeed())
		Consistently(refresh(ctx, cidr)).Should(HaveField("DeletionTimestamp", BeNil()), "while a Service has an address of it")
		Expect(k8sClient.Delete(ctx, svc)).To(Succeed())
		Eventually(func() error { return k8sClient.Get(ctx, client.ObjectKeyFromObject(cidr), cidr) }).Should(MatchError(ContainSubstring("not found")))
	}, SpecTimeout(time.Minute))

	It("tells of a node whose address lies in a pool", func(ctx SpecContext) {
		pool := clusterIPPool(ctx, newNamespace(ctx), nil, "10.96.38.0/24")
		Consistently(poolCondition(ctx, pool, v1alpha1.PoolDisjoint)).Should(Equal("True/NoOverlap"))
		node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "in-the-way-" + rand8()}}
		create(ctx, node)
		node.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "10.96.38.9"}}
		Expect(k8sClient.Status().Update(ctx, node)).To(Succeed())
		Eventually(poolCondition(ctx, pool, v1alpha1.PoolDisjoint)).Should(Equal("False/Overlap"))
		Expect(meta.FindStatusCondition(pool.Status.Conditions, v1alpha1.PoolDisjoint).Message).To(HavePrefix("10.96.38.9 is the address of node " + node.Name))
		Expect(k8sClient.Delete(ctx, node)).To(Succeed())
		Eventually(poolCondition(ctx, pool, v1alpha1.PoolDisjoint)).Should(Equal("True/NoOverlap"))
	}, SpecTimeout(time.Minute))

	It("refuses pools that overlap, naming the ranges and the pool", func(ctx SpecContext) {
		ns := newNamespace(ctx)
		first := clusterIPPool(ctx, ns, nil, "10.96.36.0/24")
		second := first.DeepCopy()
		second.ObjectMeta = metav1.ObjectMeta{Name: "second-" + ns}
		second.Spec.Ranges = []v1alpha1.AddressRange{"10.96.37.0/24", "10.96.36.200-10.96.36.210"}
		Expect(k8sClient.Create(ctx, second)).To(MatchError(ContainSubstring(
			"spec.ranges: 10.96.36.200-10.96.36.210 overlaps 10.96.36.0-10.96.36.255 of pool pool-" + ns + " in 10.96.36.200-10.96.36.210")))
		ports := nodePortPool(ctx, ns, nil, "31100-31109")
		more := ports.DeepCopy()
		more.ObjectMeta = metav1.ObjectMeta{Name: "second-" + ns}
		more.Spec.Ranges = []v1alpha1.PortRange{"31109-31120"}
		Expect(k8sClient.Create(ctx, more)).To(MatchError(ContainSubstring("31109-31120 overlaps 31100-31109 of pool pool-" + ns + " in 31109")))
		more.Spec.Ranges = []v1alpha1.PortRange{"31110-31120", "31115"}
		Expect(k8sClient.Create(ctx, more)).To(MatchError(ContainSubstring("31115 overlaps 31110-31120 of the same pool")))
		more.Spec.Ranges = []v1alpha1.PortRange{"31110-31120"}
		more.Spec.NamespaceSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"": "x"}}
		Expect(k8sClient.Create(ctx, more)).To(MatchError(ContainSubstring("spec.namespaceSelector")))
	})
})

// everHolder is a term that is held for ever.
type everHolder struct{}

func (everHolder) IsLeader() bool     { return true }
func (everHolder) Leader() string     { return "" }
func (everHolder) Epoch() alloc.Epoch { return alloc.Epoch{} }

// replica is a second controller beside the suite's, with a term of its own
// kind, whose webhooks only the spec calls.
type replica struct {
	address string
	stop    func()
}

func startReplica(ctx context.Context, systemNamespace string) replica {
	GinkgoHelper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	Expect(err).NotTo(HaveOccurred())
	port := listener.Addr().(*net.TCPAddr).Port
	Expect(listener.Close()).To(Succeed())
	mgr := newManager(port)
	r := replica{address: listener.Addr().String()}
	Expect(clusterip.SetupWithManager(mgr, clusterip.Options{SystemNamespace: systemNamespace, Peers: allocator.Peers{
		Address: r.address, ServerName: "127.0.0.1",
		CA: func(context.Context) ([]byte, error) { return testEnv.WebhookInstallOptions.LocalServingCAData, nil },
	}})).To(Succeed())
	r.stop = sync.OnceFunc(startManager(mgr))
	DeferCleanup(r.stop)
	Expect(mgr.GetCache().WaitForCacheSync(ctx)).To(BeTrue())
	return r
}

// ask sends an admission request for a new Service and returns the address that
// it is given.
func (r replica) ask(ctx context.Context, namespace, name string) (string, error) {
	raw, err := json.Marshal(newService(namespace, name, func(svc *corev1.Service) { svc.Spec.Type = corev1.ServiceTypeClusterIP }))
	if err != nil {
		return "", err
	}
	review := admissionv1.AdmissionReview{
		TypeMeta: metav1.TypeMeta{APIVersion: "admission.k8s.io/v1", Kind: "AdmissionReview"},
		Request: &admissionv1.AdmissionRequest{
			UID: uuid.NewUUID(), Operation: admissionv1.Create, Namespace: namespace, Name: name, Object: runtime.RawExtension{Raw: raw},
		},
	}
	body, err := json.Marshal(review)
	if err != nil {
		return "", err
	}
	post, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+r.address+allocator.WebhookPath, bytes.NewReader(body))
	if err != nil {
		return "", err
	}
	post.Header.Set("Content-Type", "application/json")
	insecure := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	defer insecure.CloseIdleConnections()
	answer, err := insecure.Do(post)
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	if err := json.NewDecoder(answer.Body).Decode(&review); err != nil {
		return "", err
	}
	if !review.Response.Allowed {
		return "", fmt.Errorf("refused: %s", review.Response.Result.Message)
	}
	var patch []struct {
		Path  string
		Value any
	}
	if err := json.Unmarshal(review.Response.Patch, &patch); err != nil {
		return "", fmt.Errorf("read patch %q: %w", review.Response.Patch, err)
	}
	for _, p := range patch {
		if p.Path == "/spec/clusterIP" {
			return p.Value.(string), nil
		}
	}
	return "", fmt.Errorf("no address in %s", review.Response.Patch)
}

var _ = Describe("two replicas", func() {
	It("never hand out one address twice, and go on when the one that grants stops", func(ctx SpecContext) {
		ns := newNamespace(ctx)
		clusterIPPool(ctx, ns, nil, "10.96.40.0/23")
		a, b := startReplica(ctx, ns), startReplica(ctx, ns)
		lease := func(g Gomega) string {
			var l coordinationv1.Lease
			g.Expect(k8sClient.Get(ctx, client.ObjectKey{Namespace: ns, Name: allocator.LeaseName}, &l)).To(Succeed())
			g.Expect(l.Spec.HolderIdentity).NotTo(BeNil())
			return *l.Spec.HolderIdentity
		}
		Eventually(lease).Should(Or(HaveSuffix(a.address), HaveSuffix(b.address)))
		var mu sync.Mutex
		given := map[string]string{}
		askBoth := func(round string, replicas ...replica) {
			GinkgoHelper()
			var wg sync.WaitGroup
			for i := range 40 {
				wg.Go(func() {
					defer GinkgoRecover()
					name := fmt.Sprint(round, "-", i)
					address, err := replicas[i%len(replicas)].ask(ctx, ns, name)
					Expect(err).NotTo(HaveOccurred())
					Expect(address).To(Satisfy(inside("10.96.40.0/23")))
					mu.Lock()
					defer mu.Unlock()
					Expect(given).NotTo(HaveKey(address), "%s got the address of %s", name, given[address])
					given[address] = name
				})
			}
			wg.Wait()
		}
		askBoth("both", a, b)
		first, second := a, b
		if lease(NewGomega(Fail))[len("12345678@"):] == b.address {
			first, second = b, a
		}
		// The successor knows nothing of the first round: no Service was stored. Some
		// are now, as the API server would have; the others are still on their way,
		// longer than their granter lives.
		stored := 0
		for address, name := range given {
			if stored++; stored > len(given)/4 {
				break
			}
			svc := newService(ns, name, func(svc *corev1.Service) { svc.Spec.ClusterIP = address })
			create(ctx, svc)
		}
		first.stop()
		askBoth("after", second) // whoever is asked for longer than the webhook's timeout answers without an address
	}, SpecTimeout(2*time.Minute))
})
