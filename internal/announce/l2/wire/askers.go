// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"net/netip"
	"time"
)

// Bounds of what is kept of askers: how many in all and of one address, and for how
// long.
const (
	maxRecent        = 1024
	maxRecentAddress = 64
	recentAge        = time.Hour
)

// askedBy is a host that asked for an address.
type askedBy struct{ address, asker netip.Addr }

// recent are the hosts that asked lately. The oldest make room for new ones, so
// that a flood from made-up hosts costs no memory.
type recent struct {
	hosts map[askedBy]lately
	order []askedBy // in which they came first; as a ring once it is full
	at    int
}

type lately struct {
	mac MAC
	at  time.Time
}

func (r *recent) note(now time.Time, m Message) {
	key := askedBy{m.Address, m.Asker}
	if _, ok := r.hosts[key]; !ok {
		if len(r.order) < maxRecent {
			r.order = append(r.order, key)
		} else {
			delete(r.hosts, r.order[r.at])
			r.order[r.at] = key
			r.at = (r.at + 1) % maxRecent
		}
	}
	r.hosts[key] = lately{m.From, now}
}

// of returns the hosts that asked for address, as questions to be answered.
func (r *recent) of(now time.Time, address netip.Addr) []Message {
	var out []Message
	for key, host := range r.hosts {
		if key.address == address && now.Sub(host.at) < recentAge && len(out) < maxRecentAddress {
			out = append(out, Message{Kind: Question, Address: address, Asker: key.asker, From: host.mac})
		}
	}
	return out
}
