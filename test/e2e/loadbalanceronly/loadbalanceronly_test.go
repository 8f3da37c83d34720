// SPDX-License-Identifier: Apache-2.0

package loadbalanceronly

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-lb/causeway/api/v1alpha1"
	"github.com/causeway-lb/causeway/internal/lab"
	"github.com/causeway-lb/causeway/internal/lab/traffic"
	"github.com/causeway-lb/causeway/internal/testkit"
	"github.com/causeway-lb/causeway/test/labtest"
)

// recoverLimit is how long a dead node may trouble clients, on a machine with
// other work to do.
const recoverLimit = 3 * time.Second

// In each of kube-proxy's modes: a client on the LAN reaches the Service, one
// node announces it, and another takes over when that one dies.
func TestBesideKubeProxy(t *testing.T) {
	for _, mode := range []string{"iptables", "nftables"} {
		t.Run(mode, func(t *testing.T) {
			ctx := need(t)
			if err := startKubeProxy(ctx, mode); err != nil {
				t.Fatal(err)
			}
			onlyRulesOf(t, ctx, mode)
			t.Run("policy Cluster", policyCluster)
			t.Run("policy Local", policyLocal)
			t.Run("node dies", nodeDies)
			t.Run("kube-proxy dies", kubeProxyDies)
		})
	}
}

// onlyRulesOf looks who programs the nodes: kube-proxy in this mode, and nobody
// else.
func onlyRulesOf(t *testing.T, ctx context.Context, mode string) {
	t.Helper()
	for _, node := range cluster.Nodes() {
		var rules, tables string
		testkit.Eventually(t, suite.Patience, "rules of "+node.Name(), func() error {
			rules, tables = run(t, node, "iptables-save", "-t", "nat"), run(t, node, "nft", "list", "tables")
			if got := strings.Contains(rules, "KUBE-SERVICES"); got != (mode == "iptables") {
				return fmt.Errorf("kube-proxy's chains in iptables: %v", got)
			}
			if got := strings.Contains(tables, "kube-proxy"); got != (mode == "nftables") {
				return fmt.Errorf("kube-proxy's nftables tables: %v", got)
			}
			return nil
		})
		tables = strings.ReplaceAll(tables, "causeway-handover", "") // the announcer's, which forwards to no endpoint
		if strings.Contains(tables, "causeway") || strings.Contains(rules, "\n:CAUSEWAY") {
			t.Errorf("%s: Causeway has rules:\n%s%s", node.Name(), tables, rules)
		}
	}
}

func run(t *testing.T, node *lab.Node, argv ...string) string {
	t.Helper()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")
	if cmd.Err != nil {
		cmd.Path, cmd.Err = "/usr/sbin/"+argv[0], nil
	}
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	err := node.Namespace().Start(cmd)
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		t.Fatalf("%s: %v: %v: %s", node.Name(), argv, err, stderr.String())
	}
	return out.String()
}

func policyCluster(t *testing.T) {
	ctx := need(t)
	svc, addresses := service(t, ctx, "cluster", "go-http", dualStack)
	for _, address := range addresses {
		answering(t, ctx, address, servers(t, ctx)...)
		record := &v1alpha1.LoadBalancerAddress{}
		testkit.Eventually(t, suite.Patience, "record of "+address.String(), func() error {
			// It moves when an agent hears later than another that its kube-proxy serves.
			node := announcer(t, ctx, address)
			text, err := cluster.Kubectl(ctx, nil, "get", "loadbalanceraddress", v1alpha1.LoadBalancerAddressName(address), "-o", "json")
			if err != nil {
				return err
			}
			if err := json.Unmarshal([]byte(text), record); err != nil {
				return err
			}
			if record.Status.Node != node.Name() || record.Status.Interface != lab.Interface {
				return fmt.Errorf("announced by %q on %q, want %s on %s", record.Status.Node, record.Status.Interface, node.Name(), lab.Interface)
			}
			return nil
		})
	}
	testkit.Eventually(t, suite.Patience, "row of "+addresses[0].String(), func() error {
		return columns(ctx, addresses[0], announcer(t, ctx, addresses[0]).Name())
	})
	testkit.Eventually(t, suite.Patience, "conditions", func() error {
		if err := api.Get(ctx, client.ObjectKeyFromObject(svc), svc); err != nil {
			return err
		}
		for _, condition := range []string{v1alpha1.ServiceAllocated, v1alpha1.ServiceAnnounced} {
			if !meta.IsStatusConditionTrue(svc.Status.Conditions, condition) {
				return fmt.Errorf("%s is not True: %v", condition, svc.Status.Conditions)
			}
		}
		return nil
	})
}

// columns looks at what kubectl shows of an address.
func columns(ctx context.Context, address netip.Addr, node string) error {
	text, err := cluster.Kubectl(ctx, nil, "get", "loadbalanceraddresses")
	if err != nil {
		return err
	}
	head := regexp.MustCompile(`(?m)^NAME +ADDRESS +NAMESPACE +SERVICE +POOL +NODE +INTERFACE +SINCE$`)
	row := regexp.MustCompile(fmt.Sprintf(`(?m)^%[1]s +%[1]s +default +cluster +lan +%s +%s +\d+m?\d*s$`, regexp.QuoteMeta(address.String()), node, lab.Interface))
	if !head.MatchString(text) || !row.MatchString(text) {
		return fmt.Errorf("kubectl get loadbalanceraddresses: no row of %s at %s in\n%s", address, node, text)
	}
	return nil
}

// With policy Local only a node with a ready endpoint announces, for kube-proxy
// drops what comes elsewhere; the client's address is kept.
func policyLocal(t *testing.T) {
	ctx := need(t)
	first := server(t, ctx, "single-a", "single", "node-2")
	svc, addresses := service(t, ctx, "local", "single", local)
	results := answering(t, ctx, addresses[0], first.Name)
	if node := announcer(t, ctx, addresses[0]); node.Name() != "node-2" {
		t.Errorf("announced by %s, want node-2, where the endpoint is", node.Name())
	}
	const source = "192.0.2.100" // the client's
	if sources := results.Sources(); len(sources) != 1 || sources[source] == 0 {
		t.Errorf("the Pod sees %v, want %s alone", sources, source)
	}

	second := server(t, ctx, "single-b", "single", "node-3")
	if err := api.Delete(ctx, first); err != nil {
		t.Fatal(err)
	}
	answering(t, ctx, addresses[0], second.Name)
	if node := announcer(t, ctx, addresses[0]); node.Name() != "node-3" {
		t.Errorf("announced by %s, want node-3, where the endpoint is now", node.Name())
	}

	// Another Service of policy Local cannot have its Pods elsewhere: kube-proxy
	// would drop what comes for it.
	share := func(s *corev1.Service) {
		s.Annotations[v1alpha1.SharingKeyAnnotation] = "k"
		s.Annotations[v1alpha1.AddressesAnnotation] = addresses[0].String()
		s.Spec.Ports[0].Port = 81
	}
	if err := api.Get(ctx, client.ObjectKeyFromObject(svc), svc); err != nil {
		t.Fatal(err)
	}
	base := svc.DeepCopy()
	svc.Annotations[v1alpha1.SharingKeyAnnotation] = "k"
	if err := api.Patch(ctx, svc, client.MergeFrom(base)); err != nil {
		t.Fatal(err)
	}
	other := newService("local-other", "go-http", local, share)
	create(t, ctx, other)
	testkit.Eventually(t, suite.Patience, "sharing refused", func() error {
		if err := api.Get(ctx, client.ObjectKeyFromObject(other), other); err != nil {
			return err
		}
		c := meta.FindStatusCondition(other.Status.Conditions, v1alpha1.ServiceAllocated)
		if c == nil || c.Reason != "SharingNotAllowed" || !strings.Contains(c.Message, "externalTrafficPolicy: Cluster") {
			return fmt.Errorf("condition %+v", c)
		}
		return nil
	})
}

// With policy Local the new announcer serves by its own endpoint, so that every
// request is answered again as soon as the address has moved.
func nodeDies(t *testing.T) {
	ctx := need(t)
	_, addresses := service(t, ctx, "dies", "go-http", local)
	before := announcer(t, ctx, addresses[0])
	generator := traffic.Generate(ctx, traffic.Config{From: cluster.Machine(lab.Client), Address: frontend(addresses[0])})
	labtest.More(t, ctx, 20, generator)
	died := time.Now()
	if err := before.PowerOff(); err != nil {
		t.Fatal(err)
	}
	on := sync.OnceValue(before.PowerOn)
	t.Cleanup(func() {
		if err := on(); err != nil {
			t.Error(err)
		}
	})
	time.Sleep(recoverLimit) // from then on none may fail
	labtest.More(t, ctx, 30, generator)
	results := generator.Stop()
	recovered := 0
	for _, r := range results {
		if r.Sent.Before(died.Add(recoverLimit)) {
			continue
		}
		if r.Err != nil {
			t.Fatalf("a request failed %s after %s died: %v", r.Sent.Sub(died), before.Name(), r.Err)
		}
		recovered++
	}
	if recovered < 20 {
		t.Errorf("only %d requests after the node died", recovered)
	}
	t.Logf("longest outage %s", results.LongestOutage())
	if after := announcer(t, ctx, addresses[0]); after == before {
		t.Errorf("%s still announces", after.Name())
	}
	if err := on(); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(waitKubeProxy(ctx, ""), cluster.WaitInstalled(ctx)); err != nil {
		t.Fatal(err)
	}
	announcer(t, ctx, addresses[0])
}

// A node whose kube-proxy has stopped forwards less and less of what it should:
// it hands over.
func kubeProxyDies(t *testing.T) {
	ctx := need(t)
	created := time.Now()
	_, addresses := service(t, ctx, "proxy-dies", "go-http", local)
	given := time.Since(created)
	before := announcer(t, ctx, addresses[0])
	t.Logf("address after %s, announced by %s after %s", given, before.Name(), time.Since(created))
	pods, err := kubeProxies(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for i := range pods {
		pod := &pods[i]
		if pod.Spec.NodeName != before.Name() {
			continue
		}
		if err := cluster.Hold(ctx, pod); err != nil {
			t.Fatal(err)
		}
		release := sync.OnceValue(func() error { return cluster.Release(context.WithoutCancel(ctx), pod) })
		t.Cleanup(func() {
			if err := release(); err != nil {
				t.Error(err)
			}
		})
		if err := cluster.KillContainer(pod, "kube-proxy"); err != nil {
			t.Fatal(err)
		}
	}
	died := time.Now()
	testkit.Eventually(t, suite.Patience, "another announcer", func() error {
		if now := announcer(t, ctx, addresses[0]); now == before {
			return fmt.Errorf("%s still answers", now.Name())
		}
		return nil
	})
	t.Logf("moved within %s", time.Since(died))
	for range 20 {
		if result := suite.Request(ctx, lab.Client, frontend(addresses[0])); result.Err != nil {
			t.Errorf("after the move: %v", result.Err)
		}
	}
}

// The overlay's roles are enough: nothing that Causeway tried was refused.
func TestRoles(t *testing.T) {
	need(t)
	file, err := os.Open(cluster.AuditLog())
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	seen := map[string]int{}
	lines := bufio.NewScanner(file)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var event struct {
			RequestURI, Verb string
			User             struct{ Username string }
			ResponseStatus   struct{ Code int }
		}
		if err := json.Unmarshal(lines.Bytes(), &event); err != nil {
			continue // the line that is being written
		}
		name, ours := strings.CutPrefix(event.User.Username, "system:serviceaccount:causeway-system:")
		if !ours {
			continue
		}
		seen[name]++
		if event.ResponseStatus.Code == 403 {
			t.Errorf("%s was refused: %s %s", name, event.Verb, event.RequestURI)
		}
	}
	if seen["causeway-controller"] == 0 || seen["causeway-agent"] == 0 {
		t.Errorf("requests seen: %v", seen)
	}
}
