// SPDX-License-Identifier: Apache-2.0

package ipvs

import (
	"net/netip"

	"github.com/causeway-lb/causeway/internal/netlink/ipvs"
	"github.com/causeway-lb/causeway/internal/refcount"
)

// wanted adds up what all Services come to.
type wanted struct {
	servers  map[ipvs.Key]*server
	elements refcount.Map[elementID, string]
	// serving counts the virtual and real servers that get new connections.
	serving int
}

// touched names what may differ between wanted and kernel.
type touched struct {
	servers  map[ipvs.Key]bool
	elements map[elementID]bool
	// full says that anything may differ, also what is not named.
	full bool
}

func newWanted() wanted {
	return wanted{servers: map[ipvs.Key]*server{}, elements: refcount.Map[elementID, string]{}}
}

func newTouched() *touched {
	return &touched{servers: map[ipvs.Key]bool{}, elements: map[elementID]bool{}}
}

func (w *wanted) add(r rendered, t *touched) {
	for key, s := range r.servers {
		w.servers[key] = s
		w.serving += s.size()
		t.servers[key] = true
	}
	w.elements.Add(r.elements, t.elements)
}

func (w *wanted) remove(r rendered, t *touched) {
	for key := range r.servers {
		w.serving -= w.servers[key].size()
		delete(w.servers, key)
		t.servers[key] = true
	}
	w.elements.Remove(r.elements, t.elements)
}

// size is 0 for nil, and for one that only stands for what it once had.
func (s *server) size() int {
	if s == nil || len(s.reals) == 0 {
		return 0
	}
	return 1 + len(s.reals)
}

// differences counts what differs between two states of the kernel.
func (k *kernel) differences(o kernel) int {
	n := refcount.Differences(k.elements, o.elements) + refcount.Differences(k.routes, o.routes)
	for key, s := range k.servers {
		p := o.servers[key]
		if p == nil || p.Settings != s.Settings {
			n++
		}
		if p == nil {
			n += len(s.reals)
			continue
		}
		n += refcount.Differences(s.reals, p.reals)
	}
	for key, p := range o.servers {
		if k.servers[key] == nil {
			n += 1 + len(p.reals)
		}
	}
	return n
}

// found is all that the kernel has, others' virtual servers too.
type found struct {
	state
	servers     []ipvs.VirtualServer
	routed, own map[netip.Addr]bool
}

// read asks the kernel.
func (b *Backend) read() (f found, err error) {
	if f.state, err = b.tables.read(); err != nil {
		return f, err
	}
	if f.routed, f.own, err = b.routes.read(); err != nil {
		return f, err
	}
	f.servers, err = b.servers.Read()
	return f, err
}

// load fills have with what of the kernel is ours: see the package's
// documentation. Real servers with weight 0 are taken for draining.
func (b *Backend) load(f found) {
	b.have = kernel{servers: map[ipvs.Key]*present{}, elements: f.elements, routes: f.routed, own: f.own}
	for i := range f.servers {
		s := &f.servers[i]
		if !s.Tag && b.want.servers[s.Key] == nil {
			continue // somebody else's, and not in the way
		}
		p := &present{Settings: s.Settings, reals: map[netip.AddrPort]uint32{}}
		for _, r := range s.Reals {
			p.reals[r.AddrPort] = r.Weight
			if r.Weight == 0 {
				b.drain(s.Key, r.AddrPort)
			}
		}
		b.have.servers[s.Key] = p
	}
	for key := range b.draining {
		if b.have.servers[key] == nil {
			delete(b.draining, key)
		}
	}
}
