// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"context"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/rest"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-lb/causeway/api/v1alpha1"
	"github.com/causeway-lb/causeway/internal/explain"
)

// shopWindow is a Service that works: an address, a Pod, an announcing node, an
// agent and a controller. The reconcilers are real; what a kubelet and an agent
// would write is written by hand. Each spec then breaks one thing.
type shopWindow struct {
	lbSpec
	node                   *corev1.Node
	pod, agent, controller *corev1.Pod
	svc                    *corev1.Service
	pool                   *v1alpha1.LoadBalancerPool
}

func newShopWindow(ctx context.Context) *shopWindow {
	GinkgoHelper()
	w := &shopWindow{lbSpec: newLBSpec(ctx)}
	w.node = &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: newNode(ctx, "a")}}
	w.setNode(ctx, corev1.ConditionTrue)
	w.pod = newPod(ctx, w.namespace, "web-1", "web", w.node.Name, true, "10.244.1.2")
	w.agent = w.process(ctx, "causeway-agent")
	w.controller = w.process(ctx, "causeway-controller")
	w.pool = w.lbSpec.pool(ctx, nil, w.v4Range(10, 10))
	w.svc = w.service(ctx, "web", func(svc *corev1.Service) { svc.Spec.Ports[0].TargetPort = intstr.FromString("web") })
	Eventually(addressesOf(ctx, w.svc)).Should(Equal([]string{w.v4(10)}))
	w.announce(ctx, metav1.ConditionTrue, "Announced", "")
	return w
}

// process makes one of Causeway's own Pods, in the spec's namespace.
func (w *shopWindow) process(ctx context.Context, name string) *corev1.Pod {
	GinkgoHelper()
	pod := newPod(ctx, w.namespace, name+"-1", name, w.node.Name, true, "192.0.2.11")
	edit(ctx, pod, func(p *corev1.Pod) { p.Labels["app.kubernetes.io/name"] = name })
	return pod
}

func (w *shopWindow) setNode(ctx context.Context, ready corev1.ConditionStatus) {
	GinkgoHelper()
	Eventually(func(g Gomega) {
		g.Expect(k8sClient.Get(ctx, client.ObjectKeyFromObject(w.node), w.node)).To(Succeed())
		w.node.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: ready}}
		g.Expect(k8sClient.Status().Update(ctx, w.node)).To(Succeed())
	}).Should(Succeed())
}

// announce writes what an agent would.
func (w *shopWindow) announce(ctx context.Context, status metav1.ConditionStatus, reason, message string) {
	GinkgoHelper()
	Eventually(func(g Gomega) {
		a := recordOf(ctx, w.v4(10))(g)
		a.Status.Node, a.Status.Interface, a.Status.Since = w.node.Name, "eth0", ptr.To(metav1.Now())
		if status != metav1.ConditionTrue {
			a.Status.Node, a.Status.Interface, a.Status.Since = "", "", nil
		}
		meta.SetStatusCondition(&a.Status.Conditions, metav1.Condition{Type: v1alpha1.AddressAnnounced, Status: status, Reason: reason, Message: message})
		g.Expect(k8sClient.Status().Update(ctx, a)).To(Succeed())
	}).Should(Succeed())
}

// report is what `causeway explain` prints about a Service, a minute from now.
func (w *shopWindow) report(ctx context.Context, api client.Reader, name string) (explain.Report, string) {
	GinkgoHelper()
	facts, err := explain.Read(ctx, api, client.ObjectKey{Namespace: w.namespace, Name: name}, w.namespace)
	Expect(err).NotTo(HaveOccurred())
	facts.Now = facts.Now.Add(time.Minute)
	report := explain.Explain(facts)
	var text strings.Builder
	_, err = report.WriteTo(&text)
	Expect(err).NotTo(HaveOccurred())
	return report, text.String()
}

// wrong are the lines of what is wrong, with details and what to do.
func wrong(r explain.Report) (out []string) {
	for _, f := range r.Findings {
		if f.Level == explain.Wrong {
			out = append(out, strings.Join(append([]string{f.Text}, append(f.Details, f.Do)...), " | "))
		}
	}
	return out
}

var _ = Describe("causeway explain", func() {
	It("finds nothing wrong with a Service that works", func(ctx SpecContext) {
		w := newShopWindow(ctx)
		Eventually(func() []string { r, _ := w.report(ctx, k8sClient, "web"); return wrong(r) }).Should(BeEmpty())
		_, text := w.report(ctx, k8sClient, "web")
		Expect(text).To(And(
			HavePrefix("Service "+w.namespace+"/web: LoadBalancer, 80/TCP (NodePort "),
			ContainSubstring("1 of 1 endpoint ready: 1 on "+w.node.Name),
			ContainSubstring(w.v4(10)+" of pool "+w.pool.Name+" is announced by "+w.node.Name+" on eth0 since"),
			ContainSubstring("An agent is ready on each of 1 node."),
			ContainSubstring("Normal  Allocated: "+w.v4(10)),
			HaveSuffix("\nNothing wrong found.\n"),
		))
	})

	DescribeTable("says what is wrong, and no more", func(ctx SpecContext, breakIt func(context.Context, *shopWindow) string, want ...string) {
		w := newShopWindow(ctx)
		name := breakIt(ctx, w)
		var expected []any
		for _, text := range want {
			expected = append(expected, MatchRegexp(strings.NewReplacer("ADDRESS", w.v4(10), "NODE", w.node.Name, "NAMESPACE", w.namespace).Replace(text)))
		}
		Eventually(func() []string { r, _ := w.report(ctx, k8sClient, name); return wrong(r) }).Should(ConsistOf(expected...))
	},
		Entry("a selector that no Pod has", func(ctx context.Context, w *shopWindow) string {
			edit(ctx, w.svc, func(svc *corev1.Service) { svc.Spec.Selector = map[string]string{"app": "wbe"} })
			return "web"
		}, `Its selector app=wbe matches no Pod.*there are app=causeway-agent on 1, app=causeway-controller on 1, app=web on 1.*kubectl -n NAMESPACE get pods --show-labels`),
		Entry("no selector and no slices", func(ctx context.Context, w *shopWindow) string {
			create(ctx, newService(w.namespace, "bare", func(svc *corev1.Service) { svc.Spec.Selector = nil }))
			return "bare"
		}, `It has no selector and nobody has written an EndpointSlice`),
		Entry("a container that cannot start", func(ctx context.Context, w *shopWindow) string {
			w.pod.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "main", State: corev1.ContainerState{
				Waiting: &corev1.ContainerStateWaiting{Reason: "CrashLoopBackOff", Message: "back-off 40s"},
			}}}
			runPod(ctx, w.pod, false)
			return "web"
		}, `None of 1 endpoint is ready.*web-1 on NODE: container main waits: CrashLoopBackOff: back-off 40s.*describe pods -l app=web`),
		Entry("a readiness probe that fails", func(ctx context.Context, w *shopWindow) string {
			w.pod.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "main", State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}}}
			runPod(ctx, w.pod, false)
			return "web"
		}, `None of 1 endpoint is ready.*web-1 on NODE: container main runs, and is not ready`),
		Entry("a Pod that no node takes", func(ctx context.Context, w *shopWindow) string {
			pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: w.namespace, Name: "late-1", Labels: map[string]string{"app": "late"}}, Spec: corev1.PodSpec{
				Containers: []corev1.Container{{Name: "main", Image: "example.com/none"}},
			}}
			create(ctx, pod)
			pod.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Reason: "Unschedulable", Message: "0/3 nodes are available"}}
			Expect(k8sClient.Status().Update(ctx, pod)).To(Succeed())
			create(ctx, newService(w.namespace, "late", nil))
			return "late"
		}, `None of 1 endpoint is ready.*late-1: no node takes it: 0/3 nodes are available`),
		Entry("a target port that no container has", func(ctx context.Context, w *shopWindow) string {
			edit(ctx, w.svc, func(svc *corev1.Service) { svc.Spec.Ports[0].TargetPort = intstr.FromString("http") })
			return "web"
		}, `port 80: no selected Pod has a container port named "http" with protocol TCP; correct targetPort`),
		Entry("endpoints of a Pod that is gone", func(ctx context.Context, w *shopWindow) string {
			create(ctx, &discoveryv1.EndpointSlice{
				ObjectMeta:  metav1.ObjectMeta{Namespace: w.namespace, Name: "left-over", Labels: map[string]string{discoveryv1.LabelServiceName: "web", discoveryv1.LabelManagedBy: "example.com"}},
				AddressType: discoveryv1.AddressTypeIPv4,
				Endpoints: []discoveryv1.Endpoint{{
					Addresses: []string{"10.244.1.9"}, NodeName: &w.node.Name,
					TargetRef: &corev1.ObjectReference{Kind: "Pod", Namespace: w.namespace, Name: "web-0", UID: types.UID("gone")},
				}},
			})
			return "web"
		}, `1 endpoint of Pods that are gone.*web-0 on NODE`),
		Entry("a pool without a free address", func(ctx context.Context, w *shopWindow) string {
			w.service(ctx, "late", func(svc *corev1.Service) { svc.Spec.Selector = map[string]string{"app": "web"} })
			return "late"
		}, `not given what it asks for \(PoolExhausted\).*kubectl get loadbalancerpools`),
		Entry("an address that is in no pool", func(ctx context.Context, w *shopWindow) string {
			w.service(ctx, "lost", func(svc *corev1.Service) {
				svc.Spec.Selector = map[string]string{"app": "web"}
				asksFor(w.v4(99))(svc)
			})
			return "lost"
		}, `not given what it asks for \(AddressOutsidePools\): .* is in no LoadBalancerPool`),
		Entry("a class that nobody serves", func(ctx context.Context, w *shopWindow) string {
			w.service(ctx, "other", func(svc *corev1.Service) {
				svc.Spec.Selector, svc.Spec.LoadBalancerClass = map[string]string{"app": "web"}, ptr.To("example.com/none")
			})
			return "other"
		}, `Its load balancer class is example.com/none, which Causeway is not configured to serve`),
		Entry("no node that may announce", func(ctx context.Context, w *shopWindow) string {
			w.announce(ctx, metav1.ConditionFalse, "NoEligibleNode",
				"No node may announce it. node-1, node-2: it is cordoned (spec.unschedulable); node-3: the link of its interface is down")
			return "web"
		}, `ADDRESS of pool .* is announced by nobody: no node may announce it \| node-1, node-2: it is cordoned \(spec.unschedulable\) \| node-3: the link of its interface is down \| Put one`),
		Entry("another host with the address", func(ctx context.Context, w *shopWindow) string {
			w.announce(ctx, metav1.ConditionFalse, "Conflict", "host 02:00:00:00:00:99 on the LAN of node-1 (eth0) uses the address too, and had it first")
			return "web"
		}, `ADDRESS of pool .* is not announced: host 02:00:00:00:00:99`),
		Entry("an announcer that is dead, and nobody to take over", func(ctx context.Context, w *shopWindow) string {
			w.setNode(ctx, corev1.ConditionUnknown)
			return "web"
		}, `ADDRESS .* is announced by NODE on eth0 .*, a node that is not ready`),
		Entry("an agent that does not run", func(ctx context.Context, w *shopWindow) string {
			w.agent.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "main", State: corev1.ContainerState{
				Waiting: &corev1.ContainerStateWaiting{Reason: "ErrImagePull"},
			}}}
			runPod(ctx, w.agent, false)
			return "web"
		}, `ADDRESS .* is announced by NODE on eth0 .*, where no agent is ready`, `1 of 1 node without an agent that is ready.*NODE: container main waits: ErrImagePull`),
		Entry("no controller", func(ctx context.Context, w *shopWindow) string {
			Expect(k8sClient.Delete(ctx, w.controller, client.GracePeriodSeconds(0))).To(Succeed())
			return "web"
		}, `No controller of Causeway is ready`),
		Entry("an address outside the tenant's pool", func(ctx context.Context, w *shopWindow) string {
			clusterIPPool(ctx, w.namespace, nil, "10.96.207.0/24")
			return "web"
		}, `ClusterIP .* is not in ClusterIPPool pool-NAMESPACE, which serves this Service: delete the Service and create it again`),
		Entry("a finalizer that nobody takes away", func(ctx context.Context, w *shopWindow) string {
			svc := w.service(ctx, "going", func(svc *corev1.Service) {
				svc.Spec.Selector = map[string]string{"app": "web"}
				svc.Spec.LoadBalancerClass, svc.Finalizers = ptr.To("example.com/none"), []string{v1alpha1.LoadBalancerFinalizer}
			})
			// Of one that is going, slices are kept, but none are made.
			Eventually(func(g Gomega) int {
				var list discoveryv1.EndpointSliceList
				g.Expect(k8sClient.List(ctx, &list, client.InNamespace(w.namespace), client.MatchingLabels{discoveryv1.LabelServiceName: "going"})).To(Succeed())
				ready := 0
				for _, slice := range list.Items {
					ready += len(slice.Endpoints)
				}
				return ready
			}).ShouldNot(BeZero())
			Expect(k8sClient.Delete(ctx, svc)).To(Succeed())
			DeferCleanup(func(ctx SpecContext) { edit(ctx, svc, func(svc *corev1.Service) { svc.Finalizers = nil }) })
			return "going"
		}, `It was deleted .* ago and waits for its finalizers: service.kubernetes.io/load-balancer-cleanup \| The controller of its load balancer class \(example.com/none\)`, `Its load balancer class is example.com/none`),
	)

	It("says what it could not look at to one who may read Services alone", func(ctx SpecContext) {
		w := newShopWindow(ctx)
		user := "tenant-" + rand8()
		role := &rbacv1.Role{ObjectMeta: metav1.ObjectMeta{Namespace: w.namespace, Name: user}, Rules: []rbacv1.PolicyRule{{
			APIGroups: []string{""}, Resources: []string{"services"}, Verbs: []string{"get"},
		}}}
		create(ctx, role)
		create(ctx, &rbacv1.RoleBinding{
			ObjectMeta: metav1.ObjectMeta{Namespace: w.namespace, Name: user},
			RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: user},
			Subjects:   []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: "User", Name: user}},
		})
		config := rest.CopyConfig(restConfig)
		config.Impersonate.UserName = user
		tenant, err := client.New(config, client.Options{Scheme: k8sClient.Scheme()})
		Expect(err).NotTo(HaveOccurred())
		Eventually(func() error {
			return tenant.Get(ctx, client.ObjectKeyFromObject(w.svc), &corev1.Service{})
		}).Should(Succeed(), "the API server knows the role")
		edit(ctx, w.svc, asksFor("203.0.113.250"))
		Eventually(allocatedOf(ctx, w.svc)).Should(Equal("False/AddressOutsidePools"))
		report, text := w.report(ctx, tenant, "web")
		Expect(wrong(report)).To(ConsistOf(ContainSubstring("(AddressOutsidePools)")), "what the Service itself says")
		for _, what := range []string{"EndpointSlices", "Pods", "Nodes", "agents", "controllers", "LoadBalancerAddresses", "Events"} {
			Expect(text).To(ContainSubstring("note   Not looked at: " + what + ": you may not list them."))
		}
	})
})
