// SPDX-License-Identifier: Apache-2.0

package modes

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/causeway-lb/causeway/internal/conntrack"
	"github.com/causeway-lb/causeway/internal/proxy/ipvs"
	"github.com/causeway-lb/causeway/internal/proxy/model"
	"github.com/causeway-lb/causeway/internal/testkit/backendtest"
	"github.com/causeway-lb/causeway/internal/testkit/nstest"
)

const dns, dns2 = "10.244.1.5:53", "10.244.1.6:53"

// TestFlowsOfAFrontend: in every mode UDP flows stay when a frontend passes from one
// Service to another with the same endpoints, and those of a client end that the
// source ranges no longer contain, and no others.
func TestFlowsOfAFrontend(t *testing.T) {
	nstest.Require(t, "ip", "iptables-restore", "ip6tables-restore")
	n := newNetwork(t)
	node, pod, prefix := nstest.Self(t), nstest.NewNS(t), netip.MustParsePrefix
	nstest.Cable(t, node, "dns", pod, "eth0")
	node.Address(t, "dns", prefix("169.254.1.1/32"))
	pod.Route(t, prefix("169.254.1.1/32"), netip.Addr{}, "eth0")
	pod.Route(t, prefix("0.0.0.0/0"), netip.MustParseAddr("169.254.1.1"), "eth0")
	for _, at := range []string{dns, dns2} {
		where := netip.PrefixFrom(netip.MustParseAddrPort(at).Addr(), 32)
		pod.Address(t, "eth0", where)
		node.Route(t, where, netip.Addr{}, "dns")
		pod.Must(t, func() error {
			c, err := net.ListenPacket("udp4", at)
			if err != nil {
				return err
			}
			t.Cleanup(func() { _ = c.Close() })
			go func() {
				b := make([]byte, 16)
				for {
					_, from, err := c.ReadFrom(b)
					if err != nil {
						return
					}
					_, _ = c.WriteTo([]byte(at), from)
				}
			}()
			return nil
		})
	}
	kinds := Kinds(Configs{IPVS: ipvs.Config{DrainInterval: 50 * time.Millisecond}})
	for _, mode := range here(t, kinds) {
		if nstest.InVM() && mode != IPVS {
			continue // the machine is slow
		}
		t.Run(string(mode), func(t *testing.T) { n.flows(t, kinds[mode]) })
	}
}

func (n *network) flows(t *testing.T, kind Kind) {
	b, err := kind.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := errors.Join(b.Cleanup(t.Context()), b.Close()); err != nil {
			t.Error(err)
		}
	}()
	service := func(name string, ranges ...string) *model.Service {
		at := netip.MustParseAddrPort(frontend)
		f := model.Frontend{Key: model.Key{Addr: at.Addr(), Port: at.Port(), Protocol: model.UDP}, Kind: model.LoadBalancerIP, Inside: &model.Target{}}
		for _, ep := range []string{dns, dns2} {
			a := netip.MustParseAddrPort(ep)
			f.Inside.Endpoints = append(f.Inside.Endpoints, model.Endpoint{AddrPort: a, Local: true, Weight: 1})
			f.Serving = append(f.Serving, a)
		}
		f.Outside = f.Inside
		for _, r := range ranges {
			f.Restricted, f.SourceRanges = true, append(f.SourceRanges, netip.MustParsePrefix(r))
		}
		return &model.Service{Name: types.NamespacedName{Namespace: "default", Name: name}, Frontends: []model.Frontend{f}}
	}
	var now *model.Service
	sync := func(next *model.Service) {
		t.Helper()
		d := model.Desired{
			Node:     model.Node{Name: "node-1", PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24")}},
			Services: map[types.NamespacedName]*model.Service{next.Name: next},
		}
		// The new one is told first: so its flows were taken for the old one's.
		changes := []model.Change{{Name: next.Name, New: next}}
		changed := []types.NamespacedName{next.Name}
		if now != nil && now.Name == next.Name {
			changes[0].Old = now
		} else if now != nil {
			changes = append(changes, model.Change{Name: now.Name, Old: now})
			changed = append(changed, now.Name)
		}
		if _, err := backendtest.Sync(t.Context(), b, d, changed); err != nil {
			t.Fatal(err)
		}
		if _, err := (conntrack.Table{Node: d.Node}).Clean(conntrack.PlanAll(changes, false)); err != nil {
			t.Fatal(err)
		}
		now = next
	}
	sync(service("blue"))
	type flow struct {
		from, at string
		c        net.Conn
	}
	ask := func(f *flow, patience time.Duration) (string, error) {
		b := make([]byte, 32)
		_ = f.c.SetDeadline(time.Now().Add(patience))
		_, err := f.c.Write([]byte("?"))
		if err == nil {
			var k int
			k, err = f.c.Read(b)
			return string(b[:k]), err
		}
		return "", err
	}
	var flows []*flow
	for i := range 12 {
		f := &flow{from: []string{"client", "Pod"}[i%2]}
		n.clients[f.from].Must(t, func() (err error) { f.c, err = net.Dial("udp4", frontend); return err })
		defer f.c.Close()
		if f.at, err = ask(f, patience); err != nil {
			t.Fatalf("from the %s: %v", f.from, err)
		}
		flows = append(flows, f)
	}
	stay := func(when string, from ...string) {
		t.Helper()
		for _, f := range flows {
			if !slices.Contains(from, f.from) {
				continue
			}
			if at, err := ask(f, patience); err != nil || at != f.at {
				t.Errorf("%s: a flow from the %s to %s is at %q, %v", when, f.from, f.at, at, err)
			}
		}
	}
	sync(service("green"))
	stay("another Service has the frontend", "client", "Pod")
	sync(service("green", "10.244.0.0/16", "192.0.2.0/24"))
	stay("all clients are in the ranges", "client", "Pod")
	sync(service("green", "10.244.0.0/16"))
	stay("the Pod is in the ranges", "Pod")
	for _, f := range flows {
		if f.from != "client" {
			continue
		}
		if at, err := ask(f, 100*time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("a client that is excluded has an answer from %q, %v", at, err)
		}
	}
}
