// SPDX-License-Identifier: Apache-2.0

package modes

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/causeway-lb/causeway/internal/proxy/backend"
	"github.com/causeway-lb/causeway/internal/proxy/ipvs"
	"github.com/causeway-lb/causeway/internal/proxy/model"
	"github.com/causeway-lb/causeway/internal/testkit"
	"github.com/causeway-lb/causeway/internal/testkit/nstest"
)

func TestMain(m *testing.M) { nstest.Main(m) }

// Every change of modes, under load: no new connection fails and none that is
// open ends; in the end only the new mode's objects are there. Connections that
// the userspace proxy carries end with it, by a reset.
func TestChangeModes(t *testing.T) {
	nstest.Require(t, "ip", "iptables-restore", "ip6tables-restore")
	net := newNetwork(t)
	cfg := Configs{IPVS: ipvs.Config{DrainInterval: 50 * time.Millisecond}}
	if nstest.InVM() {
		cfg.Userspace.Grace = 10 * time.Second // as slow as the emulated processor
	}
	kinds := Kinds(cfg)
	tried := here(t, kinds)
	for _, from := range tried {
		for _, to := range tried {
			// The machine is slow, and needs to try only what this kernel cannot.
			if from == to || nstest.InVM() && from != IPVS && to != IPVS {
				continue
			}
			t.Run(fmt.Sprintf("%s to %s", from, to), func(t *testing.T) { change(t, net, kinds, from, to) })
		}
	}
}

// here returns the modes that this kernel has. The test is run in the virtual machine
// as well for ipvs, if it is not among them.
func here(t *testing.T, kinds map[Mode]Kind) []Mode {
	t.Helper()
	out := []Mode{NFTables, IPTables, Userspace}
	probe, err := kinds[IPVS].Open()
	var lacks *backend.UnsupportedError
	switch {
	case errors.As(err, &lacks) && !nstest.InVM():
		nstest.AlsoInVM(t)
		return out
	case err != nil:
		t.Fatal(err)
	}
	if err := probe.Close(); err != nil {
		t.Fatal(err)
	}
	return append(out, IPVS)
}

func change(t *testing.T, net *network, kinds map[Mode]Kind, from, to Mode) {
	// While no agent runs, nobody takes what the userspace proxy would.
	net.resends = from == Userspace
	net.dials = dialled(from, to)
	old := inUse(t, kinds, from)
	load := net.start(t)
	if err := old.Close(); err != nil {
		t.Fatal(err)
	}
	load.pause(time.Second) // no agent runs
	next := inUse(t, kinds, to)
	load.more(t, newPerSecond)
	for range 3 {
		mustSync(t, next)
		load.more(t, newPerSecond/4)
	}
	load.verify(t, from == Userspace)
	testkit.Eventually(t, 30*time.Second, "the old mode's objects are removed", func() error {
		left := next.Remaining()
		if len(left) == 0 {
			return nil
		}
		mustSync(t, next)
		connections, _ := os.ReadFile("/proc/thread-self/net/ip_vs_conn")
		return fmt.Errorf("those of %v are there; IPVS has\n%s", left, connections)
	})
	if ask := kinds[from].Present; ask != nil {
		if present, err := ask(); present || err != nil {
			t.Errorf("objects of %s present: %v, error %v", from, present, err)
		}
	}
	net.start(t).verify(t, false)
	if err := next.Cleanup(t.Context()); err != nil {
		t.Error(err)
	}
	if err := next.Close(); err != nil {
		t.Error(err)
	}
}

// dialled are the frontends to dial in a change. The emulated processor is too slow
// for the proxy to carry all of them within its time-outs.
func dialled(from, to Mode) []dial {
	if nstest.InVM() && (from == Userspace || to == Userspace) {
		return only
	}
	return mixed
}

func inUse(t *testing.T, kinds map[Mode]Kind, mode Mode) *Chooser {
	t.Helper()
	return inUseFor(t, kinds, mode, desired())
}

func inUseFor(t *testing.T, kinds map[Mode]Kind, mode Mode, want model.Desired) *Chooser {
	t.Helper()
	c, err := New(Config{Mode: mode, Kinds: kinds})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Resync(t.Context(), want); err != nil {
		t.Fatal(err)
	}
	if c.Name() != string(mode) {
		t.Fatalf("mode %s in use, want %s", c.Name(), mode)
	}
	return c
}

func mustSync(t *testing.T, c *Chooser) {
	t.Helper()
	if _, err := c.Resync(t.Context(), desired()); err != nil {
		t.Fatal(err)
	}
}

// desired are the Services that all tests dial.
func desired() model.Desired {
	d := model.Desired{
		Node: model.Node{Name: "node-1", PodCIDRs: []netip.Prefix{
			netip.MustParsePrefix("10.244.1.0/24"), netip.MustParsePrefix("fd00:10:244:1::/64"),
		}},
		Services: map[types.NamespacedName]*model.Service{},
	}
	for _, to := range mixed {
		protocol, name := model.TCP, "web"
		if strings.HasPrefix(to.network, "udp") {
			protocol, name = model.UDP, "dns"
		}
		at := netip.MustParseAddrPort(to.addr)
		key := model.Key{Addr: at.Addr(), Port: at.Port(), Protocol: protocol}
		if to.kind == model.NodePort {
			key.Addr = key.Family().Unspecified()
		}
		var targets []netip.AddrPort
		for _, ep := range endpoints[to.network] {
			targets = append(targets, netip.MustParseAddrPort(ep))
		}
		svc := d.Services[types.NamespacedName{Namespace: "default", Name: name}]
		var before []model.Frontend
		if svc != nil {
			before = svc.Frontends
		}
		svc = serve(d, name, key, targets...)
		svc.Frontends[0].Kind = to.kind
		svc.Frontends = append(svc.Frontends, before...)
		slices.SortFunc(svc.Frontends, func(a, b model.Frontend) int { return a.Key.Compare(b.Key) })
	}
	return d
}

// serve adds a Service with these endpoints.
func serve(d model.Desired, name string, at model.Key, endpoints ...netip.AddrPort) *model.Service {
	target := &model.Target{}
	endpoints = slices.SortedFunc(slices.Values(endpoints), netip.AddrPort.Compare)
	for _, ep := range endpoints {
		target.Endpoints = append(target.Endpoints, model.Endpoint{AddrPort: ep, Local: true, Weight: 1})
	}
	svc := &model.Service{
		Name:      types.NamespacedName{Namespace: "default", Name: name},
		Frontends: []model.Frontend{{Key: at, Inside: target, Outside: target, Serving: endpoints}},
	}
	d.Services[svc.Name] = svc
	return svc
}
