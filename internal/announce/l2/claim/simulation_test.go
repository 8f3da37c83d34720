// SPDX-License-Identifier: Apache-2.0

package claim_test

import (
	"container/heap"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/causeway-lb/causeway/internal/announce/elect"
	"github.com/causeway-lb/causeway/internal/announce/l2/claim"
	"github.com/causeway-lb/causeway/internal/announce/nodeinfo"
)

// bound is how long two nodes may answer, or none though one could.
const bound = time.Second

// world is a cluster in virtual time: nodes with one Machine for each address, a
// LAN and a gossip network that are cut apart and joined at random. What package
// announce does around the Machines is done here in miniature.
type world struct {
	t     *testing.T
	rng   *rand.Rand
	now   time.Time
	queue events
	nodes []*node
	addrs []elect.Address
	trace []string

	intact bool    // no frame is lost
	served []*node // by address: to whom the last announcement has brought the clients
	moves  int     // of clients
}

type node struct {
	w           *world
	id          int
	name        string
	up          bool
	cordoned    bool
	lan         int // segment it is on
	gossip      int
	seen        []bool // by node: alive in this node's view
	cordons     []bool // by node: cordoned in this node's view
	lost        time.Time
	reannounced time.Time
	machines    []*claim.Machine
	results     []elect.Result
	answers     []bool
	epoch       int // of its process
}

// port is a claim.Port of one machine.
type port struct {
	n *node
	a int
}

type event struct {
	at  time.Time
	seq int
	do  func()
}

type events struct {
	list []event
	seq  int
}

func (q *events) Len() int { return len(q.list) }
func (q *events) Less(i, j int) bool {
	if !q.list[i].at.Equal(q.list[j].at) {
		return q.list[i].at.Before(q.list[j].at)
	}
	return q.list[i].seq < q.list[j].seq
}
func (q *events) Swap(i, j int) { q.list[i], q.list[j] = q.list[j], q.list[i] }
func (q *events) Push(x any)    { q.list = append(q.list, x.(event)) }
func (q *events) Pop() any {
	last := q.list[len(q.list)-1]
	q.list = q.list[:len(q.list)-1]
	return last
}

func newWorld(t *testing.T, seed uint64, nodes, addresses int) *world {
	w := &world{t: t, rng: rand.New(rand.NewPCG(seed, 4)), now: time.Unix(1000, 0)}
	pool := &elect.Pool{Interfaces: []string{"eth0"}}
	for i := range addresses {
		w.addrs = append(w.addrs, elect.Address{Addr: netip.AddrFrom4([4]byte{192, 0, 2, byte(200 + i)}), Pool: pool})
	}
	for i := range nodes {
		w.nodes = append(w.nodes, &node{w: w, id: i, name: fmt.Sprintf("node-%d", i+1), seen: make([]bool, nodes), cordons: make([]bool, nodes)})
	}
	w.served = make([]*node, addresses)
	for _, n := range w.nodes {
		n.start()
	}
	for _, n := range w.nodes {
		for _, o := range w.nodes {
			n.seen[o.id] = true
		}
		n.elect()
	}
	return w
}

func (w *world) after(d time.Duration, do func()) {
	w.queue.seq++
	heap.Push(&w.queue, event{w.now.Add(d), w.queue.seq, do})
}

func (w *world) between(low, high time.Duration) time.Duration {
	return low + time.Duration(w.rng.Int64N(int64(high-low)))
}

func (w *world) note(format string, args ...any) {
	w.trace = append(w.trace, w.now.Format("05.000")+" "+fmt.Sprintf(format, args...))
}

// start returns the node fresh machines, as a process that starts.
func (n *node) start() {
	n.up, n.epoch = true, n.epoch+1
	n.machines, n.answers = nil, make([]bool, len(n.w.addrs))
	n.results = make([]elect.Result, len(n.w.addrs))
	for a := range n.w.addrs {
		n.machines = append(n.machines, claim.New(claim.DefaultTiming(), port{n, a}))
	}
}

// restart is the start of a process that has not heard any node yet. The Speaker
// settles before it elects.
func (n *node) restart() {
	n.start()
	clear(n.seen)
	for _, o := range n.w.nodes {
		n.cordons[o.id] = o.cordoned
	}
	epoch := n.epoch
	n.w.after(350*time.Millisecond, func() {
		if n.epoch == epoch {
			n.elect()
		}
	})
}

func (n *node) kill() {
	n.up = false
	clear(n.answers)
	n.epoch++
}

// elect does what the Speaker does when its view has changed.
func (n *node) elect() {
	if !n.up {
		return
	}
	var nodes []elect.Node
	complete := true
	for _, o := range n.w.nodes {
		nodes = append(nodes, elect.Node{
			Name: o.name, Alive: o == n || n.seen[o.id], Cordoned: n.cordons[o.id], InSync: true,
			Interfaces: []elect.Interface{{Name: "eth0", Up: true}},
		})
		complete = complete && (o == n || n.seen[o.id])
	}
	refresh := time.Duration(0)
	if !complete {
		n.lost = n.w.now
	}
	if n.w.now.Sub(n.lost) < 3*time.Second {
		refresh = 250 * time.Millisecond * time.Duration(len(n.w.addrs))
	}
	old := n.results
	n.results = elect.Elect(nodes, n.w.addrs)
	for a, r := range n.results {
		want := claim.Want{Elected: r.Announcer, Refresh: refresh, Role: claim.Barred}
		switch {
		case r.Announcer == n.name:
			want.Role = claim.Elected
			want.Hurry = old[a].Announcer != "" && old[a].Announcer != n.name && !r.Preferred(old[a].Announcer)
		case r.Preferred(n.name):
			want.Role = claim.Standby
		case r.Rank(n.name) >= 0:
			want.Role = claim.Reluctant
		}
		n.machines[a].Set(n.w.now, want)
		n.schedule(a)
	}
}

// schedule has the machine ticked at its deadline.
func (n *node) schedule(a int) {
	m, epoch := n.machines[a], n.epoch
	at := m.Deadline()
	if at.IsZero() {
		return
	}
	n.w.after(max(at.Sub(n.w.now), 0), func() {
		if n.epoch == epoch && m.Deadline().Equal(at) {
			m.Tick(n.w.now)
			n.schedule(a)
		}
	})
}

func (p port) Answer(on bool) { p.n.answers[p.a] = on }

// Announce sends two frames, as ARP's does.
func (p port) Announce() {
	p.n.w.clients(p.a, p.n)
	for range 2 {
		for _, o := range p.n.w.nodes {
			p.n.deliver(o, p.a, claim.Advertisement, true)
		}
	}
}

func (p port) Probe(to nodeinfo.MAC) {
	for _, o := range p.n.w.nodes {
		if to.IsZero() || to == o.mac() {
			p.n.deliver(o, p.a, claim.Probe, true)
		}
	}
}

// clients come to the last one that announced an address.
func (w *world) clients(a int, n *node) {
	if w.served[a] != n {
		w.served[a] = n
		w.moves++
		w.note("clients of %v come to %s", w.addrs[a].Addr, n.name)
	}
}

func (n *node) mac() nodeinfo.MAC { return nodeinfo.MAC{2, 0, 0, 0, 0, byte(n.id + 1)} }

// deliver carries one frame, if the LAN does when it arrives. One in a hundred is
// lost.
func (n *node) deliver(to *node, a int, kind claim.Kind, hint bool) {
	w := n.w
	if to == n || !w.intact && w.rng.IntN(100) == 0 {
		return
	}
	w.after(w.between(50*time.Microsecond, 3*time.Millisecond), func() {
		if to.up && n.lan == to.lan {
			to.hear(n, a, kind, hint)
		}
	})
}

func (n *node) hear(from *node, a int, kind claim.Kind, hint bool) {
	if kind == claim.Probe && n.answers[a] {
		n.deliver(from, a, claim.Advertisement, false)
	}
	if kind == claim.Advertisement && !n.seen[from.id] && n.w.now.Sub(n.reannounced) > time.Second {
		n.reannounce()
	}
	n.machines[a].Hear(n.w.now, kind, claim.Peer{
		Name: from.name, MAC: from.mac(), Alive: n.seen[from.id],
		Eligible: n.results[a].Rank(from.name) >= 0 && n.results[a].Grade(from.name) <= n.results[a].Grade(n.name),
		Outranks: elect.Outranks(n.w.addrs[a].Addr, from.name, n.name), Hint: hint,
		Suspect: !n.seen[from.id],
	})
	n.schedule(a)
}

func (n *node) reannounce() {
	n.reannounced = n.w.now
	for _, m := range n.machines {
		m.Reannounce()
	}
}

// observe changes every node's view of every other, a detection time after the
// truth has changed.
func (w *world) observe() {
	for _, n := range w.nodes {
		for _, o := range w.nodes {
			if n == o {
				continue
			}
			epoch, truth := n.epoch, o.up && n.gossip == o.gossip
			w.after(w.between(160*time.Millisecond, 340*time.Millisecond), func() {
				if !n.up || n.epoch != epoch || n.seen[o.id] == truth || truth != (o.up && n.gossip == o.gossip) {
					return
				}
				n.seen[o.id] = truth
				n.elect()
				if truth {
					n.reannounce()
				}
			})
		}
	}
}

// disturb does one thing to the cluster.
func (w *world) disturb() {
	n := w.nodes[w.rng.IntN(len(w.nodes))]
	split := func(set func(*node, int)) {
		for _, o := range w.nodes {
			set(o, w.rng.IntN(2))
		}
	}
	switch w.rng.IntN(9) {
	case 0:
		w.note("partition of LAN and gossip")
		split(func(o *node, side int) { o.lan, o.gossip = side, side })
	case 1:
		w.note("gossip blocked everywhere")
		for i, o := range w.nodes {
			o.gossip = i
		}
	case 2:
		w.note("LAN joined, partition of gossip alone")
		split(func(o *node, side int) { o.lan, o.gossip = 0, side })
	case 3, 4, 5:
		w.note("all joined again")
		for _, o := range w.nodes {
			o.lan, o.gossip = 0, 0
		}
	case 6:
		w.note("%s up %v", n.name, !n.up)
		if n.up {
			n.kill()
		} else {
			n.restart()
		}
	case 7:
		w.cordon(n, !n.cordoned)
	case 8:
		w.note("%s killed and started", n.name)
		n.kill()
		n.restart()
	}
	w.observe()
}

// cordon changes a node, which the others learn at different times.
func (w *world) cordon(n *node, yes bool) {
	w.note("%s cordoned %v", n.name, yes)
	n.cordoned = yes
	for _, o := range w.nodes {
		w.after(w.between(0, claim.DefaultTiming().PreemptDelay*9/10), func() {
			if o.cordons[n.id] != n.cordoned {
				o.cordons[n.id] = n.cordoned
				o.elect()
			}
		})
	}
}

// run lets d pass and checks every millisecond.
func (w *world) run(d time.Duration) {
	end := w.now.Add(d)
	type key = struct{ segment, address int }
	twice, none := map[key]time.Time{}, map[key]time.Time{}
	for w.now.Before(end) {
		next := w.now.Add(time.Millisecond)
		for w.queue.Len() > 0 && !w.queue.list[0].at.After(next) {
			e := heap.Pop(&w.queue).(event)
			w.now = e.at
			e.do()
		}
		w.now = next
		for a := range w.addrs {
			for segment := range 2 {
				answering, could := w.count(segment, a)
				k := key{segment, a}
				w.hold(twice, k, answering > 1, "%d nodes answer", answering)
				w.hold(none, k, answering == 0 && could, "no node answers", 0)
			}
		}
	}
}

// count returns how many on a segment answer for an address, and whether anybody
// there may.
func (w *world) count(segment, a int) (answering int, could bool) {
	for _, n := range w.nodes {
		if n.up && n.lan == segment {
			could = true // cordoned or not
			if n.answers[a] {
				answering++
			}
		}
	}
	return answering, could
}

// hold fails if a condition has lasted for longer than bound.
func (w *world) hold(since map[struct{ segment, address int }]time.Time, k struct{ segment, address int }, bad bool, format string, n int) {
	if !bad {
		delete(since, k)
		return
	}
	if _, ok := since[k]; !ok {
		since[k] = w.now
	}
	if w.now.Sub(since[k]) > bound {
		what := format
		if strings.Contains(format, "%d") {
			what = fmt.Sprintf(format, n)
		}
		for _, o := range w.nodes {
			s, at := o.machines[k.address].State()
			w.note("%s up %v lan %d gossip %d cordoned %v sees %v: %v since %s, elects %q", o.name, o.up, o.lan, o.gossip, o.cordoned, o.seen, s, at.Format("05.000"), o.results[k.address].Announcer)
		}
		w.t.Fatalf("%s for %v on segment %d for longer than %v:\n%s", what, w.addrs[k.address].Addr, k.segment, bound, strings.Join(w.trace[max(0, len(w.trace)-20):], "\n"))
	}
}

// TestSimulation disturbs clusters at random. Between disturbances there is time
// for the bound to be held.
func TestSimulation(t *testing.T) {
	seeds := uint64(150)
	if testing.Short() {
		seeds = 10
	}
	for seed := range seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			w := newWorld(t, seed, 2+int(seed%4), 3)
			w.run(2 * time.Second)
			for range 40 {
				w.disturb()
				w.run(w.between(1500*time.Millisecond, 4*time.Second))
			}
			for _, n := range w.nodes {
				n.lan, n.gossip = 0, 0
				if !n.up {
					n.restart()
				}
			}
			for _, n := range w.nodes {
				w.cordon(n, false)
			}
			w.observe()
			w.run(40 * time.Second) // beyond every back-off
			w.settled()
		})
	}
}

// TestPlannedMoves: while all hear each other, a cordon moves the clients of an
// address once, though the nodes learn of it at different times, and there is
// always a node that answers.
func TestPlannedMoves(t *testing.T) {
	for seed := range uint64(50) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			w := newWorld(t, seed, 2+int(seed%4), 3)
			w.intact = true
			w.run(2 * time.Second)
			for range 20 {
				before := slices.Clone(w.served)
				w.moves, w.trace = 0, nil
				w.cordon(w.nodes[w.rng.IntN(len(w.nodes)-1)], w.rng.IntN(2) == 0) // one is never cordoned
				for range 3000 {
					w.run(time.Millisecond)
					for a := range w.addrs {
						if answering, _ := w.count(0, a); answering == 0 {
							t.Fatalf("no node answers for %v:\n%s", w.addrs[a].Addr, strings.Join(w.trace, "\n"))
						}
					}
				}
				moved := 0
				for a := range w.addrs {
					if w.served[a] != before[a] {
						moved++
					}
				}
				if w.moves != moved {
					t.Fatalf("%d moves of clients for %d addresses:\n%s", w.moves, moved, strings.Join(w.trace, "\n"))
				}
			}
		})
	}
}

// settled checks that the nodes have come to what they all elect.
func (w *world) settled() {
	for a := range w.addrs {
		var answering []string
		for _, n := range w.nodes {
			if n.answers[a] {
				answering = append(answering, n.name)
			}
		}
		if want := []string{w.nodes[0].results[a].Announcer}; !slices.Equal(answering, want) {
			w.t.Errorf("%v: in the end %v answer, want %v\n%s", w.addrs[a].Addr, answering, want, strings.Join(w.trace, "\n"))
		}
	}
}
