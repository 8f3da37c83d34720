// SPDX-License-Identifier: Apache-2.0

package announce

import (
	"net/netip"
	"testing"
	"time"

	"github.com/go-logr/logr"

	"github.com/causeway-lb/causeway/internal/announce/elect"
	"github.com/causeway-lb/causeway/internal/announce/l2/claim"
	"github.com/causeway-lb/causeway/internal/announce/l2/wire"
	"github.com/causeway-lb/causeway/internal/announce/members"
)

// deaf is a claim.Port that sends nothing.
type deaf struct{}

func (deaf) Probe(wire.MAC) {}
func (deaf) Announce()      {}
func (deaf) Answer(bool)    {}

// TestHush: node-1 announced, its agent died, this node is elected. Then what
// this node hears of node-1 changes.
func TestHush(t *testing.T) {
	const former, other = "node-1", "node-2"
	addr := netip.MustParseAddr("192.0.2.200")
	dead := members.Member{HostAnswers: true}
	off := members.Member{NodeSilent: true}
	type step struct {
		after   time.Duration
		view    members.Member // of node-1; Since is set
		elected string         // "" is this node
		quiet   bool
		leaving bool // node-1's agent is about to end
	}
	tests := []struct {
		name  string
		steps []step
	}{
		{"node off", []step{{view: off}}},
		{"agent dead", []step{{view: dead, quiet: true}, {after: time.Second, view: dead, quiet: true}}},
		{"agent dead, then node off", []step{{view: dead, quiet: true}, {after: time.Second, view: off}}},
		{"agent never back", []step{{view: dead, quiet: true}, {after: maxQuiet + 1, view: dead}}},
		{"back, not yet able", []step{
			{view: dead, quiet: true}, {after: time.Second, view: members.Member{Alive: true}, quiet: true}, {after: maxReturn, view: members.Member{Alive: true}, quiet: true},
		}},
		{"back, never able", []step{
			{view: dead, quiet: true}, {after: time.Second, view: members.Member{Alive: true}, quiet: true}, {after: maxReturn + 1, view: members.Member{Alive: true}},
		}},
		{"back, at first by what was known of it before", []step{
			{view: dead, quiet: true}, {after: time.Second, view: members.Member{Alive: true}, elected: former, quiet: true}, {after: time.Millisecond, view: members.Member{Alive: true}, quiet: true},
		}},
		{"back and dead again", []step{
			{view: dead, quiet: true}, {after: time.Second, view: members.Member{Alive: true}, quiet: true}, {after: time.Second, view: dead, quiet: true}, {after: maxReturn, view: dead, quiet: true},
		}},
		{"back before this node was elected", []step{
			{view: dead, elected: other}, {after: time.Millisecond, view: members.Member{Alive: true}, elected: former}, {after: time.Millisecond, view: members.Member{Alive: true}, quiet: true},
		}},
		{"alive for a moment, now leaving", []step{
			{view: members.Member{Alive: true}, elected: former}, {after: time.Second, view: members.Member{Alive: true}, leaving: true},
		}},
		{"alive for long, now out of sync", []step{
			{view: members.Member{Alive: true}, elected: former}, {after: maxReturn + 1, view: members.Member{Alive: true}},
		}},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			l := &loop{log: logr.Discard(), snap: &Snapshot{Addresses: []Address{{Addr: addr}}}, view: map[string]members.Member{}}
			e := &entry{addr: addr, machine: claim.New(claim.DefaultTiming(), deaf{})}
			now := time.Unix(1000, 0)
			old := map[netip.Addr]elect.Result{addr: {Announcer: former, Ranks: []string{former, "self", other}}}
			for i, s := range tc.steps {
				now = now.Add(s.after)
				if was, known := l.view[former]; !known || was.Alive != s.view.Alive {
					s.view.Since = now
				} else {
					s.view.Since = was.Since
				}
				l.view[former] = s.view
				l.nodes = []elect.Node{{Name: former, Alive: s.view.Alive, Leaving: s.leaving, Starting: true, Interfaces: []elect.Interface{}}}
				result := elect.Result{Announcer: "self", Ranks: []string{"self", other}}
				role := claim.Elected
				if s.elected != "" {
					result, role = elect.Result{Announcer: s.elected, Ranks: []string{s.elected, "self"}}, claim.Standby
				}
				node, starting := l.former(now, 0, &elect.Address{Addr: addr, Pool: &elect.Pool{}}, old)
				quiet := l.hush(now, e, role == claim.Elected, node, starting)
				if quiet != s.quiet {
					t.Errorf("step %d: quiet %v, want %v", i, quiet, s.quiet)
				}
				e.machine.Set(now, claim.Want{Role: role, Quiet: quiet, Hurry: true})
				for range 3 {
					e.machine.Tick(now.Add(time.Minute))
				}
				old[addr] = result
			}
		})
	}
}
