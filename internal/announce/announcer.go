// SPDX-License-Identifier: Apache-2.0

package announce

import (
	"context"
	"net/netip"
	"time"

	"github.com/causeway-lb/causeway/internal/announce/elect"
	"github.com/causeway-lb/causeway/internal/announce/links"
	"github.com/causeway-lb/causeway/internal/announce/members"
	"github.com/causeway-lb/causeway/internal/announce/nodeinfo"
)

// Kind is a way to announce addresses. Each has an Announcer, and the pool of an
// address says which it is.
type Kind string

// L2: one node answers ARP and NDP for the address (package l2).
const L2 Kind = "L2"

// Announcer makes traffic for a set of addresses come to the nodes that the
// elections name, by one Kind. It is driven by the Speaker's goroutine alone: it is
// told the time, and none of its methods blocks. What its own
// goroutines receive it keeps until Step, which it requests with Env.Wake.
type Announcer interface {
	// Apply replaces what is to be announced. Step acts on it; it is called next.
	// Desired is not changed afterwards, by either side.
	Apply(now time.Time, desired *Desired)
	// Step does everything that is due: what Apply has changed, what has been
	// received, and deadlines.
	Step(now time.Time)
	// Next returns for how long nothing is due; 0 for Step immediately.
	Next(now time.Time) time.Duration
	// Reports returns the state of every address that may have changed since the
	// last call, Released for those that this node no longer announces. It leaves
	// State NoEligibleNode and the field Reason to the Speaker.
	Reports(now time.Time) []Report
	// Receptions returns, by the index of an interface, what the Announcer has found
	// out there about what this node receives, which is published. The map is not
	// changed afterwards.
	Receptions() map[int]elect.Reception
	// Active returns how many announcements still bring traffic here. Once
	// Desired.Leaving is set the Speaker waits until there are none.
	Active() int
	// Close withdraws everything, without waiting for anybody to take over, and
	// returns when all goroutines have ended. Reports may be called once more.
	Close(now time.Time)
}

// NewAnnouncer makes an Announcer for one run of a Speaker. It must not block.
type NewAnnouncer func(Env) Announcer

// Env is what the Speaker offers to an Announcer.
type Env struct {
	// Context of the Announcer's goroutines, with a logger. It goes on while
	// addresses are handed over.
	Context context.Context
	// Node is this node's name.
	Node string
	// Members is the membership, for what the elections do not need: shared secrets,
	// clocks, how late other agents are.
	Members *members.Members
	// Wake has Step called soon. It may be called from any goroutine and does not
	// block.
	Wake func()
}

// Advertisement is an address of one Kind with the outcome of its election.
type Advertisement struct {
	elect.Address
	// Preempt is the pool's.
	Preempt time.Duration
	// Recorded is the node that announced it last, as far as the API server has it;
	// "" if none did.
	Recorded string
	// Result of the election. A Kind that lets several nodes announce an address
	// takes those of Ranks that are Preferred.
	Result elect.Result
}

// Desired is everything that an Announcer has to know, as of one election.
type Desired struct {
	// Advertisements of its Kind, each address once.
	Advertisements []Advertisement
	// Nodes of the cluster as the election saw them, with this one, and their
	// InternalIPs by name.
	Nodes       []elect.Node
	InternalIPs map[string][]netip.Addr
	// Members are the other nodes by name, and Infos what they publish; a node that
	// has not published any is missing.
	Members map[string]members.Member
	Infos   map[string]nodeinfo.Info
	// Links are this node's interfaces. Relevant are those of them, with those of
	// their subnets, on which any of the addresses may be announced.
	Links, Relevant []links.Link
	// Leaving: this node is shutting down. Each address is handed over as soon as
	// another node has it.
	Leaving bool
}
