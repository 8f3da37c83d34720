// SPDX-License-Identifier: Apache-2.0

package l2

import (
	"net/netip"
	"testing"
	"time"

	"github.com/causeway-lb/causeway/internal/announce"
	"github.com/causeway-lb/causeway/internal/announce/elect"
	"github.com/causeway-lb/causeway/internal/announce/l2/claim"
	"github.com/causeway-lb/causeway/internal/announce/l2/wire"
	"github.com/causeway-lb/causeway/internal/announce/members"
)

// mute is a claim.Port that sends nothing.
type mute struct{}

func (mute) Probe(wire.MAC) {}
func (mute) Announce()      {}
func (mute) Answer(bool)    {}

// TestSuccession: node-1 announced, its agent died, this node is elected. Then what
// this node hears of node-1 changes.
func TestSuccession(t *testing.T) {
	const former, other = "node-1", "node-2"
	addr := netip.MustParseAddr("192.0.2.200")
	dead := members.Member{State: members.HostAnswers}
	off := members.Member{State: members.HostSilent}
	type step struct {
		after    time.Duration
		view     members.Member // of node-1; Since is set
		elected  string         // "" is this node
		suppress bool
		leaving  bool // node-1's agent is about to end
	}
	tests := []struct {
		name  string
		steps []step
	}{
		{"node off", []step{{view: off}}},
		{"agent dead", []step{{view: dead, suppress: true}, {after: time.Second, view: dead, suppress: true}}},
		{"agent dead, then node off", []step{{view: dead, suppress: true}, {after: time.Second, view: off}}},
		{"agent never back", []step{{view: dead, suppress: true}, {after: maxSuppression + 1, view: dead}}},
		{"back, not yet able", []step{
			{view: dead, suppress: true}, {after: time.Second, view: members.Member{State: members.Alive}, suppress: true}, {after: maxReturn, view: members.Member{State: members.Alive}, suppress: true},
		}},
		{"back, never able", []step{
			{view: dead, suppress: true}, {after: time.Second, view: members.Member{State: members.Alive}, suppress: true}, {after: maxReturn + 1, view: members.Member{State: members.Alive}},
		}},
		{"back, at first by what was known of it before", []step{
			{view: dead, suppress: true}, {after: time.Second, view: members.Member{State: members.Alive}, elected: former, suppress: true}, {after: time.Millisecond, view: members.Member{State: members.Alive}, suppress: true},
		}},
		{"back and dead again", []step{
			{view: dead, suppress: true}, {after: time.Second, view: members.Member{State: members.Alive}, suppress: true}, {after: time.Second, view: dead, suppress: true}, {after: maxReturn, view: dead, suppress: true},
		}},
		{"back before this node was elected", []step{
			{view: dead, elected: other}, {after: time.Millisecond, view: members.Member{State: members.Alive}, elected: former}, {after: time.Millisecond, view: members.Member{State: members.Alive}, suppress: true},
		}},
		{"alive for a moment, now leaving", []step{
			{view: members.Member{State: members.Alive}, elected: former}, {after: time.Second, view: members.Member{State: members.Alive}, leaving: true},
		}},
		{"alive for long, now out of sync", []step{
			{view: members.Member{State: members.Alive}, elected: former}, {after: maxReturn + 1, view: members.Member{State: members.Alive}},
		}},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			ad := &announce.Advertisement{Address: elect.Address{Addr: addr, Pool: &elect.Pool{}}}
			machine := claim.New(claim.DefaultTiming(), mute{})
			now := time.Unix(1000, 0)
			var got succession
			var was *members.Member
			before := former
			for i, s := range tc.steps {
				now = now.Add(s.after)
				if s.view.Since = now; was != nil && was.Alive() == s.view.Alive() {
					s.view.Since = was.Since
				}
				was = &s.view
				c := newCluster("self", &announce.Desired{
					Members: map[string]members.Member{former: s.view},
					Nodes:   []elect.Node{{Name: former, Alive: s.view.Alive(), Leaving: s.leaving, Starting: true, Interfaces: []elect.Interface{}}},
				})
				role, elected := claim.Elected, "self"
				if s.elected != "" {
					role, elected = claim.Standby, s.elected
				}
				if role == claim.Elected && machine.Role() != claim.Elected && !machine.Answers() {
					got = newSuccession(now, &c, ad, before, true)
				}
				suppress := got.suppress(now, c.member(got.former), role == claim.Elected)
				if suppress != s.suppress {
					t.Errorf("step %d: suppressed %v, want %v", i, suppress, s.suppress)
				}
				machine.Set(now, claim.Want{Role: role, SuppressGratuitous: suppress, Hurry: true})
				for range 3 {
					machine.Tick(now.Add(time.Minute))
				}
				before = elected
			}
		})
	}
}
