// SPDX-License-Identifier: Apache-2.0

package announce

import (
	"net/netip"
	"time"

	"github.com/causeway-lb/causeway/internal/announce/nodeinfo"
)

// State is what a Report is about.
type State uint8

const (
	// Released: this node has nothing to say about the address any longer. The node
	// that took over says the rest.
	Released State = iota
	// Announced: traffic for the address comes to this node.
	Announced
	// Conflicted: this node should announce it, but a conflicting host has it.
	Conflicted
	// NoEligibleNode: no node may announce it. One node says so for all.
	NoEligibleNode
)

// String names the state.
func (s State) String() string {
	return [...]string{"Released", "Announced", "Conflicted", "NoEligibleNode"}[s]
}

// Report is what became of an address on this node. Reports are comparable.
type Report struct {
	Address netip.Addr
	State   State
	// Interface on which it is announced (the first by name if there are several),
	// or on which the conflicting host was heard.
	Interface string
	// Since is when this node began to announce it.
	Since time.Time
	// ConflictingHost is the hardware address of a host that is not ours and uses
	// the address too; zero if there is none. It goes with Announced as well: this
	// node had it first.
	ConflictingHost nodeinfo.MAC
	// ConflictingNode and ConflictingInterface are set if that is the hardware
	// address of a node of ours, whose agent does not announce the address: it is
	// bound there, or in one of its Pods.
	ConflictingNode, ConflictingInterface string
	// Unreachable, with Announced, is the node that should announce it, whose agent
	// is alive but does not answer on the link.
	Unreachable string
	// Reason, with NoEligibleNode, says of every node why it may not. With Announced
	// it says what speaks against this node, and why the others cannot do better; ""
	// if nothing speaks against it.
	Reason string
}
