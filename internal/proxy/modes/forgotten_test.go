// SPDX-License-Identifier: Apache-2.0

package modes

import (
	"cmp"
	"errors"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/causeway-lb/causeway/internal/netlink/conntrack"
	"github.com/causeway-lb/causeway/internal/proxy/ipvs"
	"github.com/causeway-lb/causeway/internal/proxy/model"
	"github.com/causeway-lb/causeway/internal/testkit/nstest"
)

// TestFlowsThatConnectionTrackingForgets: while userspace has taken over from ipvs, of
// which some connection is still open, a client by UDP is answered by an endpoint on
// another node though connection tracking has forgotten the flow, which IPVS does later.
func TestFlowsThatConnectionTrackingForgets(t *testing.T) {
	nstest.Require(t, "ip")
	n := newNetwork(t)
	kinds := Kinds(Configs{IPVS: ipvs.Config{DrainInterval: 50 * time.Millisecond}})
	if !slices.Contains(here(t, kinds), IPVS) {
		return // it is run in the virtual machine
	}
	// The endpoint answers the client without passing this node, unless it saw its address.
	want := desired()
	dials := []dial{mixed[0]}
	for _, f := range []struct{ network, at, away, bits string }{
		{"udp4", "10.96.0.53:53", "192.0.2.101", "/24"}, {"udp6", "[fd00:10:96::53]:53", "2001:db8:2::101", "/64"},
	} {
		n.clients["client"].Address(t, "eth0", netip.MustParsePrefix(f.away+f.bits))
		to, endpoint := netip.MustParseAddrPort(f.at), netip.AddrPortFrom(netip.MustParseAddr(f.away), 5353)
		n.clients["client"].Must(t, func() error { return n.answer(t, f.network, endpoint.String()) })
		far := serve(want, "far-"+f.network, model.Key{Addr: to.Addr(), Port: to.Port(), Protocol: model.UDP}, endpoint)
		far.Frontends[0].Inside.Endpoints[0].Local = false
		dials = append(dials, dial{model.ClusterIP, f.network, f.at})
	}
	if err := inUseFor(t, kinds, IPVS, want).Close(); err != nil {
		t.Fatal(err)
	}
	var all []*attempt
	defer func() { each(all, (*attempt).close) }()
	n.clients["client"].Must(t, func() error {
		for _, to := range dials {
			a := &attempt{from: "client", to: to}
			if err := a.begin(0); err != nil {
				return err
			}
			all = append(all, a)
		}
		return nil
	})
	asked := func(when string) {
		t.Helper()
		for _, a := range all {
			until := time.Now().Add(patience)
			if err := cmp.Or(a.ask(until), a.hear(until)); err != nil {
				t.Fatalf("%s, %s: %v", a.to, when, err)
			}
		}
	}
	asked("before the change")
	next := inUseFor(t, kinds, Userspace, want)
	defer func() {
		if err := errors.Join(next.Cleanup(t.Context()), next.Close()); err != nil {
			t.Error(err)
		}
	}()
	if !slices.Contains(next.Remaining(), IPVS) {
		t.Fatalf("%v remain beside an open connection, want ipvs", next.Remaining())
	}
	asked("after the change")
	forgetFlows(t)
	asked("when connection tracking has forgotten the flow")
}

// forgetFlows has connection tracking forget what it knows by UDP.
func forgetFlows(t *testing.T) {
	t.Helper()
	d, err := conntrack.OpenDeleter(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	for _, anywhere := range []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
		some := false
		filter := conntrack.Filter{Protocol: uint8(model.UDP), To: netip.AddrPortFrom(anywhere, 0)}
		err := conntrack.List(filter, func(e *conntrack.Entry) error {
			some = true
			return d.Add(e)
		})
		if err := errors.Join(err, d.Flush()); err != nil || !some {
			t.Fatalf("forget flows: %v; there were some: %v", err, some)
		}
	}
}
