// SPDX-License-Identifier: Apache-2.0

package ipvs

import (
	"errors"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/types"

	"github.com/causeway-lb/causeway/internal/netlink/ipvs"
	"github.com/causeway-lb/causeway/internal/proxy/model"
	"github.com/causeway-lb/causeway/internal/testkit"
	"github.com/causeway-lb/causeway/internal/testkit/backendtest"
	"github.com/causeway-lb/causeway/internal/testkit/nstest"
)

const service, atNodePort = clusterIP + ":80", nodeIP + ":30080"

// What users of kube-proxy's ipvs mode reported, each by what they saw.
func TestKnownFaults(t *testing.T) {
	newTestBackend(t, Config{}) // ends the test here where the kernel has no IPVS
	n := newNetwork(t)
	for _, fault := range []struct {
		name string
		test func(*testing.T, *network)
	}{
		{"kubernetes#81775 a reused client port leads to a removed endpoint", reusedPort},
		{"kubernetes#99162 a terminating endpoint gets new connections while old ones time out", terminatingGetsNone},
		{"kubernetes#71358 packets for a removed endpoint vanish, UDP", udpMovesOn},
		{"kubernetes#71358 packets for a removed endpoint vanish, TCP", tcpIsReset},
		{"kubernetes#66062 NodePorts do not respect the external policy Local", nodePortLocal},
		{"kubernetes#98465 NodePorts are closed where the INPUT chain drops", inputDrops},
		{"kubernetes#71809 affinity leads to a removed endpoint", affinityMovesOn},
		{"kubernetes#108319 weight 0 is left over by a restart", restartRaisesWeight},
		{"kubernetes#112185 NodePorts are closed at an address that came later", laterAddress},
		{"kubernetes#72236 the node's own ports are open at a ClusterIP", ownPorts},
	} {
		t.Run(fault.name, func(t *testing.T) { fault.test(t, n) })
	}
}

// Connections that a client makes from ports that it used before, which IPVS
// still knows: they reach the endpoint that is left, and with their first
// packet (a second's delay was the cure that was worse, kubernetes#70747).
func reusedPort(t *testing.T, n *network) {
	b := newTestBackend(t, Config{DrainInterval: 50 * time.Millisecond})
	apply(t, b, web(model.TCP, target(addrA, addrB), target(addrA, addrB)))
	const first, ports = 41000, 20
	before := map[string]int{}
	for port := first; port < first+ports; port++ {
		s := n.mustDial(t, service, port)
		before[s.who]++
		s.bye(t)
	}
	if before["A"] == 0 {
		t.Fatalf("before the removal: %v, want some at A", before)
	}
	apply(t, b, web(model.TCP, target(addrB), target(addrB)))
	if diff := cmp.Diff(map[string]uint32{addrA: 0, addrB: 1}, reals(t, b, model.TCP)); diff != "" {
		t.Fatalf("while A's connections are remembered (-want +got):\n%s", diff)
	}
	for port := first; port < first+ports; port++ {
		s := n.mustDial(t, service, port)
		if s.who != "B" || s.retransmitted(t) > 0 {
			t.Errorf("port %d: answered by %s, %d segments sent again", port, s.who, s.retransmitted(t))
		}
		s.bye(t)
	}
}

// A client with few ports connects again and again while an endpoint drains:
// none of it gets there or fails, and the connection that was open goes on.
func terminatingGetsNone(t *testing.T, n *network) {
	b := newTestBackend(t, Config{DrainInterval: 20 * time.Millisecond})
	apply(t, b, web(model.TCP, target(addrA, addrB), target(addrA, addrB)))
	var long *session
	for long == nil || long.who != "A" {
		long = n.mustDial(t, service, 0)
	}
	const first, ports = 42000, 16
	round := func(check func(*session)) {
		for port := first; port < first+ports; port++ {
			s := n.mustDial(t, service, port)
			check(s)
			s.bye(t)
		}
	}
	round(func(*session) {})
	apply(t, b, web(model.TCP, target(addrB), target(addrB)))
	for range 4 {
		round(func(s *session) {
			if s.who != "B" {
				t.Errorf("a new connection got to the removed endpoint")
			}
		})
		if err := long.echo(); err != nil {
			t.Fatalf("the open connection: %v", err)
		}
	}
}

// A client that keeps sending from one port is answered by another endpoint.
func udpMovesOn(t *testing.T, n *network) {
	b := newTestBackend(t, Config{})
	apply(t, b, web(model.UDP, target(addrA, addrB), target(addrA, addrB)))
	var c net.Conn
	n.client.Must(t, func() (err error) { c, err = net.Dial("udp4", service); return err })
	defer c.Close()
	ask := func() string {
		buf := make([]byte, 16)
		for range 50 {
			_, _ = c.Write([]byte("?"))
			_ = c.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
			if k, err := c.Read(buf); err == nil {
				return string(buf[:k])
			}
		}
		return "nobody"
	}
	left, want := target(addrB), "B"
	if ask() == "B" {
		left, want = target(addrA), "A"
	}
	apply(t, b, web(model.UDP, left, left))
	if got := ask(); got != want {
		t.Errorf("answered by %s after the removal, want %s", got, want)
	}
}

// An endpoint keeps its connections for so long; then their clients are told.
func tcpIsReset(t *testing.T, n *network) {
	b := newTestBackend(t, Config{DrainInterval: 20 * time.Millisecond, DrainTimeout: time.Second})
	apply(t, b, web(model.TCP, target(addrA), target(addrA)))
	s := n.mustDial(t, service, 0)
	apply(t, b, web(model.TCP, target(addrB), target(addrB)))
	if err := s.echo(); err != nil {
		t.Fatalf("right after the removal: %v", err)
	}
	testkit.EventuallyTrue(t, 30*time.Second, "A goes when its time is over", func() bool { _, is := reals(t, b, model.TCP)[addrA]; return !is })
	if err := s.echo(); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("when the time was over: %v, want a reset", err)
	}
}

// Only endpoints of this node get what comes from outside, with its source.
func nodePortLocal(t *testing.T, n *network) {
	b := newTestBackend(t, Config{})
	apply(t, b, web(model.TCP, target(addrA, addrB, elsewhere), target(addrA)))
	for range 8 {
		if s := n.mustDial(t, atNodePort, 0); s.who != "A" || s.source != clientIP {
			t.Errorf("answered by %s, who saw %s", s.who, s.source)
		}
	}
}

// A firewall that lets nothing in but what it knows: Services answer, the
// node's own ports do not.
func inputDrops(t *testing.T, n *network) {
	own := listen(t, n.node, ":9999")
	defer own.Close()
	for _, variant := range []string{"nft", "legacy"} {
		t.Run(variant, func(t *testing.T) {
			iptables := "iptables-" + variant
			nstest.Require(t, iptables, iptables+"-save", iptables+"-restore")
			b := newTestBackend(t, Config{})
			nstest.Run(t, iptables, "-P", "INPUT", "DROP")
			defer nstest.Run(t, iptables, "-P", "INPUT", "ACCEPT")
			for range 2 { // the second one has nothing to do
				apply(t, b, web(model.TCP, target(addrA), target(addrA)))
				backendtest.Forget(b)
			}
			for _, to := range []string{service, atNodePort} {
				if s := n.mustDial(t, to, 0); s.who != "A" {
					t.Errorf("%s: answered by %s", to, s.who)
				}
			}
			if _, err := n.dial(nodeIP+":9999", 0, 300*time.Millisecond); err == nil {
				t.Error("a port of the node is open: this test proves nothing")
			}
			list := nstest.Run(t, iptables+"-save", "-t", "filter")
			if rules := countLines(list, "-A INPUT"); rules != 1 {
				t.Errorf("%d rules in INPUT, want one:\n%s", rules, list)
			}
			if err := backendtest.Cleanup(t.Context(), b); err != nil {
				t.Fatal(err)
			}
			if list := nstest.Run(t, iptables+"-save", "-t", "filter"); countLines(list, "-A INPUT") != 0 {
				t.Errorf("Cleanup left:\n%s", list)
			}
		})
	}
}

// A client with affinity goes to another endpoint when its own is removed.
func affinityMovesOn(t *testing.T, n *network) {
	b := newTestBackend(t, Config{})
	sticky := func(endpoints ...string) *model.Target {
		tgt := target(endpoints...)
		tgt.Affinity = time.Hour
		return tgt
	}
	for _, to := range []string{service, atNodePort} {
		apply(t, b, web(model.TCP, sticky(addrA, addrB), sticky(addrA, addrB)))
		first := n.mustDial(t, to, 0)
		for range 6 {
			if s := n.mustDial(t, to, 0); s.who != first.who {
				t.Fatalf("%s: answered by %s, then %s", to, first.who, s.who)
			}
		}
		left, want := sticky(addrB), "B"
		if first.who == "B" {
			left, want = sticky(addrA), "A"
		}
		apply(t, b, web(model.TCP, left, left))
		if s := n.mustDial(t, to, 0); s.who != want {
			t.Errorf("%s: answered by %s after the removal", to, s.who)
		}
		if err := first.echo(); err != nil {
			t.Errorf("%s: the open connection: %v", to, err)
		}
	}
}

// An endpoint that comes back while no agent runs serves again.
func restartRaisesWeight(t *testing.T, n *network) {
	b := newTestBackend(t, Config{})
	apply(t, b, web(model.TCP, target(addrA, addrB), target(addrA, addrB)))
	n.mustDial(t, service, 0)
	n.mustDial(t, service, 0)
	apply(t, b, web(model.TCP, target(addrB), target(addrB)))
	if diff := cmp.Diff(map[string]uint32{addrA: 0, addrB: 1}, reals(t, b, model.TCP)); diff != "" {
		t.Fatalf("while A drains (-want +got):\n%s", diff)
	}
	next := newTestBackend(t, Config{})
	apply(t, next, web(model.TCP, target(addrA, addrB), target(addrA, addrB)))
	if diff := cmp.Diff(map[string]uint32{addrA: 1, addrB: 1}, reals(t, next, model.TCP)); diff != "" {
		t.Errorf("after the restart (-want +got):\n%s", diff)
	}
}

// NodePorts answer at an address that the node gets later, without a Sync.
func laterAddress(t *testing.T, n *network) {
	b := newTestBackend(t, Config{})
	apply(t, b, web(model.TCP, target(addrA), target(addrA)))
	n.node.Address(t, "ipvs-lan", netip.MustParsePrefix("198.51.100.77/24"))
	if s := n.mustDial(t, "198.51.100.77:30080", 0); s.who != "A" {
		t.Errorf("answered by %s", s.who)
	}
}

// What listens on all addresses of the node is not open at a ClusterIP.
func ownPorts(t *testing.T, n *network) {
	own := listen(t, n.node, ":9999")
	defer own.Close()
	b := newTestBackend(t, Config{})
	apply(t, b, web(model.TCP, target(addrA), target(addrA)))
	if s, err := n.dial(clusterIP+":9999", 0, patience); err == nil {
		t.Errorf("answered by %s", s.who)
	}
	if s := n.mustDial(t, nodeIP+":9999", 0); s.who != "node" {
		t.Errorf("the node's own port is answered by %s: this test proves nothing", s.who)
	}
}

// Open connections through a NodePort go on when its views become the same, or
// cease to be, and when its Service goes. What sends by UDP moves on.
func TestOpenConnectionsOfOtherViews(t *testing.T) {
	newTestBackend(t, Config{}) // ends the test here where the kernel has no IPVS
	n := newNetwork(t)
	both, local := target(addrA, addrB), target(addrA)
	for _, tc := range []struct {
		name          string
		before, after *model.Service
	}{
		{"external policy from Local to Cluster", web(model.TCP, both, local), web(model.TCP, both, both)},
		{"external policy from Cluster to Local", web(model.TCP, both, both), web(model.TCP, both, local)},
		{"the Service goes", web(model.TCP, both, local), nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := newTestBackend(t, Config{DrainInterval: 20 * time.Millisecond})
			apply(t, b, tc.before)
			var long []*session
			for len(long) < 4 {
				if s := n.mustDial(t, atNodePort, 0); s.who == "A" {
					long = append(long, s)
				}
			}
			if tc.after != nil {
				apply(t, b, tc.after)
			} else {
				remove(t, b)
			}
			for range 3 {
				for _, s := range long {
					if err := s.echo(); err != nil {
						t.Fatalf("an open connection: %v", err)
					}
				}
				time.Sleep(40 * time.Millisecond) // the sweep would cut them
			}
			if tc.after == nil {
				if s, err := n.dial(atNodePort, 0, patience); err == nil {
					t.Errorf("a new connection is answered by %s", s.who)
				}
			} else {
				n.mustDial(t, atNodePort, 0)
			}
			for _, s := range long {
				s.bye(t)
			}
		})
	}
}

// The schedulers that kube-proxy has.
var schedulers = []string{"rr", "wrr", "lc", "wlc", "lblc", "lblcr", "sh", "dh", "mh", "sed", "nq"}

// Each of them can be the cluster's.
func TestSchedulersOfTheCluster(t *testing.T) {
	for _, scheduler := range schedulers {
		b := newTestBackend(t, Config{Scheduler: scheduler})
		apply(t, b, web(model.TCP, target(addrA), target(addrA)))
		checkScheduler(t, b, scheduler)
	}
}

func checkScheduler(t *testing.T, b *Backend, want string) {
	t.Helper()
	all, err := b.servers.Read()
	if err != nil || len(all) != 2 {
		t.Fatalf("%d virtual servers, %v", len(all), err)
	}
	for _, s := range all {
		if s.Scheduler != want {
			t.Errorf("%s has scheduler %s, want %s", s.Key, s.Scheduler, want)
		}
	}
}

// Each of them can be a Service's, which changes it as it runs. They distribute
// as their names say, and none refuses a client while a removed endpoint drains.
func TestSchedulersOfAService(t *testing.T) {
	b := newTestBackend(t, Config{})
	n := newNetwork(t)
	for _, scheduler := range schedulers {
		t.Run(scheduler, func(t *testing.T) {
			svc := web(model.TCP, target(addrA+"=3", addrB), target(addrA+"=3", addrB))
			svc.Scheduler = scheduler
			apply(t, b, svc)
			checkScheduler(t, b, scheduler)
			seen := map[string]int{}
			for range 8 {
				seen[n.mustDial(t, service, 0).who]++
			}
			switch scheduler {
			case "rr": // in turn, whatever the weights
				if seen["A"] != 4 {
					t.Errorf("8 connections: %v, want them even", seen)
				}
			case "wrr", "wlc", "sed": // three to one
				if seen["A"] < 5 || seen["B"] < 1 {
					t.Errorf("8 connections: %v, want most at A and some at B", seen)
				}
			case "sh", "dh", "mh": // by address
				if len(seen) != 1 {
					t.Errorf("8 connections: %v, want all at one", seen)
				}
			}
			for who, left := range map[string]*model.Target{"B": target(addrB), "A": target(addrA)} {
				svc = web(model.TCP, left, left)
				svc.Scheduler = scheduler
				apply(t, b, svc)
				for range 2 {
					if s := n.mustDial(t, service, 0); s.who != who {
						t.Errorf("only %s is left, answered by %s", who, s.who)
					}
				}
			}
		})
	}
}

// Somebody clears what IPVS has: the next full Sync puts it back, and says so.
func TestClearedServersComeBack(t *testing.T) {
	b := newTestBackend(t, Config{})
	svc := web(model.TCP, target(addrA, addrB), target(addrA, addrB))
	apply(t, b, svc)
	before, err := b.servers.Read()
	if err != nil || len(before) == 0 {
		t.Fatalf("%d virtual servers, %v", len(before), err)
	}
	for _, s := range before {
		if errs := b.servers.Do([]ipvs.Change{{Op: ipvs.DeleteServer, Server: s.Key}}); errs[0] != nil {
			t.Fatal(errs[0])
		}
	}
	d := model.Desired{Node: b.node, Services: map[types.NamespacedName]*model.Service{svc.Name: svc}}
	r, err := backendtest.Sync(t.Context(), b, d, nil)
	if err != nil {
		t.Fatal(err)
	}
	after, err := b.servers.Read()
	if err != nil || len(after) != len(before) || r.Drift == 0 {
		t.Errorf("%d virtual servers, %v, drift %d; want %d and some drift", len(after), err, r.Drift, len(before))
	}
}

// listen has a server of the node say its name, as if it were a Pod.
func listen(t *testing.T, ns *nstest.NS, address string) net.Listener {
	t.Helper()
	var l net.Listener
	ns.Must(t, func() (err error) { l, err = net.Listen("tcp4", address); return err })
	nstest.Serve(t, l, nstest.Say("node x\n"))
	return l
}

func countLines(text, prefix string) int {
	n := 0
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, prefix) {
			n++
		}
	}
	return n
}
