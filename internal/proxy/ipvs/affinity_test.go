// SPDX-License-Identifier: Apache-2.0

package ipvs

import (
	"context"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/types"

	"github.com/causeway-lb/causeway/internal/proxy/model"
	"github.com/causeway-lb/causeway/internal/proxy/nstest"
)

const loadBalancerIP = "198.51.100.200"

// A client stays with its endpoint for the Service's time-out and no longer,
// whatever it dials and from wherever: virtual servers by address, and those
// that stand in for a mark.
func TestAffinityEnds(t *testing.T) {
	const timeout = 3 * time.Second
	b := newTestBackend(t, Config{Scheduler: "rr"})
	n := newNetwork(t)
	rememberUDP(t, time.Second)
	n.client.Route(t, netip.MustParsePrefix(loadBalancerIP+"/32"), netip.MustParseAddr(nodeIP), "eth0")
	both, here := target(addrA, addrB), target(addrA, addrB, elsewhere)
	both.Affinity, here.Affinity = timeout, timeout
	for _, tc := range []struct {
		name            string
		from            *nstest.NS
		to              string
		inside, outside *model.Target
	}{
		{"ClusterIP", n.client, service, both, both},
		{"NodePort", n.client, atNodePort, both, both},
		{"NodePort, policy Local", n.client, atNodePort, here, both},
		{"NodePort from the node", n.node, atNodePort, both, both},
		{"load balancer IP, policy Local, from the node", n.node, loadBalancerIP + ":80", both, target(addrA)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			apply(t, b, withLoadBalancer(web(model.UDP, tc.inside, tc.outside), tc.inside, tc.outside))
			first := ask(t, tc.from, tc.to)
			for last := time.Now(); time.Since(last) < timeout+time.Second; time.Sleep(500 * time.Millisecond) {
				if got := ask(t, tc.from, tc.to); got != first {
					t.Fatalf("answered by %s, then %s", first, got)
				}
			}
			time.Sleep(timeout + 2*time.Second)
			if got := ask(t, tc.from, tc.to); got == first {
				t.Errorf("answered by %s again when the time was over", got)
			}
		})
	}
}

func withLoadBalancer(svc *model.Service, inside, outside *model.Target) *model.Service {
	svc.Frontends = append(svc.Frontends, model.Frontend{
		Key:  model.Key{Addr: netip.MustParseAddr(loadBalancerIP), Port: 80, Protocol: svc.Frontends[0].Protocol},
		Kind: model.LoadBalancerIP, Inside: inside, Outside: outside,
	})
	return svc
}

// ask sends a datagram from a new port and says who answers.
func ask(t *testing.T, from *nstest.NS, to string) string {
	t.Helper()
	var c net.Conn
	from.Must(t, func() (err error) { c, err = net.Dial("udp4", to); return err })
	defer c.Close()
	buf := make([]byte, 16)
	_ = c.SetDeadline(time.Now().Add(patience))
	if _, err := c.Write([]byte("?")); err != nil {
		t.Fatal(err)
	}
	k, err := c.Read(buf)
	if err != nil {
		t.Fatalf("%s does not answer: %v", to, err)
	}
	return string(buf[:k])
}

// rememberUDP sets how long IPVS remembers a flow: affinity lasts at least as
// long.
func rememberUDP(t *testing.T, d time.Duration) {
	t.Helper()
	family, err := netlink.GenlFamilyGet("IPVS")
	if err != nil {
		t.Fatal(err)
	}
	const setConfig, timeoutUDP = 12, 6 // IPVS_CMD_SET_CONFIG, IPVS_CMD_ATTR_TIMEOUT_UDP
	set := func(d time.Duration) {
		req := nl.NewNetlinkRequest(int(family.ID), unix.NLM_F_ACK)
		req.AddData(&nl.Genlmsg{Command: setConfig, Version: 1})
		req.AddData(nl.NewRtAttr(timeoutUDP, nl.Uint32Attr(uint32(d.Seconds()))))
		if _, err := req.Execute(unix.NETLINK_GENERIC, 0); err != nil {
			t.Fatal(err)
		}
	}
	set(d)
	t.Cleanup(func() { set(5 * time.Minute) })
}

// What a node and its neighbours do to a Service while clients are connected:
// policy Local begins to differ from Cluster and ceases to, affinity comes and
// goes, and at last the Service. No connection that is open ends.
func TestConnectionsOutliveTheirVirtualServer(t *testing.T) {
	b := newTestBackend(t, Config{DrainInterval: 50 * time.Millisecond})
	n := newNetwork(t)
	sticky := func(endpoints ...string) *model.Target {
		tgt := target(endpoints...)
		tgt.Affinity = time.Hour
		return tgt
	}
	one, all := target(addrA), target(addrA, elsewhere)
	var open []*session
	for _, step := range []struct {
		name            string
		inside, outside *model.Target
	}{
		{"policy Local, all endpoints here", one, one},
		{"another endpoint elsewhere", all, one},
		{"it goes", one, one},
		{"with affinity", sticky(addrA), sticky(addrA)},
		{"with affinity, another endpoint elsewhere", sticky(addrA, elsewhere), sticky(addrA)},
		{"with affinity, it goes", sticky(addrA), sticky(addrA)},
		{"without affinity", one, one},
	} {
		t.Log(step.name)
		apply(t, b, web(model.TCP, step.inside, step.outside))
		for i, s := range open {
			if err := s.echo(); err != nil {
				t.Errorf("%s: connection %d: %v", step.name, i, err)
			}
		}
		open = append(open, n.mustDial(t, atNodePort, 0))
	}
	gone := model.Desired{Node: b.node}
	if _, err := b.Sync(t.Context(), gone, []types.NamespacedName{webName}); err != nil {
		t.Fatal(err)
	}
	for i, s := range open {
		if err := s.echo(); err != nil {
			t.Errorf("the Service has gone: connection %d: %v", i, err)
		}
		_ = s.Close()
	}
	if _, err := n.dial(atNodePort, 0, time.Second); err == nil {
		t.Error("a new connection succeeds")
	}
	// What only stood for connections goes when its time is over.
	b.mu.Lock()
	b.now = func() time.Time { return time.Now().Add(time.Hour) }
	b.mu.Unlock()
	eventually(t, "no virtual server is left", func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		servers, err := b.servers.Read()
		return err == nil && len(servers) == 0
	})
	if err := b.Cleanup(context.Background()); err != nil {
		t.Error(err)
	}
}
