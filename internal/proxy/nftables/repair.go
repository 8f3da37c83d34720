// SPDX-License-Identifier: Apache-2.0

package nftables

import (
	"maps"
	"slices"
	"sync"

	"github.com/causeway-lb/causeway/internal/netlink/nft"
	"github.com/causeway-lb/causeway/internal/proxy/backend"
	"github.com/causeway-lb/causeway/internal/proxy/model"
)

// maxPinpointed bounds how many elements are looked at one by one. Beyond it,
// to read everything costs less than it may seem, and memory is bounded.
const maxPinpointed = 1000

// damage is what others did to the tables.
type damage struct {
	// whole says that it is not known, or was more than to elements: everything is
	// to be read back.
	whole bool
	// keys are those of the elements that came or went, by family and set.
	keys  map[nft.Family]*setKeys
	count int
}

type setKeys [numSets]map[string]bool

// heard gathers damage. Safe for concurrent use.
type heard struct {
	mu     sync.Mutex
	damage damage
}

// takePinpointed empties it, unless the damage is not known in detail.
func (h *heard) takePinpointed() damage {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.damage.whole {
		return damage{}
	}
	taken := h.damage
	h.damage = damage{}
	return taken
}

// take empties it.
func (h *heard) take() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.damage = damage{}
}

func (h *heard) pinpointed() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return !h.damage.whole
}

// note takes note of a change, and says whether it was one to our tables that is
// to be undone.
func (h *heard) note(c *nft.Change) bool {
	if c.Table.Name != TableName && c.Table.Name != "" {
		return false
	}
	set := setID(slices.Index(setNames[:], c.Set)) // the largest setID if there is none
	if set < numSets && set.dynamic() {
		return false // its elements are the kernel's own
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	// Classes are few, and which of them are left from before only a full Sync
	// can tell.
	if h.damage.whole || set >= numSets || set.classes() {
		h.damage = damage{whole: true}
		return true
	}
	keys := h.damage.keys[c.Table.Family]
	if keys == nil {
		keys = &setKeys{}
		if h.damage.keys == nil {
			h.damage.keys = map[nft.Family]*setKeys{}
		}
		h.damage.keys[c.Table.Family] = keys
	}
	if keys[set] == nil {
		keys[set] = map[string]bool{}
	}
	c.Elements(func(e *nft.RawElement) {
		if set.flat() && !keys[set][string(e.Key)] {
			keys[set][string(e.Key)] = true
			h.damage.count++
		}
	})
	if h.damage.count > maxPinpointed {
		h.damage = damage{whole: true}
	}
	return true
}

// repair brings the elements that other programs touched back to what had says.
func (b *Backend) repair(h damage, had model.Desired) (backend.Report, error) {
	var tx nft.Batch
	var report backend.Report
	for _, f := range b.families {
		keys := h.keys[f.table.Family]
		if keys == nil {
			continue
		}
		p, err := f.planRepair(b.conn, had, keys)
		if err != nil {
			return backend.Report{}, err
		}
		p.write(&tx)
		report = report.Add(p.report)
	}
	if err := b.conn.Commit(&tx); err != nil {
		return backend.Report{}, err
	}
	report.Objects = 0
	for _, f := range b.families { // as many as before
		report.Objects += f.objects
	}
	return report, nil
}

// planRepair is plan for some elements: those with the keys of a flat set, and
// all of any other that has keys.
func (f *family) planRepair(c *nft.Conn, had model.Desired, keys *setKeys) (*plan, error) {
	p := &plan{f: f, want: had, settled: true, exists: true, loose: map[elementID]nft.Element{}}
	for id, s := range sets(f.table) {
		if setID(id).flat() && keys[id] != nil {
			p.flat[id] = newTable(s.KeyLen(), s.DataLen())
		}
	}
	p.everything(func(e element) {
		if k := keys[e.set]; k != nil && (!e.set.flat() || k[e.Key]) {
			p.put(e)
		}
	})
	for id := range numSets {
		var err error
		switch {
		case keys[id] == nil:
		case id.flat():
			err = p.compareKeys(c, id, keys[id])
		default:
			err = p.compareLoose(c, id)
		}
		if err != nil {
			return nil, err
		}
	}
	return p, nil
}

// compareKeys brings elements of a flat set to what they must be.
func (p *plan) compareKeys(c *nft.Conn, set setID, keys map[string]bool) error {
	t := p.flat[set]
	for _, key := range slices.Sorted(maps.Keys(keys)) {
		have, exists, err := c.Element(p.f.table, set.String(), key)
		if err != nil {
			return err
		}
		i := t.find([]byte(key))
		if exists == (i >= 0) && (!exists || have.Value == string(t.value(i))) {
			continue
		}
		p.drift()
		if exists {
			p.remove(set, nft.Element{Key: key})
		}
		if i >= 0 {
			p.insert(set, nft.Element{Key: key, Value: string(t.value(i))})
		}
	}
	return nil
}
