// SPDX-License-Identifier: Apache-2.0

package flowmatrix

import (
	"github.com/causeway-lb/causeway/internal/proxy/model"
)

// Decided is what the model says of a row, in the terms of the table.
func Decided(r *Row, d *model.Desired, f model.Family) Want {
	p := r.Packet(f)
	dec := d.Decide(p)
	if !dec.Ours {
		return Want{Untouched: true}
	}
	w := Want{Action: dec.Action, Sticky: dec.Affinity > 0}
	for _, ep := range dec.Endpoints {
		place := PlaceOf(ep.AddrPort.Addr())
		w.To = append(w.To, place)
		if d.Node.Masquerades(p, dec.Frontend, ep) {
			w.Masquerade = append(w.Masquerade, place)
		}
	}
	w.To, w.Masquerade = sortedPlaces(w.To), sortedPlaces(w.Masquerade)
	return w
}
