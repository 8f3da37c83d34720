// SPDX-License-Identifier: Apache-2.0

package loadbalanceronly

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-lb/causeway/internal/lab"
	"github.com/causeway-lb/causeway/internal/lab/traffic"
	"github.com/causeway-lb/causeway/internal/testkit"
	"github.com/causeway-lb/causeway/test/labtest"
)

// The lab, in short; see prepare.
var (
	suite   = &labtest.Suite{Name: "lb-only", Preparation: 2 * time.Minute, Test: 3 * time.Minute, Patience: 20 * time.Second, Change: lab.WithKubeProxy}
	cluster *lab.Lab
	api     client.Client

	need      = suite.Need
	create    = suite.Create
	local     = labtest.Local
	dualStack = labtest.DualStack
	announcer = suite.Announcer
)

func TestMain(m *testing.M) {
	suite.Prepare = prepare
	suite.Main(m)
}

// prepare starts kube-proxy, then Causeway beside it.
func prepare(ctx context.Context) error {
	cluster, api = suite.Cluster, suite.API
	if err := startKubeProxy(ctx, "iptables"); err != nil {
		return err
	}
	if err := cluster.Apply(ctx, "config/overlays/loadbalancer-only"); err != nil {
		return err
	}
	if err := cluster.WaitInstalled(ctx); err != nil {
		return err
	}
	if err := suite.Sample(ctx, func(ctx context.Context) error { return cluster.Apply(ctx, "config/samples/go-http") }); err != nil {
		return err
	}
	return cluster.WaitDeployment(ctx, "default", "go-http")
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

// service makes a LoadBalancer Service over the Pods of an app and waits for
// its addresses.
func service(t *testing.T, ctx context.Context, name, app string, changes ...func(*corev1.Service)) (*corev1.Service, []netip.Addr) {
	t.Helper()
	svc := newService(name, app, changes...)
	create(t, ctx, svc)
	return svc, suite.Ready(t, ctx, svc)
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

// server makes a Pod of an app on a node, and waits until it is ready.
func server(t *testing.T, ctx context.Context, name, app, node string) *corev1.Pod {
	t.Helper()
	model, err := cluster.Kubernetes.CoreV1().Pods("default").List(ctx, metav1.ListOptions{LabelSelector: "app=go-http", Limit: 1})
	if err != nil || len(model.Items) == 0 {
		t.Fatalf("find a server: %v", err)
	}
	container := model.Items[0].Spec.Containers[0]
	container.VolumeMounts = nil // the API server's own
	container.Lifecycle = nil    // it ends at once
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default", Labels: map[string]string{"app": app}},
		Spec:       corev1.PodSpec{NodeName: node, TerminationGracePeriodSeconds: ptr.To[int64](1), Containers: []corev1.Container{container}},
	}
	create(t, ctx, pod)
	testkit.Eventually(t, suite.Patience, name+" ready", func() error {
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

func frontend(address netip.Addr) string { return labtest.Frontend(address, 80) }

// answering waits until requests from the LAN are answered by these Pods and no
// other, and returns a sample.
func answering(t *testing.T, ctx context.Context, address netip.Addr, want ...string) traffic.Results {
	t.Helper()
	return suite.Answering(t, ctx, lab.Client, frontend(address), want)
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
