// SPDX-License-Identifier: Apache-2.0

package announce

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/google/go-cmp/cmp"

	"github.com/causeway-lb/causeway/internal/announce/elect"
	"github.com/causeway-lb/causeway/internal/announce/links"
	"github.com/causeway-lb/causeway/internal/announce/members"
)

// fakeAnnouncer announces what this node is elected for, immediately.
type fakeAnnouncer struct {
	self    string
	desired *Desired
	steps   int
	closed  bool

	receptions map[int]elect.Reception
}

func (f *fakeAnnouncer) Apply(_ time.Time, d *Desired) { f.desired = d }
func (f *fakeAnnouncer) Step(time.Time)                { f.steps++ }
func (f *fakeAnnouncer) Next(time.Time) time.Duration  { return time.Minute }
func (f *fakeAnnouncer) Active() int                   { return len(f.addresses(true)) }
func (f *fakeAnnouncer) Receptions() map[int]elect.Reception {
	return f.receptions
}
func (f *fakeAnnouncer) Close(time.Time) { f.closed = true }
func (f *fakeAnnouncer) Reports(now time.Time) (out []Report) {
	for _, a := range f.addresses(true) {
		out = append(out, Report{Address: a, State: Announced, Interface: "eth0", Since: now})
	}
	return out
}

// addresses returns those to be announced, or only those that are this node's.
func (f *fakeAnnouncer) addresses(mine bool) (out []netip.Addr) {
	if f.desired == nil || f.closed {
		return nil
	}
	for _, a := range f.desired.Advertisements {
		if !mine || a.Result.Announcer == f.self {
			out = append(out, a.Addr)
		}
	}
	return out
}

// TestAnnouncersGetTheirKind: each gets the advertisements of its kind, elected, and
// what it reports is reported; of a kind without an announcer no node may announce.
func TestAnnouncersGetTheirKind(t *testing.T) {
	m, err := members.New(members.Config{Name: "me", Bind: netip.MustParseAddrPort("192.0.2.11:0")}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.SetKeys(make([]byte, members.KeyLength)); err != nil {
		t.Fatal(err)
	}
	published := map[netip.Addr]Report{}
	cfg := Config{
		Node: "me", Metrics: NewMetrics(nil), Membership: func(map[string]members.Member) {},
		Report: func(r Report) { published[r.Address] = r },
	}
	l := newLoop(cfg, m, logr.Discard())
	layer2, other := &fakeAnnouncer{self: "me"}, &fakeAnnouncer{self: "me"}
	l.announcers[L2], l.announcers["Other"] = layer2, other
	l.links = []links.Link{{Index: 2, Interface: elect.Interface{Name: "eth0", Up: true, Default4: true}}}
	address := func(n byte, k Kind) Address {
		return Address{Addr: netip.AddrFrom4([4]byte{192, 0, 2, n}), Pool: &Pool{Kind: k}}
	}
	snap := &Snapshot{Nodes: []Node{{Name: "me"}}, InSync: true, Addresses: []Address{address(1, L2), address(2, "Other"), address(3, L2), address(4, "Unknown")}}

	now := time.Unix(1000, 0)
	l.changed = true
	l.step(now, snap)
	if layer2.desired != nil || l.next(now) > joinTimeout {
		t.Fatalf("elected before the membership is known, or not looked again: %v", l.next(now))
	}
	now = now.Add(joinTimeout)
	l.step(now, snap)
	if diff := cmp.Diff([]string{"192.0.2.1", "192.0.2.3"}, text(layer2.addresses(false))); diff != "" {
		t.Errorf("L2 (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"192.0.2.2"}, text(other.addresses(false))); diff != "" {
		t.Errorf("Other (-want +got):\n%s", diff)
	}
	for _, a := range snap.Addresses[:3] {
		if got := published[a.Addr]; got.State != Announced || !got.Since.Equal(now) {
			t.Errorf("%v: %+v", a.Addr, got)
		}
	}
	if got := published[snap.Addresses[3].Addr]; got.State != NoEligibleNode || !strings.Contains(got.Reason, `"Unknown"`) {
		t.Errorf("of a kind without an announcer: %+v", got)
	}
	if wait := l.next(now); wait != time.Second || layer2.steps == 0 || layer2.steps != other.steps {
		t.Errorf("next %v, %d and %d steps", wait, layer2.steps, other.steps)
	}

	layer2.receptions = map[int]elect.Reception{2: elect.Hearing}
	l.step(now, snap)
	if wait := l.next(now); wait != 0 {
		t.Errorf("next %v after an Announcer has found out what comes in", wait)
	}
	l.step(now, snap)
	if got := layer2.desired.Nodes[0].Interfaces[0].Reception; got != elect.Hearing {
		t.Errorf("reception %d is elected by, want hearing", got)
	}

	l.leave()
	l.step(now, snap)
	if !layer2.desired.Leaving || !other.desired.Leaving || l.active() != 0 {
		t.Errorf("leaving: %v, %v, and %d are active though no node may announce", layer2.desired.Leaving, other.desired.Leaving, l.active())
	}
	l.close(now)
	if !layer2.closed || !other.closed {
		t.Error("not closed")
	}
}

func text(addrs []netip.Addr) (out []string) {
	for _, a := range addrs {
		out = append(out, a.String())
	}
	return out
}

// TestReporter: only what differs is published, with the time at which an address
// came; reasons come from the election.
func TestReporter(t *testing.T) {
	a := netip.MustParseAddr("192.0.2.1")
	snap := &Snapshot{Addresses: []Address{{Addr: a, Pool: &Pool{Kind: L2}}}}
	mine := map[netip.Addr]elect.Result{a: {Announcer: "me", Ranks: []string{"me"}}}
	none := map[netip.Addr]elect.Result{a: {}}
	good := elect.Node{Name: "me", Alive: true, InSync: true, Interfaces: []elect.Interface{{Name: "eth0", Up: true, Default4: true}}}
	cordoned := good
	cordoned.Cordoned = true
	at := func(s int64) time.Time { return time.Unix(s, 0) }
	p := newReporter("me", NewMetrics(nil), logr.Discard())
	for _, step := range []struct {
		what string
		do   func()
		want []Report
	}{
		{"nothing", func() {}, nil},
		{"elected, not announced yet", func() { p.elected(snap, []elect.Node{good}, mine) }, nil},
		{"announced", func() { p.take(Report{Address: a, State: Announced, Interface: "eth0", Since: at(1)}) },
			[]Report{{Address: a, State: Announced, Interface: "eth0", Since: at(1)}}},
		{"again, after Releasing", func() { p.take(Report{Address: a, State: Announced, Interface: "eth0", Since: at(2)}) }, nil},
		{"cordoned", func() { p.elected(snap, []elect.Node{cordoned}, mine) },
			[]Report{{Address: a, State: Announced, Interface: "eth0", Since: at(1), Reason: string(elect.Cordoned) + ", but no other node can do better"}}},
		{"released, and no node may", func() { p.elected(snap, nil, none); p.take(Report{Address: a}) },
			[]Report{{Address: a, State: NoEligibleNode, Reason: "there are no nodes"}}},
		{"another is elected", func() { p.elected(snap, nil, map[netip.Addr]elect.Result{a: {Announcer: "other"}}) }, []Report{{Address: a}}},
		{"no longer in use", func() { p.elected(&Snapshot{}, nil, nil) }, nil},
	} {
		step.do()
		if diff := cmp.Diff(step.want, p.changes(), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
			t.Errorf("%s (-want +got):\n%s", step.what, diff)
		}
	}
}

// TestWatched: all peers in a small cluster, else the announcers that this node
// would succeed.
func TestWatched(t *testing.T) {
	var nodes []Node
	for i := range 3 {
		nodes = append(nodes, Node{Name: fmt.Sprintf("node-%d", i)})
	}
	if diff := cmp.Diff([]string{"node-1", "node-2"}, watched("node-0", nodes, nil)); diff != "" {
		t.Errorf("small (-want +got):\n%s", diff)
	}
	for i := 3; i < 50; i++ {
		nodes = append(nodes, Node{Name: fmt.Sprintf("node-%d", i)})
	}
	results := map[netip.Addr]elect.Result{}
	for i, r := range []elect.Result{
		{Announcer: "node-7", Ranks: []string{"node-7", "node-0", "node-9"}},
		{Announcer: "node-8", Ranks: []string{"node-8", "node-9", "node-0"}},
		{Announcer: "node-8", Ranks: []string{"node-8", "node-0", "node-9"}},
		{Announcer: "node-9", Ranks: []string{"node-9", "node-7", "node-8", "node-0"}}, // third in line
		{Announcer: "node-0", Ranks: []string{"node-0", "node-7"}},
	} {
		results[netip.AddrFrom4([4]byte{192, 0, 2, byte(i)})] = r
	}
	if diff := cmp.Diff([]string{"node-8", "node-7"}, watched("node-0", nodes, results)); diff != "" {
		t.Errorf("large (-want +got):\n%s", diff)
	}
}
