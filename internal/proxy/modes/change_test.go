// SPDX-License-Identifier: Apache-2.0

package modes

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/causeway-lb/causeway/internal/proxy/backend"
	"github.com/causeway-lb/causeway/internal/proxy/ipvs"
	"github.com/causeway-lb/causeway/internal/proxy/model"
	"github.com/causeway-lb/causeway/internal/proxy/nstest"
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
	deadline := time.Now().Add(30 * time.Second)
	for len(next.Remaining()) > 0 {
		if time.Now().After(deadline) {
			connections, _ := os.ReadFile("/proc/thread-self/net/ip_vs_conn")
			t.Fatalf("objects of %v are still there; IPVS has\n%s", next.Remaining(), connections)
		}
		mustSync(t, next)
		time.Sleep(20 * time.Millisecond)
	}
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
	if _, err := c.Sync(t.Context(), want, nil); err != nil {
		t.Fatal(err)
	}
	if c.Name() != string(mode) {
		t.Fatalf("mode %s in use, want %s", c.Name(), mode)
	}
	return c
}

func mustSync(t *testing.T, c *Chooser) {
	t.Helper()
	if _, err := c.Sync(t.Context(), desired(), nil); err != nil {
		t.Fatal(err)
	}
}

// desired is the Service that all tests dial.
func desired() model.Desired {
	at := netip.MustParseAddrPort(frontend)
	d := model.Desired{
		Node:     model.Node{Name: "node-1", PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24")}},
		Services: map[types.NamespacedName]*model.Service{},
	}
	serve(d, "web", model.Key{Addr: at.Addr(), Port: at.Port(), Protocol: model.TCP},
		netip.MustParseAddrPort(endpoint), netip.MustParseAddrPort(endpoint2))
	return d
}

// serve adds a Service with these endpoints.
func serve(d model.Desired, name string, at model.Key, endpoints ...netip.AddrPort) {
	target := &model.Target{}
	for _, ep := range endpoints {
		target.Endpoints = append(target.Endpoints, model.Endpoint{AddrPort: ep, Local: true, Weight: 1})
	}
	svc := &model.Service{
		Name:      types.NamespacedName{Namespace: "default", Name: name},
		Frontends: []model.Frontend{{Key: at, Inside: target, Outside: target}},
	}
	d.Services[svc.Name] = svc
}
