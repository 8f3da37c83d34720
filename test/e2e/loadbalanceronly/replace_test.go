// SPDX-License-Identifier: Apache-2.0

package loadbalanceronly

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/causeway-lb/causeway/internal/lab"
	"github.com/causeway-lb/causeway/internal/lab/traffic"
	"github.com/causeway-lb/causeway/internal/testkit"
	"github.com/causeway-lb/causeway/test/labtest"
)

// The way of docs/kube-proxy.md, there and back, with clients meanwhile: no
// request fails. In between, without kube-proxy, Services answer in the agents'
// other modes too.
func TestReplaceKubeProxy(t *testing.T) {
	ctx := need(t)
	if err := startKubeProxy(ctx, "nftables"); err != nil {
		t.Fatal(err)
	}
	svc, addresses := service(t, ctx, "replace", "go-http")
	r := &replacement{
		nodePort:  netip.AddrPortFrom(cluster.Node("node-1").Addresses()[0], uint16(svc.Spec.Ports[0].NodePort)).String(),
		clusterIP: frontend(netip.MustParseAddr(svc.Spec.ClusterIP)),
	}
	// What is announced moves with the agents' restarts: that is another test's.
	answering(t, ctx, addresses[0], servers(t, ctx)...)
	must(t, ctx, "-n", lab.SystemNamespace, "create", "configmap", "causeway-api-server",
		"--from-literal=KUBERNETES_SERVICE_HOST=192.0.2.10", "--from-literal=KUBERNETES_SERVICE_PORT=6443")
	must(t, ctx, "-n", "kube-system", "patch", "daemonset", "kube-proxy", "-p", mayLeave)
	rolledOut(t, ctx, "kube-system", "kube-proxy")
	stop := r.traffic(t, ctx)

	setMode(t, ctx, "auto")
	leftoversTold(t, ctx)
	for _, node := range append(cluster.Nodes(), cluster.Node(lab.ControlPlane)) {
		must(t, ctx, "label", "node", node.Name(), "example.com/kube-proxy=no")
		t.Cleanup(func() {
			if _, err := cluster.Kubectl(context.Background(), nil, "label", "node", node.Name(), "example.com/kube-proxy-"); err != nil {
				t.Error(err)
			}
		})
		testkit.Eventually(t, suite.Patience, "end of kube-proxy on "+node.Name(), func() error { return gone(ctx, node.Name()) })
		if said := agentOn(t, node, "cleanup", "--kube-proxy", "--dry-run"); !strings.Contains(said, "remove nf_tables table ip kube-proxy\n") {
			t.Errorf("%s: a dry run says %q", node.Name(), said)
		}
		agentOn(t, node, "cleanup", "--kube-proxy")
		tables := run(t, node, "nft", "list", "tables")
		if strings.Contains(tables, "kube-proxy") || !strings.Contains(tables, "table ip causeway\n") {
			t.Errorf("tables of %s:\n%s", node.Name(), tables)
		}
	}
	stop()

	for _, mode := range []string{"iptables", "userspace"} {
		t.Run("agents in mode "+mode, func(t *testing.T) {
			setMode(t, ctx, mode)
			for _, node := range append(cluster.Nodes(), cluster.Node(lab.ControlPlane)) {
				at := netip.AddrPortFrom(node.Addresses()[0], uint16(svc.Spec.Ports[0].NodePort)).String()
				everyServer(t, ctx, lab.Client, at)
				everyServer(t, ctx, node.Name(), r.clusterIP)
			}
			answering(t, ctx, addresses[0], servers(t, ctx)...)
		})
	}

	setMode(t, ctx, "nftables")
	stop = r.traffic(t, ctx)
	for _, node := range append(cluster.Nodes(), cluster.Node(lab.ControlPlane)) {
		must(t, ctx, "label", "node", node.Name(), "example.com/kube-proxy-")
	}
	if err := waitKubeProxy(ctx, ""); err != nil {
		t.Fatal(err)
	}
	setMode(t, ctx, "none")
	stop()
	onlyRulesOf(t, ctx, "nftables")
}

// mayLeave has kube-proxy leave nodes with a label.
const mayLeave = `{"spec": {"template": {"spec": {"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": ` +
	`{"nodeSelectorTerms": [{"matchExpressions": [{"key": "example.com/kube-proxy", "operator": "DoesNotExist"}]}]}}}}}}}`

// replacement is where clients send meanwhile.
type replacement struct{ nodePort, clusterIP string }

// traffic sends requests until its end, which fails the test if any failed.
func (r *replacement) traffic(t *testing.T, ctx context.Context) (stop func()) {
	t.Helper()
	generate := func(from, address string) *traffic.Generator {
		return traffic.Generate(ctx, traffic.Config{
			From: cluster.Machine(from), Address: address, Interval: 10 * time.Millisecond, Timeout: 2 * time.Second,
		})
	}
	generators := map[string]*traffic.Generator{
		"NodePort from the LAN": generate(lab.Client, r.nodePort), "ClusterIP from node-2": generate("node-2", r.clusterIP),
	}
	holder, err := traffic.Hold(ctx, cluster.Machine(lab.Client), r.nodePort, 20)
	if err != nil {
		t.Fatal(err)
	}
	return func() {
		t.Helper()
		labtest.More(t, ctx, 50, slices.Collect(maps.Values(generators))...)
		for _, err := range holder.Check(ctx, 5*time.Second) {
			t.Errorf("an open connection: %v", err)
		}
		holder.Close()
		for what, g := range generators {
			results := g.Stop()
			if failed := results.Failed(); len(failed) > 0 || len(results) < 20 {
				t.Errorf("%s: %d of %d requests failed", what, len(failed), len(results))
				for _, f := range failed[:min(len(failed), 3)] {
					t.Errorf("at %s: %v", f.Sent.Format(time.StampMilli), f.Err)
				}
			}
			slowest := time.Duration(0)
			for _, one := range results {
				slowest = max(slowest, one.Done.Sub(one.Sent))
			}
			t.Logf("%s: %d requests, the slowest took %s", what, len(results), slowest)
		}
	}
}

func must(t *testing.T, ctx context.Context, args ...string) string {
	t.Helper()
	out, err := cluster.Kubectl(ctx, nil, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// setMode restarts the agents, one after the other, in a mode.
func setMode(t *testing.T, ctx context.Context, mode string) {
	t.Helper()
	patch := fmt.Sprintf(`[{"op": "replace", "path": "/spec/template/spec/containers/0/args/0", "value": "--mode=%s"}]`, mode)
	must(t, ctx, "-n", lab.SystemNamespace, "patch", "daemonset", "causeway-agent", "--type=json", "-p", patch)
	rolledOut(t, ctx, lab.SystemNamespace, "causeway-agent")
}

// rolledOut waits until a DaemonSet's Pods are all of its newest template and
// ready.
func rolledOut(t *testing.T, ctx context.Context, namespace, name string) {
	t.Helper()
	err := cluster.Wait(ctx, "rollout of "+name, func(ctx context.Context) (bool, string, error) {
		d, err := cluster.Kubernetes.AppsV1().DaemonSets(namespace).Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return false, "", err
		}
		s := d.Status
		return s.ObservedGeneration >= d.Generation && s.UpdatedNumberScheduled == s.DesiredNumberScheduled && s.NumberReady == s.DesiredNumberScheduled,
			fmt.Sprintf("%d of %d updated, %d ready", s.UpdatedNumberScheduled, s.DesiredNumberScheduled, s.NumberReady), nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// gone says whether a node has no Pod of kube-proxy's.
func gone(ctx context.Context, node string) error {
	pods, err := kubeProxies(ctx)
	if err != nil {
		return err
	}
	for _, pod := range pods {
		if pod.Spec.NodeName == node {
			return fmt.Errorf("%s is there", pod.Name)
		}
	}
	return nil
}

// agentOn runs the agent's program on a node.
func agentOn(t *testing.T, node *lab.Node, args ...string) string {
	t.Helper()
	return run(t, node, append([]string{cluster.Setup.Images["causeway-agent"].Files["/agent"]}, args...)...)
}

// leftoversTold waits for the agents' word on kube-proxy's rules.
func leftoversTold(t *testing.T, ctx context.Context) {
	t.Helper()
	testkit.Eventually(t, suite.Patience, "events KubeProxyLeftovers", func() error {
		list, err := cluster.Kubernetes.CoreV1().Events("").List(ctx, metav1.ListOptions{FieldSelector: "reason=KubeProxyLeftovers"})
		if err != nil {
			return err
		}
		nodes := map[string]bool{}
		for _, e := range list.Items {
			if e.Type == corev1.EventTypeWarning && strings.Contains(e.Message, "table ip kube-proxy") {
				nodes[e.InvolvedObject.Name] = true
			}
		}
		if want := len(cluster.Nodes()) + 1; len(nodes) != want {
			return fmt.Errorf("of %d nodes, want %d", len(nodes), want)
		}
		return nil
	})
}

// everyServer waits until requests from a machine are answered by all servers.
func everyServer(t *testing.T, ctx context.Context, from, address string) {
	t.Helper()
	want := servers(t, ctx)
	testkit.Eventually(t, suite.Patience, "answers at "+address+" for "+from, func() error {
		seen := map[string]bool{}
		for range 20 * len(want) {
			ctx, cancel := context.WithTimeout(ctx, time.Second)
			answer, err := traffic.Ask(ctx, cluster.Machine(from), address)
			cancel()
			if err != nil {
				return err
			}
			if seen[answer.Host] = true; len(seen) == len(want) {
				return nil
			}
		}
		return fmt.Errorf("answers from %v, want %v", seen, want)
	})
}
