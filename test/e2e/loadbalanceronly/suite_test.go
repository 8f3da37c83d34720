// SPDX-License-Identifier: Apache-2.0

package loadbalanceronly

import (
	"context"
	_ "embed"
	"errors"
	"flag"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-lb/causeway/internal/lab"
	"github.com/causeway-lb/causeway/internal/lab/observe"
	"github.com/causeway-lb/causeway/internal/lab/reexec"
	"github.com/causeway-lb/causeway/internal/lab/traffic"
)

// cluster is nil when no lab can be had; need then skips the test.
var (
	cluster *lab.Lab
	api     client.Client
	lan     *observe.Watch
	whyNone string
)

func TestMain(m *testing.M) {
	reexec.Init()
	flag.Parse()
	inside, err := lab.Inside()
	if err == nil && inside == nil {
		if testing.Short() {
			whyNone = "-short"
		} else if err := lab.Possible(); err != nil && os.Getenv("REQUIRE_KERNEL") != "1" {
			whyNone = err.Error()
		}
	}
	if whyNone != "" {
		os.Exit(m.Run())
	}
	os.Exit(lab.SuiteWith("lb-only", lab.WithKubeProxy, func(ctx context.Context, l *lab.Lab) int {
		if err := prepare(ctx, l); err != nil {
			fmt.Fprintln(os.Stderr, "e2e/loadbalanceronly:", err)
			return 1
		}
		defer lan.Close()
		return m.Run()
	}))
}

// prepare starts kube-proxy, then Causeway beside it.
func prepare(ctx context.Context, l *lab.Lab) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	var err error
	if api, err = client.New(l.REST, client.Options{Scheme: clientgoscheme.Scheme}); err != nil {
		return err
	}
	cluster = l
	if err := startKubeProxy(ctx, "iptables"); err != nil {
		return err
	}
	if err := l.Apply(ctx, "config/overlays/loadbalancer-only"); err != nil {
		return err
	}
	if err := l.WaitInstalled(ctx); err != nil {
		return err
	}
	err = l.Wait(ctx, "the webhooks", func(ctx context.Context) (bool, string, error) {
		err := l.Apply(ctx, "config/samples/go-http")
		return err == nil, "", err
	})
	if err != nil {
		return err
	}
	if err := l.WaitDeployment(ctx, "default", "go-http"); err != nil {
		return err
	}
	lan, err = observe.Start(l.Machine(lab.Client), lab.Interface)
	return err
}

//go:embed testdata/kube-proxy.yaml
var kubeProxyYAML string

// startKubeProxy runs kube-proxy on all nodes in a mode, instead of one in
// another.
func startKubeProxy(ctx context.Context, mode string) error {
	// The old one has to be gone before the new one removes what it left behind.
	if _, err := cluster.Kubectl(ctx, nil, "-n", "kube-system", "delete", "daemonset", "kube-proxy", "--ignore-not-found"); err != nil {
		return err
	}
	err := cluster.Wait(ctx, "end of kube-proxy", func(ctx context.Context) (bool, string, error) {
		pods, err := kubeProxies(ctx)
		return err == nil && len(pods) == 0, fmt.Sprintf("%d Pods are there", len(pods)), err
	})
	if err != nil {
		return err
	}
	manifest := strings.ReplaceAll(kubeProxyYAML, "MODE", mode)
	if _, err := cluster.Kubectl(ctx, strings.NewReader(manifest), "apply", "-f", "-"); err != nil {
		return err
	}
	return waitKubeProxy(ctx, mode)
}

// waitKubeProxy waits for all nodes' kube-proxy, in a mode or, if that is empty,
// in any.
func waitKubeProxy(ctx context.Context, mode string) error {
	return cluster.Wait(ctx, "kube-proxy in mode "+mode, func(ctx context.Context) (bool, string, error) {
		pods, err := kubeProxies(ctx)
		if err != nil {
			return false, "", err
		}
		ready := 0
		for _, pod := range pods {
			if (mode == "" || slices.Contains(pod.Spec.Containers[0].Args, "--proxy-mode="+mode)) && isReady(&pod) {
				ready++
			}
		}
		nodes := len(cluster.Nodes()) + 1
		return ready == nodes && len(pods) == nodes, fmt.Sprintf("%d of %d Pods are ready", ready, len(pods)), nil
	})
}

func kubeProxies(ctx context.Context) ([]corev1.Pod, error) {
	list, err := cluster.Kubernetes.CoreV1().Pods("kube-system").List(ctx, metav1.ListOptions{LabelSelector: "k8s-app=kube-proxy"})
	if err != nil {
		return nil, err
	}
	return list.Items, nil
}

func isReady(pod *corev1.Pod) bool {
	return slices.ContainsFunc(pod.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}

// need skips a test where no lab can be had. Under REQUIRE_KERNEL=1 the suite
// has failed before it comes to that.
func need(t *testing.T) context.Context {
	t.Helper()
	if cluster == nil {
		t.Skip("no lab here: " + whyNone)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// eventually retries until check gives no error.
func eventually(t *testing.T, ctx context.Context, what string, check func() error) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) || ctx.Err() != nil {
			t.Fatalf("%s: %v", what, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// create makes objects, and deletes them with the test.
func create(t *testing.T, ctx context.Context, object client.Object) {
	t.Helper()
	if err := api.Create(ctx, object); err != nil {
		t.Fatalf("create %T %s: %v", object, object.GetName(), err)
	}
	t.Cleanup(func() {
		if err := client.IgnoreNotFound(api.Delete(context.Background(), object)); err != nil {
			t.Errorf("delete %T %s: %v", object, object.GetName(), err)
		}
	})
}

// service makes a LoadBalancer Service over the Pods of an app and waits for
// its addresses.
func service(t *testing.T, ctx context.Context, name, app string, changes ...func(*corev1.Service)) (*corev1.Service, []netip.Addr) {
	t.Helper()
	svc := newService(name, app, changes...)
	create(t, ctx, svc)
	var addresses []netip.Addr
	eventually(t, ctx, "addresses of "+name, func() error {
		if err := api.Get(ctx, client.ObjectKeyFromObject(svc), svc); err != nil {
			return err
		}
		addresses = nil
		for _, ingress := range svc.Status.LoadBalancer.Ingress {
			addresses = append(addresses, netip.MustParseAddr(ingress.IP))
		}
		if len(addresses) < len(svc.Spec.ClusterIPs) {
			return fmt.Errorf("%d addresses: %v", len(addresses), svc.Status.Conditions)
		}
		return nil
	})
	return svc, addresses
}

func newService(name, app string, changes ...func(*corev1.Service)) *corev1.Service {
	svc := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default", Annotations: map[string]string{}},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeLoadBalancer, Selector: map[string]string{"app": app},
			Ports: []corev1.ServicePort{{Name: "http", Port: 80, TargetPort: intstr.FromString("http")}},
		},
	}
	for _, change := range changes {
		change(svc)
	}
	return svc
}

func local(s *corev1.Service) {
	s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
}

func dualStack(s *corev1.Service) {
	s.Spec.IPFamilyPolicy = ptr.To(corev1.IPFamilyPolicyRequireDualStack)
}

// server makes a Pod of an app on a node, and waits until it is ready.
func server(t *testing.T, ctx context.Context, name, app, node string) *corev1.Pod {
	t.Helper()
	model, err := cluster.Kubernetes.CoreV1().Pods("default").List(ctx, metav1.ListOptions{LabelSelector: "app=go-http", Limit: 1})
	if err != nil || len(model.Items) == 0 {
		t.Fatalf("find a server: %v", err)
	}
	container := model.Items[0].Spec.Containers[0]
	container.VolumeMounts = nil // the API server's own
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default", Labels: map[string]string{"app": app}},
		Spec:       corev1.PodSpec{NodeName: node, TerminationGracePeriodSeconds: ptr.To[int64](1), Containers: []corev1.Container{container}},
	}
	create(t, ctx, pod)
	eventually(t, ctx, name+" ready", func() error {
		if err := api.Get(ctx, client.ObjectKeyFromObject(pod), pod); err != nil {
			return err
		}
		if !isReady(pod) {
			return errors.New(string(pod.Status.Phase))
		}
		return nil
	})
	return pod
}

func frontend(address netip.Addr) string { return netip.AddrPortFrom(address, 80).String() }

// answering waits until requests from the LAN are answered by these Pods and no
// other, and returns a sample.
func answering(t *testing.T, ctx context.Context, address netip.Addr, want ...string) traffic.Results {
	t.Helper()
	slices.Sort(want)
	var results traffic.Results
	eventually(t, ctx, "answers from "+address.String(), func() error {
		results = nil
		for range 20 * len(want) {
			results = append(results, request(ctx, address))
			if err := results[len(results)-1].Err; err != nil {
				return err
			}
		}
		if got := slices.Sorted(maps.Keys(results.Hosts())); !slices.Equal(got, want) {
			return fmt.Errorf("answers from %v, want %v", got, want)
		}
		return nil
	})
	return results
}

func request(ctx context.Context, address netip.Addr) traffic.Result {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	result := traffic.Result{Sent: time.Now()}
	result.Answer, result.Err = traffic.Ask(ctx, cluster.Machine(lab.Client), frontend(address))
	result.Done = time.Now()
	return result
}

// announcer waits until one node alone answers for an address, three times in a
// row, and returns it.
func announcer(t *testing.T, ctx context.Context, address netip.Addr) *lab.Node {
	t.Helper()
	var node *lab.Node
	eventually(t, ctx, "one announcer of "+address.String(), func() error {
		var seen []string
		for range 3 {
			macs, err := lan.Ask(ctx, address, 150*time.Millisecond)
			if err != nil {
				return err
			}
			if len(macs) != 1 {
				return fmt.Errorf("%d nodes answer: %v", len(macs), macs)
			}
			seen = append(seen, macs[0])
		}
		if len(slices.Compact(slices.Clone(seen))) != 1 {
			return fmt.Errorf("answers from %v", seen)
		}
		for _, n := range cluster.Nodes() {
			if n.MAC() == seen[0] {
				node = n
				return nil
			}
		}
		return fmt.Errorf("%s answers and is no node", seen[0])
	})
	return node
}

// servers are the names of the sample's Pods.
func servers(t *testing.T, ctx context.Context) []string {
	t.Helper()
	pods, err := cluster.Kubernetes.CoreV1().Pods("default").List(ctx, metav1.ListOptions{LabelSelector: "app=go-http"})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, pod := range pods.Items {
		names = append(names, pod.Name)
	}
	return names
}
