// SPDX-License-Identifier: Apache-2.0

package flowmatrix

import (
	"github.com/causeway-lb/causeway/internal/inspect"
	"github.com/causeway-lb/causeway/internal/proxy/model"
)

// Traced returns what becomes of a packet in s, in the terms of the table.
func Traced(d model.Desired, s inspect.State, p inspect.Packet) Want {
	path := inspect.Trace(d, s, p)
	w := map[inspect.Verdict]Want{inspect.NotService: untouched, inspect.Rejected: rejected, inspect.Dropped: dropped}[path.Verdict]
	w.Sticky = path.Sticky
	for _, hop := range path.Endpoints {
		place := PlaceOf(hop.Addr())
		w.To = append(w.To, place)
		if hop.Masqueraded {
			w.Masquerade = append(w.Masquerade, place)
		}
	}
	w.To, w.Masquerade = sortedPlaces(w.To), sortedPlaces(w.Masquerade)
	return w
}
