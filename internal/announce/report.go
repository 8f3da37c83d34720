// SPDX-License-Identifier: Apache-2.0

package announce

import (
	"net/netip"
	"time"

	"github.com/causeway-lb/causeway/internal/announce/l2/wire"
)

// State is what a Report is about.
type State uint8

const (
	// Released: this node has nothing to say about the address any more. Whoever
	// took over says the rest.
	Released State = iota
	// Announced: this node answers for the address.
	Announced
	// Conflicted: this node should answer, but a stranger has the address.
	Conflicted
	// Nobody: no node may announce it. One node says so for all.
	Nobody
)

// String names the state.
func (s State) String() string {
	return [...]string{"Released", "Announced", "Conflicted", "Nobody"}[s]
}

// Report is what became of an address on this node. Reports are comparable.
type Report struct {
	Address netip.Addr
	State   State
	// Interface on which it is announced (the first by name if there are more),
	// or on which the stranger was heard.
	Interface string
	// Since is when this node began to announce it.
	Since time.Time
	// Stranger is the hardware address of a host that is not ours and uses the
	// address too; zero if there is none. It goes with Announced as well: this
	// node had it first.
	Stranger wire.MAC
	// StrangerNode and StrangerInterface are set if that is the hardware address of
	// a node of ours, whose agent does not announce the address: it is bound there,
	// or in one of its Pods.
	StrangerNode, StrangerInterface string
	// Silent, with Announced, is the node that should announce it, whose agent is
	// alive but does not answer on the link.
	Silent string
	// Reason, with Nobody, says of every node why it may not. With Announced it says
	// what speaks against this node, and why the others cannot do better; "" if
	// nothing speaks against it.
	Reason string
}
