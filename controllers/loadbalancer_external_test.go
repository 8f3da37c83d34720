// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	ctrl "sigs.k8s.io/controller-runtime"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/causeway-lb/causeway/api/v1alpha1"
	"github.com/causeway-lb/causeway/controllers/loadbalancer"
	"github.com/causeway-lb/causeway/internal/provisioner/haproxy"
)

const externalClass = "example.com/haproxy"

// externalLB is a running HAProxy at an address of the loopback network.
type externalLB struct {
	dir, binary string
	cmd         *exec.Cmd
	port        int32
}

func (e *externalLB) address() string { return "127.78.0.1" }

func newExternalLB() *externalLB {
	GinkgoHelper()
	binary, err := exec.LookPath("haproxy")
	if err != nil {
		if os.Getenv("REQUIRE_KERNEL") == "1" {
			Fail("haproxy is not installed: apt-get install haproxy")
		}
		Skip("haproxy is not installed: apt-get install haproxy")
	}
	dir, err := os.MkdirTemp("", "ha")
	Expect(err).NotTo(HaveOccurred())
	DeferCleanup(os.RemoveAll, dir)
	e := &externalLB{dir: dir, binary: binary, port: 21000 + int32(os.Getpid()%1000)}
	text := fmt.Sprintf("loadBalancers:\n- class: %s\n  haproxy:\n    runtime: unix://%s/admin.sock\n    addresses: [%s]\n    ports: [\"%d\"]\n    mapFile: %s/causeway.map\n    slots: 4\n",
		externalClass, dir, e.address(), e.port, dir)
	Expect(os.WriteFile(e.file(), []byte(text), 0o600)).To(Succeed())
	config, err := haproxy.RenderFile([]byte(text), externalClass)
	Expect(err).NotTo(HaveOccurred())
	Expect(os.WriteFile(filepath.Join(dir, "haproxy.cfg"), []byte(config), 0o600)).To(Succeed())
	Expect(os.WriteFile(filepath.Join(dir, "causeway.map"), nil, 0o600)).To(Succeed())
	e.run()
	DeferCleanup(e.kill)
	return e
}

func (e *externalLB) file() string { return filepath.Join(e.dir, "external.yaml") }

// run starts HAProxy and waits until it takes commands: one that is refused is
// tried again 5 s later, then after ever longer times.
func (e *externalLB) run() {
	GinkgoHelper()
	e.cmd = exec.Command(e.binary, "-db", "-f", filepath.Join(e.dir, "haproxy.cfg"))
	e.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	Expect(e.cmd.Start()).To(Succeed())
	Eventually(func() error {
		conn, err := net.Dial("unix", filepath.Join(e.dir, "admin.sock"))
		if err != nil {
			return err
		}
		return conn.Close()
	}).WithTimeout(startTime).Should(Succeed(), "HAProxy takes commands")
}

func (e *externalLB) kill() {
	_ = e.cmd.Process.Kill()
	_ = e.cmd.Wait()
}

// ask makes n connections and counts who answers.
func (e *externalLB) ask(n int) map[string]int {
	out := map[string]int{}
	c := &http.Client{Timeout: time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	for range n {
		resp, err := c.Get(fmt.Sprintf("http://%s:%d", e.address(), e.port))
		if err != nil {
			out["nobody"]++
			continue
		}
		body, _ := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		out[string(body)]++
	}
	return out
}

// fakeNode makes a Node whose NodePort answers with the node's name.
func fakeNode(ctx context.Context, name, address string, nodePort int32) *corev1.Node {
	GinkgoHelper()
	l, err := net.Listen("tcp", fmt.Sprintf("%s:%d", address, nodePort))
	Expect(err).NotTo(HaveOccurred())
	server := &http.Server{ReadHeaderTimeout: time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, name) })}
	go func() { _ = server.Serve(l) }()
	DeferCleanup(server.Close)
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}
	create(ctx, node)
	node.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: address}}
	Expect(k8sClient.Status().Update(ctx, node)).To(Succeed())
	return node
}

var _ = Describe("LoadBalancer Services of an external load balancer", Serial, func() {
	var lb *externalLB
	BeforeEach(func(ctx SpecContext) {
		lb = newExternalLB()
		mgr := newManager(0)
		opts := suiteOptions()
		opts.Features, opts.LoadBalancer.Default = Features{LoadBalancer: true}, false
		opts.SystemNamespace, opts.LoadBalancer.External = v1alpha1.SystemNamespace, lb.file()
		Expect(SetupWithManager(mgr, opts)).To(Succeed())
		DeferCleanup(startManager(mgr))
		synced(ctx, mgr, &corev1.Service{}, &corev1.Namespace{}, &corev1.Node{}, &discoveryv1.EndpointSlice{}, &networkingv1.ServiceCIDR{},
			&v1alpha1.LoadBalancerAddress{}, &v1alpha1.LoadBalancerPool{})
	}, NodeTimeout(2*startTime))
	external := func(svc *corev1.Service) {
		svc.Spec.LoadBalancerClass = ptr.To(externalClass)
		svc.Spec.Ports[0].Port = lb.port
	}

	It("follow the nodes", func(ctx SpecContext) {
		s := newLBSpec(ctx)
		svc := s.service(ctx, "web", external)
		Eventually(addressesOf(ctx, svc)).Should(Equal([]string{lb.address()}))
		Expect(svc.Status.LoadBalancer.Ingress[0].IPMode).To(HaveValue(Equal(corev1.LoadBalancerIPModeProxy)))
		Expect(svc.Annotations).To(HaveKeyWithValue(v1alpha1.ProvisionerAnnotation, externalClass))
		nodePort := svc.Spec.Ports[0].NodePort
		suffix := rand8()
		a, b := fakeNode(ctx, "a-"+suffix, "127.78.0.11", nodePort), fakeNode(ctx, "b-"+suffix, "127.78.0.12", nodePort)
		onlyFrom := func(names ...string) {
			GinkgoHelper()
			want := make([]any, 0, len(names))
			for _, n := range names {
				want = append(want, n)
			}
			Eventually(func() map[string]int { return lb.ask(6) }).Should(And(HaveLen(len(names)), WithTransform(func(m map[string]int) []string {
				var keys []string
				for k := range m {
					keys = append(keys, k)
				}
				return keys
			}, ConsistOf(want...))))
		}
		onlyFrom(a.Name, b.Name)
		Eventually(func(g Gomega) string { return serviceCondition(refresh(ctx, svc)(g), v1alpha1.ServiceHealthy) }).Should(Equal("True/Healthy"))

		By("excluding a node by label")
		edit(ctx, a, func(n *corev1.Node) { n.Labels = map[string]string{corev1.LabelNodeExcludeBalancers: ""} })
		onlyFrom(b.Name)
		edit(ctx, a, func(n *corev1.Node) { n.Labels[corev1.LabelNodeExcludeBalancers] = "false" })
		onlyFrom(a.Name, b.Name)
		edit(ctx, a, func(n *corev1.Node) { n.Labels = nil })

		By("tainting a node as the autoscaler does")
		edit(ctx, b, func(n *corev1.Node) {
			n.Spec.Taints = []corev1.Taint{{Key: loadbalancer.ToBeDeletedTaint, Effect: corev1.TaintEffectNoSchedule}}
		})
		onlyFrom(a.Name)

		By("restarting HAProxy, which forgets everything")
		lb.kill()
		lb.run()
		edit(ctx, b, func(n *corev1.Node) { n.Spec.Taints = nil })
		onlyFrom(a.Name, b.Name)
		Expect(k8sClient.Delete(ctx, a)).To(Succeed())
		onlyFrom(b.Name)

		By("deleting the Service")
		Expect(k8sClient.Delete(ctx, svc)).To(Succeed())
		Eventually(isGone(ctx, svc)).Should(BeTrue())
		Expect(lb.ask(3)).To(Equal(map[string]int{"nobody": 3}))
	})

	It("say that it cannot be reached, and are served when it can", func(ctx SpecContext) {
		s := newLBSpec(ctx)
		lb.kill()
		svc := s.service(ctx, "web", external)
		Eventually(allocatedOf(ctx, svc)).Should(Equal("False/NotServed"))
		Eventually(eventsOn(ctx, svc)).Should(ContainElement(ContainSubstring("reach HAProxy")))
		Expect(addressesOf(ctx, svc)(Default)).To(BeEmpty())
		lb.run()
		Eventually(addressesOf(ctx, svc)).Should(Equal([]string{lb.address()}))
		Eventually(allocatedOf(ctx, svc)).Should(Equal("True/Allocated"))
	})

	DescribeTable("ask for what it cannot do", func(ctx SpecContext, change func(*corev1.Service), note string) {
		s := newLBSpec(ctx)
		svc := s.service(ctx, "web", func(svc *corev1.Service) { external(svc); change(svc) })
		Eventually(allocatedOf(ctx, svc)).Should(Equal("False/Unsupported"))
		Eventually(eventsOn(ctx, svc)).Should(ContainElement(ContainSubstring(note)))
	},
		Entry("UDP", func(svc *corev1.Service) { svc.Spec.Ports[0].Protocol = corev1.ProtocolUDP }, "cannot serve UDP"),
		Entry("source ranges", func(svc *corev1.Service) { svc.Spec.LoadBalancerSourceRanges = []string{"192.0.2.0/24"} }, "loadBalancerSourceRanges"),
		Entry("no NodePorts", func(svc *corev1.Service) { svc.Spec.AllocateLoadBalancerNodePorts = ptr.To(false) }, "without NodePorts"),
		Entry("a port that it is not bound to", func(svc *corev1.Service) { svc.Spec.Ports[0].Port = 9 }, "bound to none of the Service's ports"),
	)

	It("move to a pool and back as class and type change", func(ctx SpecContext) {
		s := newLBSpec(ctx)
		s.pool(ctx, nil, s.v4Range(10, 10))
		svc := s.service(ctx, "web", external)
		Eventually(addressesOf(ctx, svc)).Should(Equal([]string{lb.address()}))
		edit(ctx, svc, func(svc *corev1.Service) {
			svc.Spec.Type, svc.Spec.LoadBalancerClass = corev1.ServiceTypeClusterIP, nil
		})
		Eventually(func(g Gomega) []string { return refresh(ctx, svc)(g).Finalizers }).Should(BeEmpty())
		edit(ctx, svc, func(svc *corev1.Service) {
			svc.Spec.Type, svc.Spec.LoadBalancerClass = corev1.ServiceTypeLoadBalancer, ptr.To(v1alpha1.LoadBalancerClass)
		})
		Eventually(addressesOf(ctx, svc)).Should(Equal([]string{s.v4(10)}))
		Expect(serviceCondition(svc, v1alpha1.ServiceHealthy)).To(BeEmpty())
	})
})

var _ = Describe("nodes for external load balancers", func() {
	It("count ready endpoints once a Pod, and leave out nodes without address", func(ctx SpecContext) {
		s := newLBSpec(ctx)
		suffix := rand8()
		node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n-" + suffix}}
		create(ctx, node)
		node.Status.Addresses = []corev1.NodeAddress{
			{Type: corev1.NodeHostName, Address: "n"}, {Type: corev1.NodeExternalIP, Address: "203.0.113.1"},
			{Type: corev1.NodeInternalIP, Address: "127.78.9.1"}, {Type: corev1.NodeInternalIP, Address: "127.78.9.2"}, {Type: corev1.NodeInternalIP, Address: "2001:db8::9"},
		}
		Expect(k8sClient.Status().Update(ctx, node)).To(Succeed())
		create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "bare-" + suffix}})
		pod := func(name string) *corev1.ObjectReference {
			return &corev1.ObjectReference{Kind: "Pod", Namespace: s.namespace, Name: name, UID: "the-pod"}
		}
		slice := func(name, family, address string, ready bool, ref *corev1.ObjectReference) {
			create(ctx, &discoveryv1.EndpointSlice{
				ObjectMeta:  metav1.ObjectMeta{Namespace: s.namespace, Name: name, Labels: map[string]string{discoveryv1.LabelServiceName: "web"}},
				AddressType: discoveryv1.AddressType(family),
				Endpoints:   []discoveryv1.Endpoint{{Addresses: []string{address}, NodeName: &node.Name, Conditions: discoveryv1.EndpointConditions{Ready: &ready}, TargetRef: ref}},
			})
		}
		slice("four", "IPv4", "10.0.0.1", true, pod("p"))
		slice("six", "IPv6", "fd00::1", true, pod("p"))
		slice("other", "IPv4", "10.0.0.2", true, nil)
		slice("unready", "IPv4", "10.0.0.3", false, nil)

		mgr, err := ctrl.NewManager(restConfig, ctrl.Options{Scheme: NewScheme(), Metrics: metricsserver.Options{BindAddress: "0"}})
		Expect(err).NotTo(HaveOccurred())
		Expect(loadbalancer.IndexSlices(mgr)).To(Succeed())
		DeferCleanup(startManager(mgr))
		Expect(mgr.GetCache().WaitForCacheSync(ctx)).To(BeTrue())
		nodes, err := loadbalancer.CachedTraffic{Reader: mgr.GetClient()}.Nodes(ctx, newService(s.namespace, "web", nil))
		Expect(err).NotTo(HaveOccurred())
		for _, n := range nodes {
			Expect(n.Name).NotTo(Equal("bare-" + suffix))
			if n.Name == node.Name {
				Expect(n.Addresses).To(Equal([]netip.Addr{netip.MustParseAddr("127.78.9.1"), netip.MustParseAddr("2001:db8::9")}))
				Expect(n.ReadyEndpoints).To(Equal(2))
			}
		}
	})
})
