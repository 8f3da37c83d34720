// SPDX-License-Identifier: Apache-2.0

package announce

import (
	"net/netip"
	"testing"
	"time"

	"github.com/go-logr/logr"

	"github.com/causeway-lb/causeway/internal/announce/claim"
	"github.com/causeway-lb/causeway/internal/announce/elect"
	"github.com/causeway-lb/causeway/internal/announce/members"
	"github.com/causeway-lb/causeway/internal/announce/wire"
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
	}
	tests := []struct {
		name  string
		steps []step
	}{
		{"node off", []step{{0, off, "", false}}},
		{"agent dead", []step{{0, dead, "", true}, {time.Second, dead, "", true}}},
		{"agent dead, then node off", []step{{0, dead, "", true}, {time.Second, off, "", false}}},
		{"agent never back", []step{{0, dead, "", true}, {maxQuiet + 1, dead, "", false}}},
		{"back, not yet able", []step{
			{0, dead, "", true}, {time.Second, members.Member{Alive: true}, "", true}, {maxReturn, members.Member{Alive: true}, "", true},
		}},
		{"back, never able", []step{
			{0, dead, "", true}, {time.Second, members.Member{Alive: true}, "", true}, {maxReturn + 1, members.Member{Alive: true}, "", false},
		}},
		{"back, at first by what was known of it before", []step{
			{0, dead, "", true}, {time.Second, members.Member{Alive: true}, former, true}, {time.Millisecond, members.Member{Alive: true}, "", true},
		}},
		{"back and dead again", []step{
			{0, dead, "", true}, {time.Second, members.Member{Alive: true}, "", true}, {time.Second, dead, "", true}, {maxReturn, dead, "", true},
		}},
		{"back before this node was elected", []step{
			{0, dead, other, false}, {time.Millisecond, members.Member{Alive: true}, former, false}, {time.Millisecond, members.Member{Alive: true}, "", true},
		}},
		{"alive for long, now out of sync", []step{
			{0, members.Member{Alive: true}, former, false}, {maxReturn + 1, members.Member{Alive: true}, "", false},
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
				result := elect.Result{Announcer: "self", Ranks: []string{"self", other}}
				role := claim.Elected
				if s.elected != "" {
					result, role = elect.Result{Announcer: s.elected, Ranks: []string{s.elected, "self"}}, claim.Standby
				}
				node, starting := l.former(now, addr, 0, result, old)
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
