// SPDX-License-Identifier: Apache-2.0

package nftables

import (
	"encoding/binary"
	"hash/fnv"
	"net/netip"

	"github.com/causeway-lb/causeway/internal/proxy/model"
)

// exact is the table of up to 64 endpoints that get one slot each.
var exact = func() (table [64]int) {
	for i := range table {
		table[i] = i
	}
	return table
}()

// slotTable gives the endpoint, as an index into eps, of every slot. It
// depends on the set of endpoints only. eps must not be empty; the table must
// not be changed.
func slotTable(eps []model.Endpoint) []int {
	if n := model.Slots(eps); n > len(eps) || n > len(exact) {
		return maglev(eps, n)
	}
	return exact[:len(eps)]
}

func weight(ep *model.Endpoint) int { return max(int(ep.Weight), 1) }

// maglev fills a table of size slots, a power of two: each endpoint walks the
// slots in an order of its own and takes the next free one when it is its
// turn; turns come in proportion to the weights. (Eisenbud and others,
// "Maglev: A Fast and Reliable Software Network Load Balancer", NSDI 2016,
// section 3.4; there size is prime, here an odd step makes the walk complete.)
func maglev(eps []model.Endpoint, size int) []int {
	table := make([]int, size)
	for i := range table {
		table[i] = -1
	}
	type walk struct {
		next, step uint32
		credit     int
	}
	walks := make([]walk, len(eps))
	heaviest := 1
	for i := range eps {
		h := endpointHash(eps[i].AddrPort)
		walks[i] = walk{next: uint32(h), step: uint32(h>>32) | 1}
		heaviest = max(heaviest, weight(&eps[i]))
	}
	mask := uint32(size - 1)
	for filled := 0; ; {
		for i := range eps {
			w := &walks[i]
			w.credit += weight(&eps[i])
			if w.credit < heaviest {
				continue
			}
			w.credit -= heaviest
			for table[w.next&mask] >= 0 {
				w.next += w.step
			}
			table[w.next&mask] = i
			if filled++; filled == size {
				return table
			}
		}
	}
}

// endpointHash does not depend on the process, as a restarted agent must find
// its own tables unchanged.
func endpointHash(ap netip.AddrPort) uint64 {
	h := fnv.New64a()
	a := ap.Addr().As16()
	_, _ = h.Write(a[:])
	_, _ = h.Write(binary.BigEndian.AppendUint16(nil, ap.Port()))
	// FNV leaves neighbours' high bits alike: mix once more.
	x := h.Sum64()
	x ^= x >> 33
	x *= 0xff51afd7ed558ccd
	x ^= x >> 33
	x *= 0xc4ceb9fe1a85ec53
	return x ^ x>>33
}

// endpointNumbers gives each endpoint the number under which clients with
// affinity remember it. A number stays with its endpoint when others come and
// go; the rare collision is settled in the order of addresses.
func endpointNumbers(eps []model.Endpoint) []uint32 {
	numbers := make([]uint32, len(eps))
	taken := make(map[uint32]bool, len(eps))
	for i := range eps {
		n := uint32(endpointHash(eps[i].AddrPort))
		for taken[n] {
			n++
		}
		taken[n] = true
		numbers[i] = n
	}
	return numbers
}
