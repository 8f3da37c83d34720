// SPDX-License-Identifier: Apache-2.0

package flowmatrix

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/causeway-lb/causeway/internal/inspect"
	"github.com/causeway-lb/causeway/internal/proxy/backend"
	"github.com/causeway-lb/causeway/internal/proxy/model"
	"github.com/causeway-lb/causeway/internal/testkit/nstest"
)

// Packets runs the table with real packets. The test's own namespace, fresh
// by nstest.Main, becomes node-1; b must work in it. What LimitsOf says that the
// mode cannot do must not work. What the kernel has is as it should be, and a trace
// through it tells what becomes of the packets.
func Packets(t *testing.T, b backend.Backend) {
	nstest.Require(t, "ip")
	net := newNetwork(t)
	for _, r := range Rows() {
		for _, f := range r.Families() {
			t.Run(r.Name+"/"+f.String(), func(t *testing.T) { net.run(t, b, &r, f) })
		}
	}
	if err := b.Cleanup(context.Background()); err != nil {
		t.Error(err)
	}
}

func (n *network) run(t *testing.T, b backend.Backend, r *Row, f model.Family) {
	desired, _ := model.Compute(r.Snapshot(f))
	if _, err := b.Resync(t.Context(), desired); err != nil {
		t.Fatal(err)
	}
	state, err := b.(backend.Inspector).Inspect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range inspect.Diff(desired, state) {
		t.Errorf("after Sync: %s", d)
	}
	n.forget(t)
	if r.Bound {
		to := netip.PrefixFrom(r.To.addr(f), r.To.addr(f).BitLen()).String()
		n.spaces[Node1].Run(t, "ip", "address", "add", to, "dev", "lo", "preferred_lft", "0", "nodad") // no source of others
		defer n.spaces[Node1].Run(t, "ip", "address", "del", to, "dev", "lo")
	}
	if LimitsOf(b.Name()).AffinityApart {
		r.Also = nil
	}
	want, cannot := LimitsOf(b.Name()).want(r)
	got := n.observe(t, r, f, cannot)
	traced := Traced(desired, state, r.Packet(f))
	// An SCTP client hears neither a reject nor that the node itself has no server.
	unheard := r.Proto() == model.SCTP && (traced.Action == model.Reject || traced.Untouched && cannot)
	if !same(traced, got) && !unheard {
		t.Errorf("%s dials %s: %v, but a trace of the kernel's state says %v", r.From, r.To, got, traced)
	}
	if cannot {
		if same(want, got) {
			t.Errorf("%s dials %s: %v, which this mode is said not to do: correct its documentation", r.From, r.To, got)
		}
		return
	}
	if !same(want, got) {
		t.Errorf("%s dials %s: %v, want %v", r.From, r.To, got, want)
	}
}

// same compares what was seen with what was wanted. A sticky row sees one of
// the wanted endpoints.
func same(want, got Want) bool {
	if !want.Sticky {
		return want.String() == got.String()
	}
	if len(got.To) != 1 || !slices.Contains(want.To, got.To[0]) || !got.Sticky {
		return false
	}
	return slices.Contains(want.Masquerade, got.To[0]) == (len(got.Masquerade) == 1)
}

// forget empties node-1's connection tracking, so that rows do not see each
// other's flows.
func (n *network) forget(t *testing.T) {
	t.Helper()
	if err := netlink.ConntrackTableFlush(netlink.ConntrackTable); err != nil && !errors.Is(err, syscall.ENOENT) {
		t.Fatal(err)
	}
}

// A row makes so many connections: at least enough that an endpoint that must
// not get any has shown itself (missing one in three is one in a thousand, and
// hundreds of rows look for it), at most enough that one that must get some has
// too (with three endpoints, never to be chosen by chance is one in ten million).
const atLeast, atMost = 16, 40

// observe sends the row's packets and returns what happened. cannot says that the
// wanted answer must not come.
func (n *network) observe(t *testing.T, r *Row, f model.Family, cannot bool) Want {
	t.Helper()
	seen := Want{Sticky: r.Want.Sticky}
	var dsts []netip.AddrPort
	for _, to := range append([]To{r.To}, r.Also...) {
		dsts = append(dsts, netip.AddrPortFrom(to.addr(f), r.portOf(to)))
	}
	src := r.Source(f)
	once := r.Want.Action != model.Forward || r.Want.Untouched
	// Untouched, it is answered by whoever has the address, if anybody does.
	host := r.To.host()
	answered := r.Want.Untouched && host != ""
	n.patience = patience
	if cannot || once && r.Want.Action != model.Reject && !answered {
		n.patience = suspicion
	}
	all := len(r.Want.To)
	if r.Want.Sticky {
		all = 1
	}
	for made := range atMost {
		if made >= atLeast && len(sortedPlaces(seen.To)) >= all {
			break
		}
		reply, err := n.dial(r.From, r.Proto(), src, dsts[made%len(dsts)])
		switch {
		case errors.Is(err, syscall.ECONNREFUSED):
			if r.Want.Untouched && !answered {
				return untouched // whoever has the address answered by itself
			}
			return rejected
		case err != nil:
			if r.Want.Untouched && !answered {
				return untouched
			}
			return dropped
		case answered && reply.who == host:
			return untouched
		case once:
			return to(reply.who)
		}
		seen.To = append(seen.To, reply.who)
		if reply.source != src {
			seen.Masquerade = append(seen.Masquerade, reply.who)
		}
	}
	seen.To, seen.Masquerade = sortedPlaces(seen.To), sortedPlaces(seen.Masquerade)
	return seen
}

// answer is who got a connection and which source address it had there.
type answer struct {
	who    Place
	source netip.Addr
}

var errTimeout = errors.New("no answer")

// How long an unanswered packet is waited for: an answer that is wanted may
// be late on a busy machine, one that must not come costs its time always.
const (
	patience  = 5 * time.Second
	suspicion = 250 * time.Millisecond
)

func (n *network) dial(from Place, p model.Protocol, src netip.Addr, dst netip.AddrPort) (answer, error) {
	ns := n.spaces[from]
	switch p {
	case model.TCP:
		return n.dialTCP(ns, src, dst)
	case model.UDP:
		return n.dialUDP(ns, src, dst)
	case model.SCTP:
		return n.sendSCTP(ns, src, dst)
	}
	return answer{}, fmt.Errorf("cannot dial %s", p)
}
