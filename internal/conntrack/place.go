// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"net/netip"

	"github.com/vishvananda/netlink"

	"github.com/causeway-lb/causeway/internal/netlink/conntrack"
	"github.com/causeway-lb/causeway/internal/proxy/model"
)

// here is the Place that the calling thread's network namespace is.
type here struct {
	node  *model.Node
	mine  map[netip.Addr]bool
	known map[netip.Addr]bool // clients that were looked up, and whether they are inside
}

// newPlace takes this node's addresses as they are now. Without them no NodePort's
// flow is touched.
func newPlace(node *model.Node) *here {
	return &here{node: node, mine: conntrack.LocalAddresses(), known: map[netip.Addr]bool{}}
}

// Local implements Place.
func (h *here) Local(a netip.Addr) bool { return h.mine[a] || a.IsLoopback() }

// AnswersNodePorts implements Place.
func (h *here) AnswersNodePorts(a netip.Addr) bool { return h.node.AnswersNodePorts(a) }

// Inside implements Place. Where Pods are told by their interfaces, the route to
// the client says which one is its: an entry does not.
func (h *here) Inside(a netip.Addr) bool {
	if h.Local(a) {
		return true
	}
	if len(h.node.PodInterfaces) == 0 {
		return h.node.IsLocalPod(a, "")
	}
	inside, ok := h.known[a]
	if !ok {
		inside = h.routedToPod(a)
		if len(h.known) < maxKnown {
			h.known[a] = inside
		}
	}
	return inside
}

// maxKnown bounds the clients that are remembered.
const maxKnown = 1 << 14

// routedToPod is true if nobody knows: then the flow stays.
func (h *here) routedToPod(a netip.Addr) bool {
	routes, err := netlink.RouteGet(a.AsSlice())
	if err != nil || len(routes) == 0 {
		return true
	}
	link, err := netlink.LinkByIndex(routes[0].LinkIndex)
	if err != nil {
		return true
	}
	return h.node.IsLocalPod(a, link.Attrs().Name)
}
