// SPDX-License-Identifier: Apache-2.0

package modes

import (
	"errors"
	"fmt"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/causeway-lb/causeway/internal/conntrack"
	"github.com/causeway-lb/causeway/internal/proxy/ipvs"
	"github.com/causeway-lb/causeway/internal/proxy/model"
	"github.com/causeway-lb/causeway/internal/proxy/userspace"
	"github.com/causeway-lb/causeway/internal/testkit/backendtest"
	"github.com/causeway-lb/causeway/internal/testkit/nstest"
)

// TestConnectionsOfExcludedClients: in every mode, TCP connections of clients that the
// source ranges no longer contain go on, be they from outside, from a Pod or from the
// node itself; with --reset-tcp they are reset, and no others.
func TestConnectionsOfExcludedClients(t *testing.T) {
	nstest.Require(t, "ip", "iptables-restore", "ip6tables-restore")
	n := newNetwork(t)
	kinds := func(reset bool) map[Mode]Kind {
		return Kinds(Configs{IPVS: ipvs.Config{DrainInterval: 50 * time.Millisecond}, Userspace: userspace.Config{ResetTCP: reset}})
	}
	for _, mode := range here(t, kinds(false)) {
		if nstest.InVM() && mode != IPVS {
			continue // the machine is slow
		}
		for _, reset := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, reset %v", mode, reset), func(t *testing.T) { n.excluded(t, kinds(reset)[mode], reset) })
		}
	}
}

func (n *network) excluded(t *testing.T, kind Kind, reset bool) {
	b, err := kind.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := errors.Join(b.Cleanup(t.Context()), b.Close(), conntrack.Cleanup()); err != nil {
			t.Error(err)
		}
	}()
	name := types.NamespacedName{Namespace: "default", Name: "web"}
	node := model.Node{Name: "node-1", PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24"), netip.MustParsePrefix("fd00:10:244:1::/64")}}
	frontends := []dial{{model.LoadBalancerIP, "tcp4", "203.0.113.200:80"}, {model.LoadBalancerIP, "tcp6", "[2001:db8:3::200]:80"}}
	service := func(ranges map[string]string) *model.Service {
		svc := &model.Service{Name: name}
		for _, d := range frontends {
			at := netip.MustParseAddrPort(d.addr)
			f := model.Frontend{Key: model.Key{Addr: at.Addr(), Port: at.Port(), Protocol: model.TCP}, Kind: d.kind, Inside: &model.Target{}}
			for _, ep := range endpoints[d.network] {
				a := netip.MustParseAddrPort(ep)
				f.Inside.Endpoints = append(f.Inside.Endpoints, model.Endpoint{AddrPort: a, Local: true, Weight: 1})
				f.Serving = append(f.Serving, a)
			}
			f.Outside = f.Inside
			if ranges != nil {
				f.Restricted, f.SourceRanges = true, []netip.Prefix{netip.MustParsePrefix(ranges[d.network])}
			}
			svc.Frontends = append(svc.Frontends, f)
		}
		return svc
	}
	var now *model.Service
	sync := func(next *model.Service) {
		t.Helper()
		d := model.Desired{Node: node, Services: map[types.NamespacedName]*model.Service{name: next}}
		if _, err := backendtest.Sync(t.Context(), b, d, []types.NamespacedName{name}); err != nil {
			t.Fatal(err)
		}
		scopes := conntrack.PlanAll([]model.Change{{Name: name, Old: now, New: next}}, reset)
		if _, err := (conntrack.Table{Node: node, Reset: reset}).Clean(scopes); err != nil {
			t.Fatal(err)
		}
		now = next
	}
	for _, admitted := range []string{"Pod", "client"} {
		sync(service(nil))
		opened := map[string][]*connection{}
		for from, ns := range n.clients {
			for _, d := range frontends {
				ns.Must(t, func() error {
					c, err := open(d)
					if err == nil {
						opened[from] = append(opened[from], c)
						err = c.say("before")
					}
					return err
				})
			}
		}
		sync(service(map[string]map[string]string{
			"Pod": {"tcp4": "10.244.1.3/32", "tcp6": "fd00:10:244:1::3/128"}, "client": {"tcp4": "192.0.2.100/32", "tcp6": "2001:db8:2::100/128"},
		}[admitted]))
		for from, cs := range opened {
			for i, c := range cs {
				err := c.say("after")
				if ends := reset && from != admitted; ends != errors.Is(err, syscall.ECONNRESET) || !ends && err != nil {
					t.Errorf("only the %s is admitted: the connection from the %s to %s: %v, want a reset: %v", admitted, from, frontends[i].addr, err, ends)
				}
				_ = c.Close()
			}
		}
	}
}
