// SPDX-License-Identifier: Apache-2.0

package flowmatrix

import (
	"slices"

	"github.com/causeway-lb/causeway/internal/proxy/model"
)

// Limits are what a mode cannot do. docs/modes.md lists the same for users.
type Limits struct {
	// Rows are named as in the table; they must not work.
	Rows []string
	// NodeAddress says that endpoints see an address of the node, never the
	// client's.
	NodeAddress bool
	// OwnMasqueraded says that a connection which comes from a load balancer IP that
	// the node has is masqueraded, wherever its endpoint is.
	OwnMasqueraded bool
	// AffinityApart says that each frontend of a Service port has its own affinity.
	AffinityApart bool
}

// limits by the name of the mode; those not listed can do every row.
var limits = map[string]Limits{
	"ipvs": {AffinityApart: true, OwnMasqueraded: true, Rows: []string{
		"another host's load balancer IP, no such port, from a Pod here",
		"another host's load balancer IP, no such port, from the node",
		"another host's load balancer IP, no such port, policy Local, from a Pod here",
		"another host's load balancer IP, no such port, Pods known by interface",
	}},
	"userspace": {NodeAddress: true, Rows: []string{
		"SCTP, ClusterIP from a Pod here",
		"SCTP, load balancer IP from outside",
		"SCTP, NodePort from outside",
		"SCTP, policy Local",
		"SCTP, hairpin",
	}},
}

// LimitsOf gives the limits of a mode.
func LimitsOf(mode string) Limits { return limits[mode] }

// want is what a row must come to within the limits; cannot is that it must
// not work at all.
func (l Limits) want(r *Row) (w Want, cannot bool) {
	w = r.Want
	if (l.NodeAddress || l.OwnMasqueraded && r.Bound) && !w.Untouched && w.Action == model.Forward {
		w.Masquerade = w.To
	}
	return w, slices.Contains(l.Rows, r.Name)
}
