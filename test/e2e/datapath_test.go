// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"net/netip"
	"testing"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-lb/causeway/api/v1alpha1"
	"github.com/causeway-lb/causeway/internal/lab"
)

// number of an address's family in lists that hold IPv4 first.
func number(address netip.Addr) int {
	if address.Is6() {
		return 1
	}
	return 0
}

// clientAddress is the LAN client's own.
func clientAddress(address netip.Addr) string {
	return []string{"192.0.2.100", "2001:db8:0:1::100"}[number(address)]
}

// Policy Cluster: every Pod answers. The server sees the client where the
// endpoint is on the announcing node, else that node.
func TestPolicyCluster(t *testing.T) {
	ctx := need(t)
	service := create(t, ctx, "policy-cluster", dualStack)
	for _, address := range ready(t, ctx, service) {
		t.Run(address.String(), func(t *testing.T) {
			node := announcer(t, ctx, address)
			results := answering(t, ctx, lab.Client, frontend(address, 80), all())
			for _, result := range results {
				want := node.Addresses()[number(address)].String()
				if servers[result.Answer.Host].Spec.NodeName == node.Name() {
					want = clientAddress(address)
				}
				if got := result.Answer.ClientIP; got != want {
					t.Errorf("%s on %s saw the client as %s, want %s", result.Answer.Host, servers[result.Answer.Host].Spec.NodeName, got, want)
				}
			}
			if got := learned(t, address); got != node.Name() {
				t.Errorf("the client sends to %s; %s announces", got, node.Name())
			}
			assertRecord(t, address, node.Name())
		})
	}
}

// assertRecord compares the address record with what the LAN says.
func assertRecord(t *testing.T, address netip.Addr, node string) {
	t.Helper()
	ctx := need(t)
	record := &v1alpha1.LoadBalancerAddress{}
	key := client.ObjectKey{Name: recordName(address)}
	if err := api.Get(ctx, key, record); err != nil {
		t.Fatalf("record of %s: %v", address, err)
	}
	if record.Status.Node != node {
		t.Errorf("record says that %s announces %s; the LAN says %s", record.Status.Node, address, node)
	}
}

// Policy Local: only Pods of the announcing node answer, and they see the
// client.
func TestPolicyLocal(t *testing.T) {
	ctx := need(t)
	service := create(t, ctx, "policy-local", dualStack, local)
	for _, address := range ready(t, ctx, service) {
		t.Run(address.String(), func(t *testing.T) {
			node := announcer(t, ctx, address)
			results := answering(t, ctx, lab.Client, frontend(address, 80), on(node.Name()))
			for source := range results.Sources() {
				if source != clientAddress(address) {
					t.Errorf("a server saw the client as %s, want %s", source, clientAddress(address))
				}
			}
		})
	}
}

// A NodePort answers at every node, the control plane's included, which has no
// endpoint.
func TestNodePort(t *testing.T) {
	ctx := need(t)
	service := create(t, ctx, "node-port", dualStack)
	ready(t, ctx, service)
	for _, node := range append(cluster.Nodes(), cluster.Node(lab.ControlPlane)) {
		for _, address := range node.Addresses() {
			t.Run(address.String(), func(t *testing.T) {
				answering(t, ctx, lab.Client, frontend(address, service.Spec.Ports[0].NodePort), all())
			})
		}
	}
}

// A ClusterIP answers on every node; a LoadBalancer address answers there,
// too, without leaving the node.
func TestFromNodes(t *testing.T) {
	ctx := need(t)
	service := create(t, ctx, "from-nodes", dualStack)
	addresses := ready(t, ctx, service)
	for _, ip := range service.Spec.ClusterIPs {
		addresses = append(addresses, netip.MustParseAddr(ip))
	}
	for _, machine := range []string{"node-1", lab.ControlPlane} {
		for _, address := range addresses {
			t.Run(machine+" to "+address.String(), func(t *testing.T) {
				answering(t, ctx, machine, frontend(address, 80), all())
			})
		}
	}
}

// The sample of the demonstration keeps its promise: port 30001 leads to 38001.
func TestSample(t *testing.T) {
	ctx := need(t)
	answering(t, ctx, lab.Client, "192.0.2.200:30001", all())
}
