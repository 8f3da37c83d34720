// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/mdlayher/packet"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/envtest"

	"github.com/causeway-lb/causeway/api/v1alpha1"
	"github.com/causeway-lb/causeway/internal/announce"
	"github.com/causeway-lb/causeway/internal/announce/l2/arp"
	"github.com/causeway-lb/causeway/internal/announce/l2/wire"
	"github.com/causeway-lb/causeway/internal/announce/members"
	"github.com/causeway-lb/causeway/internal/proxy/model"
	"github.com/causeway-lb/causeway/internal/proxy/syncer"
	"github.com/causeway-lb/causeway/internal/testkit"
	"github.com/causeway-lb/causeway/internal/testkit/nstest"
)

// fill puts objects into a Store as the reflectors do.
func fill(t *testing.T, s *Store, objs ...any) {
	t.Helper()
	for _, o := range objs {
		var f *feed
		switch o.(type) {
		case *corev1.Service:
			f = s.serviceFeed()
		case *discoveryv1.EndpointSlice:
			f = s.sliceFeed()
		case *corev1.Node:
			f = s.nodeFeed()
		case *v1alpha1.LoadBalancerAddress:
			f = s.addressFeed()
		case *v1alpha1.LoadBalancerPool:
			f = s.poolFeed()
		}
		if err := f.Add(o); err != nil {
			t.Fatal(err)
		}
	}
}

func lbService(name string, policy corev1.ServiceExternalTrafficPolicy, ips ...string) *corev1.Service {
	svc := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: types.UID(name)},
		Spec:       corev1.ServiceSpec{Type: corev1.ServiceTypeLoadBalancer, ExternalTrafficPolicy: policy},
	}
	for _, ip := range ips {
		svc.Status.LoadBalancer.Ingress = append(svc.Status.LoadBalancer.Ingress, corev1.LoadBalancerIngress{IP: ip})
	}
	return svc
}

func lbRecord(ip, pool string, services ...string) *v1alpha1.LoadBalancerAddress {
	r := &v1alpha1.LoadBalancerAddress{
		ObjectMeta: metav1.ObjectMeta{Name: v1alpha1.LoadBalancerAddressName(netip.MustParseAddr(ip))},
		Spec:       v1alpha1.LoadBalancerAddressSpec{Address: ip, Pool: pool},
	}
	for _, s := range services {
		r.Spec.Services = append(r.Spec.Services, v1alpha1.ServiceReference{Namespace: "default", Name: s, UID: s})
	}
	return r
}

// endpointsOn makes a slice with one endpoint a node: "node-1" ready, "-node-1"
// serving while it terminates, "!node-1" neither.
func endpointsOn(service string, family discoveryv1.AddressType, nodes ...string) *discoveryv1.EndpointSlice {
	s := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "default", Name: service + "-" + string(family), Labels: map[string]string{discoveryv1.LabelServiceName: service}},
		AddressType: family,
	}
	for _, n := range nodes {
		ep := discoveryv1.Endpoint{Addresses: []string{"10.244.0.1"}}
		switch n[0] {
		case '-':
			n, ep.Conditions = n[1:], discoveryv1.EndpointConditions{Ready: ptr.To(false), Serving: ptr.To(true), Terminating: ptr.To(true)}
		case '!':
			n, ep.Conditions = n[1:], discoveryv1.EndpointConditions{Ready: ptr.To(false), Serving: ptr.To(false)}
		}
		ep.NodeName = &n
		s.Endpoints = append(s.Endpoints, ep)
	}
	return s
}

func TestAnnouncedAddresses(t *testing.T) {
	const v4, v6 = discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6
	cluster, local := corev1.ServiceExternalTrafficPolicyCluster, corev1.ServiceExternalTrafficPolicyLocal
	tests := []struct {
		name string
		objs []any
		want map[string][]string // address -> nodes that policy Local leaves; nil: any
	}{
		{"policy Cluster", []any{lbService("a", cluster, "192.0.2.200"), lbRecord("192.0.2.200", "p", "a")},
			map[string][]string{"192.0.2.200": nil}},
		{"the Service does not have it yet", []any{lbService("a", cluster), lbRecord("192.0.2.200", "p", "a")}, map[string][]string{}},
		{"the Service is another of the same name", []any{
			lbService("a", cluster, "192.0.2.200"),
			func() any { r := lbRecord("192.0.2.200", "p", "a"); r.Spec.Services[0].UID = "old"; return r }(),
		}, map[string][]string{}},
		{"a reservation", []any{lbRecord("192.0.2.200", "p")}, map[string][]string{}},
		{"policy Local", []any{
			lbService("a", local, "192.0.2.200"), lbRecord("192.0.2.200", "p", "a"),
			endpointsOn("a", v4, "node-1", "!node-2", "-node-3"), endpointsOn("a", v6, "node-2"),
		}, map[string][]string{"192.0.2.200": {"node-1"}}},
		{"policy Local, IPv6", []any{
			lbService("a", local, "2001:db8::200"), lbRecord("2001:db8::200", "p", "a"),
			endpointsOn("a", v4, "node-1"), endpointsOn("a", v6, "node-2"),
		}, map[string][]string{"2001:db8::200": {"node-2"}}},
		{"policy Local, only terminating ones", []any{
			lbService("a", local, "192.0.2.200"), lbRecord("192.0.2.200", "p", "a"), endpointsOn("a", v4, "!node-2", "-node-3"),
		}, map[string][]string{"192.0.2.200": {"node-3"}}},
		{"policy Local without endpoints", []any{lbService("a", local, "192.0.2.200"), lbRecord("192.0.2.200", "p", "a")},
			map[string][]string{"192.0.2.200": {}}},
		{"shared, policies Local and Cluster", []any{
			lbService("a", local, "192.0.2.200"), lbService("b", cluster, "192.0.2.200"), lbRecord("192.0.2.200", "p", "a", "b"),
			endpointsOn("a", v4, "node-1"),
		}, map[string][]string{"192.0.2.200": {"node-1"}}},
		{"shared, policy Local with Pods that meet on a node", []any{
			lbService("a", local, "192.0.2.200"), lbService("b", local, "192.0.2.200"), lbRecord("192.0.2.200", "p", "a", "b"),
			endpointsOn("a", v4, "node-1", "node-2"), endpointsOn("b", v4, "node-2", "node-3"),
		}, map[string][]string{"192.0.2.200": {"node-2"}}},
		{"shared, policy Local with Pods that do not", []any{
			lbService("a", local, "192.0.2.200"), lbService("b", local, "192.0.2.200"), lbRecord("192.0.2.200", "p", "a", "b"),
			endpointsOn("a", v4, "node-1"), endpointsOn("b", v4, "node-3"),
		}, map[string][]string{"192.0.2.200": {"node-1", "node-3"}}},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			store := NewStore()
			fill(t, store, tc.objs...)
			var b snapshotter
			snap, changed := b.make(store, false, true)
			if !changed {
				t.Error("the first snapshot does not count as changed")
			}
			got := map[string][]string{}
			for _, a := range snap.Addresses {
				var nodes []string
				if a.Local != nil {
					nodes = []string{}
					for _, n := range []string{"node-1", "node-2", "node-3"} {
						if a.Local[n] {
							nodes = append(nodes, n)
						}
					}
				}
				got[a.Addr.String()] = nodes
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if _, changed := b.make(store, false, true); changed {
				t.Error("the same Store counts as changed")
			}
			if _, changed := b.make(store, false, false); !changed {
				t.Error("a kernel out of sync does not count as changed")
			}
		})
	}
}

func TestAnnouncedPoolsAndNodes(t *testing.T) {
	store := NewStore()
	pool := &v1alpha1.LoadBalancerPool{ObjectMeta: metav1.ObjectMeta{Name: "p", ResourceVersion: "1"}}
	pool.Spec.Interfaces = []v1alpha1.InterfacePattern{"eth*"}
	pool.Spec.NodeSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"rack": "a"}}
	pool.Spec.Failback = v1alpha1.Failback{Mode: v1alpha1.FailbackDelayed, Delay: &metav1.Duration{Duration: time.Minute}}
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node-1", Labels: map[string]string{corev1.LabelNodeExcludeBalancers: ""}}}
	node.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeNetworkUnavailable, Status: corev1.ConditionTrue}}
	node.Spec.Unschedulable = true
	node.Spec.Taints = []corev1.Taint{{Key: toBeDeletedTaint}}
	node.Status.Addresses = []corev1.NodeAddress{
		{Type: corev1.NodeHostName, Address: "node-1"}, {Type: corev1.NodeInternalIP, Address: "192.0.2.11"}, {Type: corev1.NodeInternalIP, Address: "2001:db8::11"},
	}
	fill(t, store, pool, node, lbService("a", "", "192.0.2.200"), lbRecord("192.0.2.200", "p", "a"), lbService("b", "", "192.0.2.201"), lbRecord("192.0.2.201", "gone", "b"))
	var b snapshotter
	snap, _ := b.make(store, false, true)
	n := snap.Nodes[0]
	if !n.Excluded || !n.Cordoned || !n.Deleting || !n.NoNetwork || len(n.InternalIPs) != 2 {
		t.Errorf("node %+v", n)
	}
	p := snap.Addresses[0].Pool
	if p.Preempt != time.Minute || len(p.Interfaces) != 1 || p.Selects(nil) || !p.Selects(map[string]string{"rack": "a"}) {
		t.Errorf("pool %+v", p)
	}
	if p := snap.Addresses[1].Pool; p.Selects != nil || p.Preempt != 0 {
		t.Errorf("pool that is gone: %+v", p)
	}
	all := snapshotter{ignoreExcludeLabel: true}
	snap, _ = all.make(store, false, true)
	for _, a := range snap.Addresses {
		if !a.Pool.IgnoreExcludeLabel {
			t.Errorf("%v: pool %+v heeds the label in spite of --ignore-exclude-label", a.Addr, a.Pool)
		}
	}
	never := pool.DeepCopy()
	never.ResourceVersion, never.Spec.Failback = "2", v1alpha1.Failback{Mode: v1alpha1.FailbackNever}
	fill(t, store, never)
	snap, changed := b.make(store, false, true)
	if !changed || snap.Addresses[0].Pool.Preempt != announce.Never {
		t.Errorf("edited pool: changed %v, %+v", changed, snap.Addresses[0].Pool)
	}
}

func TestUsable(t *testing.T) {
	now := time.Unix(1000, 0)
	tests := []struct {
		name   string
		status syncer.Status
		want   bool
		again  time.Duration
	}{
		{"before the first sync", syncer.Status{InSync: true}, false, 0},
		{"in sync", syncer.Status{Started: true, InSync: true}, true, 0},
		{"lagging for a moment", syncer.Status{Started: true, Since: now.Add(-time.Second), Err: errors.New("busy")}, true, syncGrace - time.Second},
		{"lagging for long", syncer.Status{Started: true, Since: now.Add(-syncGrace)}, false, 0},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			if ok, again := usable(tc.status, now); ok != tc.want || again != tc.again {
				t.Errorf("usable %v, again in %v; want %v, %v", ok, again, tc.want, tc.again)
			}
		})
	}
}

// TestAnnouncer runs an agent with a real API server: the gossip key arrives, the
// address is announced on the interface of its subnet, and the record says so.
func TestAnnouncer(t *testing.T) {
	nstest.Require(t, "ip", "nft")
	cfg := apiServer(t)
	if _, err := envtest.InstallCRDs(cfg, envtest.CRDInstallOptions{Paths: []string{"../../config/crd/bases"}}); err != nil {
		t.Fatal(err)
	}
	nstest.Run(t, "ip", "link", "add", "lan0", "type", "veth", "peer", "name", "lan1")
	t.Cleanup(func() { nstest.Run(t, "ip", "link", "delete", "lan0") })
	nstest.Run(t, "ip", "address", "add", "192.0.2.11/24", "dev", "lan0")
	nstest.Run(t, "ip", "link", "set", "lan0", "up")
	nstest.Run(t, "ip", "link", "set", "lan1", "up")
	c, err := client.New(cfg, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := v1alpha1.AddToScheme(c.Scheme()); err != nil {
		t.Fatal(err)
	}
	announced := createAnnounced(t, c)
	runAgent(t, Config{Node: model.Node{Name: "node-1"}, REST: cfg, Backend: newNftables(t), Parts: []Part{Announcer(AnnouncerConfig{})}})

	var record v1alpha1.LoadBalancerAddress
	testkit.Eventually(t, 20*time.Second, "announced", func() error {
		if err := c.Get(t.Context(), client.ObjectKeyFromObject(announced), &record); err != nil {
			return err
		}
		if record.Status.Node != "node-1" || record.Status.Interface != "lan0" || record.Status.Since == nil ||
			!meta.IsStatusConditionTrue(record.Status.Conditions, v1alpha1.AddressAnnounced) {
			return fmt.Errorf("status %+v", record.Status)
		}
		return nil
	})
	testkit.Eventually(t, 10*time.Second, "told by an event", func() error { return hasEvent(kubernetes.NewForConfigOrDie(cfg), "Announcing") })

	// What somebody else writes over it is put right.
	record.Status.Node = "node-9"
	if err := c.Status().Update(t.Context(), &record); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, 10*time.Second, "put right", func() error {
		if err := c.Get(t.Context(), client.ObjectKeyFromObject(announced), &record); err != nil {
			return err
		}
		if record.Status.Node != "node-1" {
			return fmt.Errorf("node %s", record.Status.Node)
		}
		return nil
	})

	// Another host claims the address: that is told, and the address kept.
	stranger := wire.MAC{2, 0, 0, 0, 0, 0x99}
	announceFrom(t, "lan1", netip.MustParseAddr("192.0.2.200"), stranger)
	testkit.Eventually(t, 10*time.Second, "the conflict told", func() error {
		if err := c.Get(t.Context(), client.ObjectKeyFromObject(announced), &record); err != nil {
			return err
		}
		cond := meta.FindStatusCondition(record.Status.Conditions, v1alpha1.AddressUncontested)
		if cond == nil || cond.Status != metav1.ConditionFalse || !strings.Contains(cond.Message, stranger.String()) || record.Status.Node != "node-1" {
			return fmt.Errorf("node %q, condition %+v", record.Status.Node, cond)
		}
		return hasEvent(kubernetes.NewForConfigOrDie(cfg), "AddressConflict")
	})

	// A cordoned node goes on where no other can announce, and says so. One that is
	// excluded does not, unless the pool has it.
	var node corev1.Node
	if err := c.Get(t.Context(), types.NamespacedName{Name: "node-1"}, &node); err != nil {
		t.Fatal(err)
	}
	node.Spec.Unschedulable = true
	if err := c.Update(t.Context(), &node); err != nil {
		t.Fatal(err)
	}
	says := func(node, message string) {
		t.Helper()
		testkit.Eventually(t, 10*time.Second, "explained", func() error {
			if err := c.Get(t.Context(), client.ObjectKeyFromObject(announced), &record); err != nil {
				return err
			}
			cond := meta.FindStatusCondition(record.Status.Conditions, v1alpha1.AddressAnnounced)
			if record.Status.Node != node || (cond.Status == metav1.ConditionTrue) != (node != "") || cond.Message != message {
				return fmt.Errorf("node %q, condition %+v", record.Status.Node, cond)
			}
			return nil
		})
	}
	says("node-1", "node-1 answers for it on lan0: it is cordoned (spec.unschedulable), but no other node can do better")
	node.Labels = map[string]string{corev1.LabelNodeExcludeBalancers: ""}
	if err := c.Update(t.Context(), &node); err != nil {
		t.Fatal(err)
	}
	says("", "No node may announce it. node-1: it has the label node.kubernetes.io/exclude-from-external-load-balancers "+
		"(ignored with the pool's ignoreExcludeLabel)")
	pool := &v1alpha1.LoadBalancerPool{ObjectMeta: metav1.ObjectMeta{Name: "lan"}}
	pool.Spec.Addresses, pool.Spec.IgnoreExcludeLabel = []v1alpha1.AddressRange{"192.0.2.200/30"}, true
	if err := c.Create(t.Context(), pool); err != nil {
		t.Fatal(err)
	}
	says("node-1", "node-1 answers for it on lan0: it is cordoned (spec.unschedulable), but no other node can do better")
	if err := c.Delete(t.Context(), pool); err != nil {
		t.Fatal(err)
	}
	says("", "No node may announce it. node-1: it has the label node.kubernetes.io/exclude-from-external-load-balancers "+
		"(ignored with the pool's ignoreExcludeLabel)")
	node.Labels[corev1.LabelNodeExcludeBalancers] = "false"
	if err := c.Update(t.Context(), &node); err != nil {
		t.Fatal(err)
	}
	says("node-1", "node-1 answers for it on lan0: it is cordoned (spec.unschedulable), but no other node can do better")
}

// announceFrom says on an interface that a stranger has an address.
func announceFrom(t *testing.T, name string, address netip.Addr, stranger wire.MAC) {
	t.Helper()
	ifi, err := net.InterfaceByName(name)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := packet.Listen(ifi, packet.Raw, arp.EtherType, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for _, frame := range (arp.Protocol{}).Announce(address, stranger, wire.Seal{}) {
		if _, err := conn.WriteTo(frame, &packet.Addr{HardwareAddr: frame[:6]}); err != nil {
			t.Fatal(err)
		}
	}
}

// createAnnounced makes what the controller makes: key, node, Service, record.
func createAnnounced(t *testing.T, c client.Client) *v1alpha1.LoadBalancerAddress {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	ctx := t.Context()
	must(c.Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: v1alpha1.SystemNamespace}}))
	must(c.Create(ctx, &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: v1alpha1.SystemNamespace, Name: v1alpha1.GossipSecret},
		Data:       map[string][]byte{v1alpha1.GossipKey: bytes.Repeat([]byte{7}, members.KeyLength)},
	}))
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node-1"}}
	must(c.Create(ctx, node))
	node.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "192.0.2.11"}}
	must(c.Status().Update(ctx, node))
	svc := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web"},
		Spec:       corev1.ServiceSpec{Type: corev1.ServiceTypeLoadBalancer, Ports: []corev1.ServicePort{{Port: 80}}},
	}
	must(c.Create(ctx, svc))
	svc.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "192.0.2.200"}}
	must(c.Status().Update(ctx, svc))
	record := lbRecord("192.0.2.200", "lan", "web")
	record.Spec.Services[0].UID = string(svc.UID)
	must(c.Create(ctx, record))
	return record
}
