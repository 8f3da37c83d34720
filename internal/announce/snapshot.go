// SPDX-License-Identifier: Apache-2.0

package announce

import (
	"net/netip"
	"time"

	"github.com/causeway-lb/causeway/internal/announce/elect"
)

// Snapshot is everything that the Speaker knows from the API server and from
// this node's proxy. It is not changed after Update.
type Snapshot struct {
	// Addresses to be announced by some node. Each is there once.
	Addresses []Address
	// Nodes of the cluster, with this one.
	Nodes []Node
	// Starting: this node's kernel has not forwarded what it should since the agent
	// started. InSync: it does now.
	Starting, InSync bool
}

// Address is a LoadBalancer address in use.
type Address struct {
	Addr netip.Addr
	// Recorded is the node that announced it last, as far as the API server has it;
	// "" if none did.
	Recorded string
	// Pool it came from; shared among addresses, never nil.
	Pool *Pool
	// Local, unless nil, are the nodes with a ready endpoint of a Service with
	// external traffic policy Local; no other may announce the address.
	Local map[string]bool
}

// Never as a Pool's Preempt means that the preferred node waits until the present
// announcer stops by itself.
const Never = time.Duration(-1)

// Pool is how the addresses of one LoadBalancerPool are announced.
type Pool struct {
	elect.Pool
	// Kind says which Announcer announces them.
	Kind Kind
	// Preempt is how long an address stays with the node that announces it, once a
	// better one can: 0 not at all, or Never.
	Preempt time.Duration
}

// Node is a node as the API server has it.
type Node struct {
	Name   string
	Labels map[string]string
	// Excluded: it has the label
	// node.kubernetes.io/exclude-from-external-load-balancers, and not as false.
	Excluded bool
	// Cordoned: spec.unschedulable.
	Cordoned bool
	// Deleting: it has a deletion timestamp or the cluster autoscaler's taint.
	Deleting bool
	// NoNetwork: its condition NetworkUnavailable is true.
	NoNetwork bool
	// InternalIPs, where its agent is reached.
	InternalIPs []netip.Addr
}

// elected returns what the election has to know of a.
func (a *Address) elected() elect.Address {
	return elect.Address{Addr: a.Addr, Pool: &a.Pool.Pool, Local: a.Local}
}

// elected returns what the elections have to know of all addresses.
func (s *Snapshot) elected() []elect.Address {
	out := make([]elect.Address, 0, len(s.Addresses))
	for i := range s.Addresses {
		out = append(out, s.Addresses[i].elected())
	}
	return out
}
