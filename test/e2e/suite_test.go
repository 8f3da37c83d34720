// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-lb/causeway/api/v1alpha1"
	"github.com/causeway-lb/causeway/internal/lab"
	"github.com/causeway-lb/causeway/internal/lab/observe"
	"github.com/causeway-lb/causeway/test/labtest"
)

// The lab, in short; see prepare.
var (
	suite   = &labtest.Suite{Name: "e2e", Preparation: 2 * time.Minute, Test: 2 * time.Minute, Patience: 15 * time.Second}
	cluster *lab.Lab
	api     client.Client
	lan     *observe.Watch
	servers = map[string]corev1.Pod{} // by name

	need      = suite.Need
	local     = labtest.Local
	dualStack = labtest.DualStack
	ready     = suite.Ready
	frontend  = labtest.Frontend
	request   = suite.Request
	answering = suite.Answering
	announcer = suite.Announcer
)

func TestMain(m *testing.M) {
	suite.Prepare = prepare
	suite.Change = func(_ context.Context, setup *lab.Setup) error {
		// As before Kubernetes 1.34: clients list what they are to watch. In the
		// other suites they don't.
		setup.FeatureGates = "WatchList=false"
		return nil
	}
	suite.Main(m)
}

// prepare installs Causeway, a pool and the servers.
func prepare(ctx context.Context) error {
	cluster, api, lan = suite.Cluster, suite.API, suite.LAN
	if err := cluster.Install(ctx); err != nil {
		return err
	}
	if err := suite.Sample(ctx, func(ctx context.Context) error { return cluster.Apply(ctx, "config/samples/go-http") }); err != nil {
		return err
	}
	if err := cluster.WaitDeployment(ctx, "default", "go-http"); err != nil {
		return err
	}
	pods, err := cluster.Kubernetes.CoreV1().Pods("default").List(ctx, metav1.ListOptions{LabelSelector: "app=go-http"})
	if err != nil {
		return err
	}
	for _, pod := range pods.Items {
		servers[pod.Name] = pod
	}
	return nil
}

// change edits a Service before it is created.
type change func(*corev1.Service)

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
	suite.Create(t, ctx, service)
	return service
}

// all returns the names of the servers, sorted; on those of one node.
func all() []string { return slices.Sorted(maps.Keys(servers)) }

func on(node string) []string {
	return slices.DeleteFunc(all(), func(name string) bool { return servers[name].Spec.NodeName != node })
}

// learned returns the node whose MAC the client has in its neighbour table.
func learned(t *testing.T, address netip.Addr) string {
	t.Helper()
	mac, err := cluster.Machine(lab.Client).Neighbour(lab.Interface, address)
	if err != nil {
		t.Fatal(err)
	}
	node := suite.ByMAC(mac.String())
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
