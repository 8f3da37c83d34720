// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilrand "k8s.io/apimachinery/pkg/util/rand"
	"k8s.io/client-go/rest"
	"k8s.io/klog/v2"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/config"
	"sigs.k8s.io/controller-runtime/pkg/envtest"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"
	"sigs.k8s.io/controller-runtime/pkg/webhook"

	"github.com/causeway-lb/causeway/api/v1alpha1"
	"github.com/causeway-lb/causeway/controllers/loadbalancer"
	"github.com/causeway-lb/causeway/internal/lab/controlplane"
	"github.com/causeway-lb/causeway/internal/testkit/confine"
	"github.com/causeway-lb/causeway/test/privilege"
)

// One API server and one manager with every reconciler and webhook serve all
// specs of this package. Each spec makes a namespace of its own (newNamespace)
// and pools of its own that select that namespace (ownPool's selector), with
// ranges that no other spec uses, so that specs don't meet.
//
// There is no kube-controller-manager: nothing is collected as garbage, no
// namespace ever goes away, no ServiceCIDR gets conditions.
var (
	// k8sClient reads and writes the API server directly, without a cache.
	k8sClient client.Client
	// restConfig is how to reach the API server as administrator.
	restConfig *rest.Config
	// testEnv is the API server, etcd and the webhooks' address.
	testEnv *envtest.Environment

	stopManager func()
)

const (
	serviceRange   = "10.96.0.0/16,fd00:10:96::/112"
	nodePortRange  = "30000-32767"
	settleTime     = 20 * time.Second
	settlePoll     = 50 * time.Millisecond
	startTime      = 2 * time.Minute // how long a program may take to be ready, which says nothing of what it does then
	quietTime      = time.Second     // how long "nothing happens" is watched
	namespaceLabel = "test.causeway.dev/namespace"
)

func TestMain(m *testing.M) { os.Exit(confine.Run(m.Run)) }

func TestControllers(t *testing.T) {
	RegisterFailHandler(Fail)
	SetDefaultEventuallyTimeout(settleTime)
	SetDefaultEventuallyPollingInterval(settlePoll)
	SetDefaultConsistentlyDuration(quietTime)
	SetDefaultConsistentlyPollingInterval(settlePoll)
	EnforceDefaultTimeoutsWhenUsingContexts()
	RunSpecs(t, "controllers")
}

var _ = BeforeSuite(func(ctx SpecContext) {
	logger := GinkgoLogr
	ctrl.SetLogger(logger)
	klog.SetLogger(logger)

	assets, err := controlplane.Assets(ctx, "etcd", "kube-apiserver")
	Expect(err).NotTo(HaveOccurred())
	testEnv = newEnvironment(assets)
	auditing(testEnv)
	restConfig, err = testEnv.Start()
	Expect(err).NotTo(HaveOccurred())
	restConfig.QPS, restConfig.Burst = 1000, 2000
	k8sClient, err = client.New(restConfig, client.Options{Scheme: NewScheme()})
	Expect(err).NotTo(HaveOccurred())
	Expect(k8sClient.Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: v1alpha1.SystemNamespace}})).To(Succeed())
	becomeController(ctx)

	hooks := testEnv.WebhookInstallOptions
	mgr := newManagerOf(controllerConfig, hooks.LocalServingPort)
	Expect(SetupWithManager(mgr, suiteOptions())).To(Succeed())
	stopManager = startManager(mgr)
	Eventually(func() error {
		address := net.JoinHostPort(hooks.LocalServingHost, fmt.Sprint(hooks.LocalServingPort))
		conn, err := net.DialTimeout("tcp", address, time.Second)
		if err != nil {
			return err
		}
		return conn.Close()
	}).WithTimeout(startTime).Should(Succeed(), "the webhooks are served")
	// The first specs are about what the controllers do, not about their start.
	canary := newService(newNamespace(ctx), "canary", func(svc *corev1.Service) { svc.Spec.Type = corev1.ServiceTypeLoadBalancer })
	Expect(k8sClient.Create(ctx, canary)).To(Succeed())
	Eventually(func(g Gomega) string { return allocatedOf(ctx, canary)(g) }).WithTimeout(startTime).ShouldNot(BeEmpty(), "the load balancer controller works")
	Eventually(func(g Gomega) []discoveryv1.EndpointSlice {
		var slices discoveryv1.EndpointSliceList
		g.Expect(k8sClient.List(ctx, &slices, client.InNamespace(canary.Namespace))).To(Succeed())
		return slices.Items
	}).WithTimeout(startTime).ShouldNot(BeEmpty(), "the slices' controller works")
	Expect(k8sClient.Delete(ctx, canary)).To(Succeed())
}, NodeTimeout(10*time.Minute)) // the first build of the API server takes that long

var _ = AfterSuite(func() {
	// In this order: the API server waits for its clients when it stops.
	if stopManager != nil {
		stopManager()
	}
	if testEnv != nil {
		Expect(testEnv.Stop()).To(Succeed())
		asked, askedErr = privilege.Requests(auditLog, controllerAccount)
	}
})

// newEnvironment describes an API server with room for many Services, this
// repository's CRDs and its webhooks.
func newEnvironment(assets string) *envtest.Environment {
	root := filepath.Join("..", "config")
	env := &envtest.Environment{
		BinaryAssetsDirectory:    assets,
		ControlPlaneStartTimeout: time.Minute,
		Scheme:                   NewScheme(),
		CRDDirectoryPaths:        []string{filepath.Join(root, "crd", "bases")},
		ErrorIfCRDPathMissing:    true,
		WebhookInstallOptions: envtest.WebhookInstallOptions{
			Paths: []string{filepath.Join(root, "webhook", "manifests.yaml")},
		},
	}
	env.ControlPlane.GetAPIServer().Configure().
		Set("service-cluster-ip-range", serviceRange).
		Set("service-node-port-range", nodePortRange)
	return env
}

// suiteOptions switch everything on.
func suiteOptions() Options {
	return Options{
		LoadBalancer: loadbalancer.Options{Default: true},
		Features:     Features{LoadBalancer: true, Allocation: true, Endpoints: true},
	}
}

// newManager makes a manager whose webhooks are served at a port of this host,
// with the certificate that the API server was told to trust.
func newManager(port int) ctrl.Manager {
	GinkgoHelper()
	return newManagerOf(restConfig, port)
}

// newManagerOf is newManager for another API server.
func newManagerOf(api *rest.Config, port int) ctrl.Manager {
	GinkgoHelper()
	hooks := testEnv.WebhookInstallOptions
	skipNames := true
	if port == 0 {
		port = -1 // none: the default is one port of the host, which another suite may have
	}
	mgr, err := ctrl.NewManager(api, ctrl.Options{
		Scheme:     NewScheme(),
		Metrics:    metricsserver.Options{BindAddress: "0"},
		Cache:      CacheOptions(),
		Client:     client.Options{Cache: &client.CacheOptions{DisableFor: []client.Object{&corev1.Secret{}}}},
		Controller: config.Controller{SkipNameValidation: &skipNames}, // a spec may run a second manager
		WebhookServer: webhook.NewServer(webhook.Options{
			Host: hooks.LocalServingHost, Port: port, CertDir: hooks.LocalServingCertDir,
		}),
	})
	Expect(err).NotTo(HaveOccurred())
	_ = mgr.GetWebhookServer() // served even before any webhook is registered
	return mgr
}

// startManager runs a manager until the returned function is called, which
// waits for its end.
func startManager(mgr ctrl.Manager) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- mgr.Start(ctx) }()
	return func() {
		GinkgoHelper()
		cancel()
		Eventually(done).Should(Receive(BeNil()), "the manager stops")
	}
}

// synced waits until the cache of a manager that has been started holds every
// object of these kinds. On a busy machine that takes longer than what a spec
// then waits for.
func synced(ctx context.Context, mgr ctrl.Manager, kinds ...client.Object) {
	GinkgoHelper()
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	for _, kind := range kinds {
		_, err := mgr.GetCache().GetInformer(ctx, kind)
		Expect(err).NotTo(HaveOccurred())
	}
}

// newNamespace makes a namespace for the calling spec and returns its name,
// which is also the value of its label namespaceLabel. More labels can be
// given.
func newNamespace(ctx context.Context, labels ...map[string]string) string {
	GinkgoHelper()
	name := fmt.Sprintf("spec-%s", rand8())
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{namespaceLabel: name}}}
	for _, more := range labels {
		for k, v := range more {
			ns.Labels[k] = v
		}
	}
	Expect(k8sClient.Create(ctx, ns)).To(Succeed())
	return name
}

// inNamespace selects the namespace that newNamespace made, for a pool.
func inNamespace(name string) *metav1.LabelSelector {
	return &metav1.LabelSelector{MatchLabels: map[string]string{namespaceLabel: name}}
}

// newService returns a Service of one TCP port 80, not yet created. change may
// be nil.
func newService(namespace, name string, change func(*corev1.Service)) *corev1.Service {
	svc := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
		Spec: corev1.ServiceSpec{
			Selector: map[string]string{"app": name},
			Ports:    []corev1.ServicePort{{Name: "http", Port: 80}},
		},
	}
	if change != nil {
		change(svc)
	}
	return svc
}

// create creates an object and deletes it after the spec.
func create(ctx context.Context, obj client.Object) {
	GinkgoHelper()
	Expect(k8sClient.Create(ctx, obj)).To(Succeed())
	deleteAfterwards(obj)
}

// deleteAfterwards deletes an object, and takes its finalizers away, after the
// spec; absent is fine.
func deleteAfterwards(obj client.Object) {
	DeferCleanup(func(ctx SpecContext) {
		Expect(client.IgnoreNotFound(k8sClient.Delete(ctx, obj))).To(Succeed())
	})
}

// refresh reads the object again and returns it, for use in Eventually.
func refresh[T client.Object](ctx context.Context, obj T) func(Gomega) T {
	return func(g Gomega) T {
		g.Expect(k8sClient.Get(ctx, client.ObjectKeyFromObject(obj), obj)).To(Succeed())
		return obj
	}
}

// serviceCondition returns the status and reason of a Service's condition as
// "False/OutsidePool", and "" when it has none.
func serviceCondition(svc *corev1.Service, conditionType string) string {
	return conditionText(svc.Status.Conditions, conditionType)
}

func conditionText(conditions []metav1.Condition, conditionType string) string {
	c := meta.FindStatusCondition(conditions, conditionType)
	if c == nil {
		return ""
	}
	return fmt.Sprintf("%s/%s", c.Status, c.Reason)
}

// eventsOn returns "Reason: note" of the events about an object.
func eventsOn(ctx context.Context, obj client.Object) func(Gomega) []string {
	return func(g Gomega) (out []string) {
		var list corev1.EventList
		g.Expect(k8sClient.List(ctx, &list)).To(Succeed())
		for _, e := range list.Items {
			if e.InvolvedObject.UID == obj.GetUID() {
				out = append(out, e.Reason+": "+e.Message)
			}
		}
		return out
	}
}

// rand8 is eight random characters that a name can have.
func rand8() string { return utilrand.String(8) }
