// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"flag"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-lb/causeway/api/v1alpha1"
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
	servers = map[string]corev1.Pod{} // by name
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
	os.Exit(lab.Suite("e2e", func(ctx context.Context, l *lab.Lab) int {
		if err := prepare(ctx, l); err != nil {
			fmt.Fprintln(os.Stderr, "e2e:", err)
			return 1
		}
		defer lan.Close()
		return m.Run()
	}))
}

// prepare installs Causeway, a pool and the servers.
func prepare(ctx context.Context, l *lab.Lab) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	if err := l.Install(ctx); err != nil {
		return err
	}
	if err := l.Wait(ctx, "the webhooks", func(ctx context.Context) (bool, string, error) {
		err := l.Apply(ctx, "config/samples/go-http")
		return err == nil, "", err
	}); err != nil {
		return err
	}
	if err := l.WaitDeployment(ctx, "default", "go-http"); err != nil {
		return err
	}
	scheme := clientgoscheme.Scheme
	if err := v1alpha1.AddToScheme(scheme); err != nil {
		return err
	}
	var err error
	if api, err = client.New(l.REST, client.Options{Scheme: scheme}); err != nil {
		return err
	}
	pods, err := l.Kubernetes.CoreV1().Pods("default").List(ctx, metav1.ListOptions{LabelSelector: "app=go-http"})
	if err != nil {
		return err
	}
	for _, pod := range pods.Items {
		servers[pod.Name] = pod
	}
	if lan, err = observe.Start(l.Machine(lab.Client), lab.Interface); err != nil {
		return err
	}
	cluster = l
	return nil
}

// need skips a test where no lab can be had. Under REQUIRE_KERNEL=1 the suite
// has failed before it comes to that.
func need(t *testing.T) context.Context {
	t.Helper()
	if cluster == nil {
		t.Skip("no lab here: " + whyNone)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// eventually retries until check gives no error.
func eventually(t *testing.T, ctx context.Context, within time.Duration, what string, check func() error) {
	t.Helper()
	deadline := time.Now().Add(within)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) || ctx.Err() != nil {
			t.Fatalf("%s: not within %s: %v", what, within, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// change edits a Service before it is created.
type change func(*corev1.Service)

func local(s *corev1.Service) {
	s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
}

func dualStack(s *corev1.Service) {
	policy := corev1.IPFamilyPolicyRequireDualStack
	s.Spec.IPFamilyPolicy = &policy
}

func asks(addresses string) change {
	return func(s *corev1.Service) {
		s.Annotations = map[string]string{v1alpha1.AddressesAnnotation: addresses}
	}
}

// create makes a LoadBalancer Service over the servers, and deletes it with
// the test.
func create(t *testing.T, ctx context.Context, name string, changes ...change) *corev1.Service {
	t.Helper()
	service := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default"},
		Spec: corev1.ServiceSpec{
			Type:     corev1.ServiceTypeLoadBalancer,
			Selector: map[string]string{"app": "go-http"},
			Ports:    []corev1.ServicePort{{Name: "http", Port: 80, TargetPort: intstr.FromString("http")}},
		},
	}
	for _, change := range changes {
		change(service)
	}
	if err := api.Create(ctx, service); err != nil {
		t.Fatalf("create Service %s: %v", name, err)
	}
	t.Cleanup(func() {
		if err := client.IgnoreNotFound(api.Delete(context.Background(), service)); err != nil {
			t.Errorf("delete Service %s: %v", name, err)
		}
	})
	return service
}

// ready waits for a LoadBalancer Service's addresses and returns them.
func ready(t *testing.T, ctx context.Context, service *corev1.Service) []netip.Addr {
	t.Helper()
	var addresses []netip.Addr
	eventually(t, ctx, 15*time.Second, "address of "+service.Name, func() error {
		if err := api.Get(ctx, client.ObjectKeyFromObject(service), service); err != nil {
			return err
		}
		addresses = nil
		for _, ingress := range service.Status.LoadBalancer.Ingress {
			addresses = append(addresses, netip.MustParseAddr(ingress.IP))
		}
		if len(addresses) < len(service.Spec.ClusterIPs) {
			return fmt.Errorf("%d addresses: %v", len(addresses), service.Status.Conditions)
		}
		return nil
	})
	return addresses
}

// frontend returns address:port, in the form that dialers take.
func frontend(address netip.Addr, port int32) string {
	return netip.AddrPortFrom(address, uint16(port)).String()
}

// answering waits until requests from a machine are answered by all of these
// Pods and no other, ten times in a row, and returns a sample.
func answering(t *testing.T, ctx context.Context, from, address string, want []string) traffic.Results {
	t.Helper()
	var results traffic.Results
	eventually(t, ctx, 15*time.Second, "answers from "+address+" to "+from, func() error {
		results = nil
		for range 20 * len(want) {
			results = append(results, request(ctx, from, address))
			if err := results[len(results)-1].Err; err != nil {
				return err
			}
		}
		if got := slices.Sorted(maps.Keys(results.Hosts())); !slices.Equal(got, want) {
			return fmt.Errorf("answers from %s, want %s", strings.Join(got, ", "), strings.Join(want, ", "))
		}
		return nil
	})
	return results
}

func request(ctx context.Context, from, address string) traffic.Result {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	result := traffic.Result{Sent: time.Now()}
	result.Answer, result.Err = traffic.Ask(ctx, cluster.Machine(from), address)
	result.Done = time.Now()
	return result
}

// all returns the names of the servers, sorted; on those of one node.
func all() []string { return slices.Sorted(maps.Keys(servers)) }

func on(node string) []string {
	return slices.DeleteFunc(all(), func(name string) bool { return servers[name].Spec.NodeName != node })
}

// announcer waits until exactly one node answers for an address, three times
// in a row, and returns it.
func announcer(t *testing.T, ctx context.Context, address netip.Addr) *lab.Node {
	t.Helper()
	var node *lab.Node
	eventually(t, ctx, 15*time.Second, "one announcer of "+address.String(), func() error {
		node = nil
		for range 3 {
			macs, err := lan.Ask(ctx, address, 150*time.Millisecond)
			if err != nil {
				return err
			}
			if len(macs) != 1 {
				return fmt.Errorf("%d nodes answer: %s", len(macs), strings.Join(macs, ", "))
			}
			found := byMAC(macs[0])
			if found == nil {
				return fmt.Errorf("%s answers and is no node", macs[0])
			}
			if node != nil && node != found {
				return fmt.Errorf("first %s answers, then %s", node.Name(), found.Name())
			}
			node = found
		}
		return nil
	})
	return node
}

func byMAC(mac string) *lab.Node {
	for _, node := range cluster.Nodes() {
		if node.MAC() == mac {
			return node
		}
	}
	return nil
}

// learned returns the node whose MAC the client has in its neighbour table.
func learned(t *testing.T, address netip.Addr) string {
	t.Helper()
	mac, err := cluster.Machine(lab.Client).Neighbour(lab.Interface, address)
	if err != nil {
		t.Fatal(err)
	}
	node := byMAC(mac.String())
	if node == nil {
		t.Fatalf("the client has %s at %q, which is no node", address, mac)
	}
	return node.Name()
}

// systemPods returns the Pods of the controller or the agents.
func systemPods(t *testing.T, ctx context.Context, app string) []corev1.Pod {
	t.Helper()
	pods, err := cluster.Kubernetes.CoreV1().Pods(lab.SystemNamespace).List(ctx, metav1.ListOptions{LabelSelector: "app.kubernetes.io/name=" + app})
	if err != nil {
		t.Fatal(err)
	}
	// One on its way out, after a rollout, is none to kill or to wait for.
	out := slices.DeleteFunc(pods.Items, func(p corev1.Pod) bool { return p.DeletionTimestamp != nil })
	if len(out) == 0 {
		t.Fatalf("no Pods of %s", app)
	}
	return out
}

// hold keeps Pods' containers from being started again until release is called
// or the test ends, however it ends.
func hold(t *testing.T, ctx context.Context, pods []corev1.Pod) (release func()) {
	t.Helper()
	release = func() {
		for i := range pods {
			if err := cluster.Release(context.WithoutCancel(ctx), &pods[i]); err != nil {
				t.Error(err)
			}
		}
	}
	once := sync.OnceFunc(release)
	t.Cleanup(once)
	for i := range pods {
		if err := cluster.Hold(ctx, &pods[i]); err != nil {
			t.Fatal(err)
		}
	}
	return once
}
