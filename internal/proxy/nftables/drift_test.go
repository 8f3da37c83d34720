// SPDX-License-Identifier: Apache-2.0

package nftables

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"
	"unicode"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"github.com/causeway-lb/causeway/internal/netlink/nft"
	"github.com/causeway-lb/causeway/internal/proxy/backend"
	"github.com/causeway-lb/causeway/internal/proxy/model"
	"github.com/causeway-lb/causeway/internal/proxy/syncer"
	"github.com/causeway-lb/causeway/internal/testkit"
	"github.com/causeway-lb/causeway/internal/testkit/backendtest"
	"github.com/causeway-lb/causeway/internal/testkit/modeltest"
	"github.com/causeway-lb/causeway/internal/testkit/nstest"
)

// watched is a Backend that a Syncer keeps right, as an agent does.
type watched struct {
	conn *nft.Conn
	// told counts the repairs that an agent makes an event of.
	told     atomic.Int32
	registry *prometheus.Registry
}

func watch(t *testing.T, b *Backend, source syncer.Source, node model.Node) *watched {
	t.Helper()
	w := &watched{registry: prometheus.NewRegistry()}
	metrics := syncer.NewMetrics(b.Name())
	w.registry.MustRegister(metrics.Collectors()...)
	var err error
	if w.conn, err = nft.Dial(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.conn.Close() })
	s, err := syncer.New(syncer.Config{
		Backend: b, Source: source, Node: node, Metrics: metrics,
		Drifted: func(backend.Report) { w.told.Add(1) },
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	testkit.EventuallyTrue(t, 10*time.Second, "in sync", func() bool { return s.Status().InSync })
	return w
}

// drift is the metric.
func (w *watched) drift(t *testing.T) float64 {
	t.Helper()
	families, err := w.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == "causeway_proxy_drift_total" {
			return f.GetMetric()[0].GetCounter().GetValue()
		}
	}
	t.Fatal("no metric of drift")
	return 0
}

// contents is all that the kernel has of the tables: every chain with its
// rules in order, every set, and every element that is not the kernel's own.
func (w *watched) contents(t *testing.T) map[string][]string {
	t.Helper()
	all := map[string][]string{}
	for _, f := range model.Families {
		table := tableOf(f)
		if exists, dormant, err := w.conn.Dormant(table); err != nil || !exists || dormant {
			all[table.String()] = []string{fmt.Sprint(exists, dormant, err)}
		}
		chains, err := w.conn.Chains(table)
		if err != nil {
			t.Fatal(err)
		}
		for name, ch := range chains {
			rules := []string{fmt.Sprintf("hook %+v, drops %v", ch.Hook, ch.PolicyDrop)}
			for _, r := range ch.Rules {
				rules = append(rules, r.Exprs+r.UserData)
			}
			all[table.String()+" chain "+name] = rules
		}
		kernel, err := w.conn.Sets(table)
		if err != nil {
			t.Fatal(err)
		}
		for name, s := range kernel {
			s.Name = ""
			elements := []string{fmt.Sprintf("%+v", s)}
			if name != setAffinity.String() {
				for _, e := range w.elements(t, table, name) {
					elements = append(elements, fmt.Sprint(e))
				}
			}
			slices.Sort(elements[1:])
			all[table.String()+" set "+name] = elements
		}
	}
	return all
}

func (w *watched) elements(t *testing.T, table nft.Table, set string) (es []nft.Element) {
	t.Helper()
	if err := w.conn.Elements(table, set, func(e nft.Element) { es = append(es, e) }); err != nil {
		t.Fatal(err)
	}
	return es
}

// harm is one thing that somebody does by hand.
type harm struct {
	name string
	do   func(t *testing.T)
}

func nftHarm(commands string) harm {
	return harm{commands, func(t *testing.T) { nstest.Run(t, "nft", commands) }}
}

// elementHarms deletes one element of every set and map that is the
// backend's to fill. There must be one.
func (w *watched) elementHarms(t *testing.T, node *model.Node) (harms []harm) {
	for _, f := range model.Families {
		table := tableOf(f)
		for id := setID(0); id < numSets; id++ {
			switch {
			case id.dynamic(): // its elements come and go by themselves
			case id == setLocalPods:
				for _, p := range inFamily(node.PodCIDRs, f) {
					harms = append(harms, nftHarm(fmt.Sprintf("delete element %s %s { %s }", table, id, p)))
				}
			case id == setNodePortAddresses:
				for _, p := range inFamily(node.NodePortAddresses, f) {
					harms = append(harms, nftHarm(fmt.Sprintf("delete element %s %s { %s }", table, id, p)))
				}
			default:
				es := w.elements(t, table, id.String())
				if len(es) == 0 {
					t.Errorf("%s %s has no element: the Services of this test must make one", table, id)
					continue
				}
				harms = append(harms, harm{fmt.Sprintf("delete an element of %s %s", table, id), func(t *testing.T) {
					var tx nft.Batch
					tx.DeleteElement(table, id.String(), es[len(es)/2])
					if err := w.conn.Commit(&tx); err != nil {
						t.Fatal(err)
					}
				}})
			}
		}
	}
	return harms
}

// ruleHarms deletes each rule of each chain that is always there, and one of
// each kind of chain that serves a class.
func ruleHarms(t *testing.T) (harms []harm) {
	for _, f := range model.Families {
		table, kinds := tableOf(f), map[string]bool{}
		now := handles(t, table)
		for _, c := range slices.Sorted(maps.Keys(now)) {
			rules := len(now[c])
			if strings.Contains(c, "endpoints-") {
				kind := strings.Map(func(r rune) rune {
					if unicode.IsDigit(r) {
						return -1
					}
					return r
				}, c)
				if kinds[kind] {
					continue
				}
				kinds[kind], rules = true, 1
			}
			for place := range rules {
				harms = append(harms, harm{fmt.Sprintf("delete rule %d of %s %s", place, table, c), func(t *testing.T) {
					// Each repair may give the rules new handles.
					nstest.Run(t, "nft", fmt.Sprintf("delete rule %s %s handle %s", table, c, handles(t, table)[c][place]))
				}})
			}
		}
	}
	return harms
}

// handles are those of the rules of every chain, in order.
func handles(t *testing.T, table nft.Table) map[string][]string {
	t.Helper()
	all, chain := map[string][]string{}, ""
	for line := range strings.Lines(nstest.Run(t, "nft", "-a", "list", "table", table.Family.String(), table.Name)) {
		fields := strings.Fields(line)
		_, handle, ok := strings.Cut(line, " # handle ")
		switch {
		case len(fields) == 0:
		case fields[0] == "chain":
			chain = fields[1]
		case fields[0] == "}":
			chain = ""
		case ok && chain != "":
			all[chain] = append(all[chain], strings.TrimSpace(handle))
		}
	}
	return all
}

// chainHarms deletes chains, and sets with what leads to them.
func chainHarms() (harms []harm) {
	for _, f := range model.Families {
		table := tableOf(f)
		for _, commands := range []string{
			"delete chain T nat-prerouting",
			"delete chain T nat-output",
			"delete chain T nat-postrouting",
			"delete chain T filter-forward",
			"flush chain T nat-postrouting; delete chain T masquerading",
			"flush chain T nat-prerouting; delete chain T outside",
			"flush chain T nat-prerouting; flush chain T nat-output; flush chain T outside; delete chain T inside",
			"flush map T classes; delete chain T endpoints-3",
			"flush chain T nat-prerouting; flush chain T nat-output; delete set T restricted",
			"flush chain T masquerading-where-needed; delete set T hairpin",
			"flush chain T masquerading; delete set T keeps-client",
			"flush chain T masquerading; flush chain T masquerading-where-needed; flush chain T inside; flush chain T outside; delete map T services",
			"delete table T",
			"add table T { flags dormant; }",
			"add chain T filter-forward { policy drop; }",
			"add chain T nat-output { policy drop; }",
			"delete element T classes { 0x7fff : drop }; add element T classes { 0x7fff : accept }",
			"delete element T classes { 3 : goto endpoints-3 }; add element T classes { 3 : jump endpoints-3 }",
			"add element T affinity { A . 1 : 1 }; add set T theirs { type inet_service; }",
		} {
			commands = strings.ReplaceAll(commands, " A ", " "+f.Unspecified().String()+" ")
			harms = append(harms, nftHarm(strings.ReplaceAll(commands, " T", " "+table.String())))
		}
	}
	return append(harms,
		nftHarm("delete chain ip causeway filter-prerouting"),
		nftHarm("delete table ip causeway; delete table ip6 causeway"))
}

// withLoadBalancers adds what a World may lack: in both families, without and
// with affinity, load balancer IPs and NodePorts that lead elsewhere from
// outside than from inside.
type withLoadBalancers struct{ *modeltest.World }

var loadBalancers = []types.NamespacedName{name(90000), name(90001), name(90002), name(90003)}

func (w withLoadBalancers) Names() []types.NamespacedName {
	return append(w.World.Names(), loadBalancers...)
}

func (w withLoadBalancers) Input(n types.NamespacedName) (model.Input, bool) {
	i := slices.Index(loadBalancers, n)
	if i < 0 {
		return w.World.Input(n)
	}
	v6, sticky := i >= 2, i%2 == 1
	affinity, family, prefix, pods := corev1.ServiceAffinityNone, discoveryv1.AddressTypeIPv4, "192.0.2.", "10.244.%d.200"
	if sticky {
		affinity = corev1.ServiceAffinityClientIP
	}
	if v6 {
		family, prefix, pods = discoveryv1.AddressTypeIPv6, "2001:db8::", "fd00:10:244:%d::aa"
	}
	svc := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: n.Namespace, Name: n.Name},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeLoadBalancer, ClusterIP: fmt.Sprint(prefix, 150+i),
			Ports:                    []corev1.ServicePort{{Name: "p", Port: 80, NodePort: int32(31000 + i)}},
			ExternalTrafficPolicy:    corev1.ServiceExternalTrafficPolicyLocal,
			SessionAffinity:          affinity,
			LoadBalancerSourceRanges: []string{"198.51.100.0/24", "2001:db8:5::/48"},
		},
	}
	svc.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: fmt.Sprint(prefix, 160+i)}}
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Namespace: n.Namespace, Name: n.Name}, AddressType: family,
		Ports: []discoveryv1.EndpointPort{{Name: ptr.To("p"), Port: ptr.To[int32](8080)}},
		Endpoints: []discoveryv1.Endpoint{
			{Addresses: []string{fmt.Sprintf(pods, 1)}, NodeName: ptr.To("node-1")},
			{Addresses: []string{fmt.Sprintf(pods, 2)}, NodeName: ptr.To("node-2")},
		},
	}
	return model.Input{Service: svc, Slices: []*discoveryv1.EndpointSlice{slice}}, true
}

// Whatever single object somebody deletes, it is back, counted and told of
// once; and nobody else's table is touched.
func TestEveryDeletedObjectIsRepaired(t *testing.T) {
	b := newBackend(t)
	t.Cleanup(func() { // the Syncer has ended by then
		if err := backendtest.Cleanup(context.Background(), b); err != nil {
			t.Error(err)
		}
	})
	world := worldOf(11, 60)
	node := world.Node
	node.LocalhostNodePorts, node.MasqueradeAll = true, true
	node.NodePortAddresses = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8::/64")}
	if err := backendtest.Cleanup(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	nstest.Run(t, "nft", `
		add table inet foreign
		add set inet foreign numbers { type inet_service; elements = { 1, 2, 3 }; }
		add chain inet foreign causeway { type filter hook forward priority 10; }
		add rule inet foreign causeway tcp dport @numbers counter drop comment "not ours"
		add table ip causeway-too
		add map ip causeway-too services { type ipv4_addr : verdict; elements = { 192.0.2.1 : drop }; }`)
	foreign := func() string {
		return nstest.Run(t, "nft", "-a", "list", "table", "inet", "foreign") + nstest.Run(t, "nft", "-a", "list", "table", "ip", "causeway-too")
	}
	theirs := foreign()

	w := watch(t, b, withLoadBalancers{world}, node)
	whole := w.contents(t)
	harms := slices.Concat(w.elementHarms(t, &node), ruleHarms(t), chainHarms())
	suffer := func(h harm) {
		drift, told := w.drift(t), w.told.Load()
		h.do(t)
		testkit.EventuallyTrue(t, 10*time.Second, "told of: "+h.name, func() bool { return w.told.Load() > told })
		if now := w.contents(t); !maps.EqualFunc(whole, now, slices.Equal) {
			t.Fatalf("%s: not repaired (-want +got):\n%s", h.name, cmp.Diff(whole, now))
		}
		if now := w.drift(t); now <= drift {
			t.Errorf("%s: the metric stays at %v", h.name, now)
		}
		if n := w.told.Load() - told; n != 1 {
			t.Errorf("%s: told %d times", h.name, n)
		}
	}
	start := time.Now()
	for _, h := range harms {
		suffer(h)
	}
	t.Logf("%d deletions in %v", len(harms), time.Since(start))
	if got := foreign(); got != theirs {
		t.Errorf("others' tables are not as before (-want +got):\n%s", cmp.Diff(theirs, got))
	}

	nstest.Run(t, "nft", "delete table inet foreign; delete table ip causeway-too")
	suffer(nftHarm("flush ruleset"))
}
