// SPDX-License-Identifier: Apache-2.0

package nodeinfo

import (
	"net/netip"
	"slices"

	"github.com/causeway-lb/causeway/internal/announce/elect"
)

// Info is what a node publishes about itself in addition to what the API server has.
type Info struct {
	// See elect.Node.
	Starting, InSync, Leaving bool
	Interfaces                []Interface
}

// Interface is one on which addresses may be announced.
type Interface struct {
	elect.Interface
	MAC MAC
	// Ports are the hardware addresses of a bond's ports.
	Ports []MAC
}

// The first byte of the encoding is its version. Nodes ignore a version that they do
// not know, so that during an upgrade with a new one each half elects among itself
// and the link fences.
const (
	version    = 2
	oldVersion = 1 // without the ports
)

const (
	flagInSync   = 1 << 0
	flagLeaving  = 1 << 1
	flagStarting = 1 << 2

	flagUp       = 1 << 0
	flagDefault4 = 1 << 1
	flagDefault6 = 1 << 2

	// The elect.Reception; agents that do not know it ignore these bits.
	shiftReception = 3
	maskReception  = 3
)

// Encode returns at most limit bytes; 64 KiB have room for more than a thousand
// interfaces. Those that do not fit are left out, and whole is false.
//
//	version 1 | flags 1 | interface ...
//	interface: len 1 | name | MAC 6 | flags 1 | count 1 | subnet ... | count 1 | port MAC 6 ...
//	subnet:    family 1 (4 or 6) | bits 1 | as many bytes as the bits need;
//	           one that is Second is there twice
func (f Info) Encode(limit int) (b []byte, whole bool) { return f.encode(version, limit) }

// EncodeOld is Encode for agents of a former version.
func (f Info) EncodeOld(limit int) []byte {
	b, _ := f.encode(oldVersion, limit)
	return b
}

func (f Info) encode(version byte, limit int) (b []byte, whole bool) {
	b = []byte{version, 0}
	if f.InSync {
		b[1] |= flagInSync
	}
	if f.Leaving {
		b[1] |= flagLeaving
	}
	if f.Starting {
		b[1] |= flagStarting
	}
	for _, l := range f.Interfaces {
		e := l.encode(version)
		if len(b)+len(e) > limit {
			return b, false
		}
		b = append(b, e...)
	}
	return b, true
}

func (l Interface) encode(version byte) []byte {
	b := append([]byte{byte(len(l.Name))}, l.Name...)
	b = append(b, l.MAC[:]...)
	var flags byte
	for flag, set := range map[byte]bool{flagUp: l.Up, flagDefault4: l.Default4, flagDefault6: l.Default6} {
		if set {
			flags |= flag
		}
	}
	flags |= byte(min(l.Reception, elect.Silent)) << shiftReception
	subnets, ports := slices.Concat(l.Subnets, l.Second), l.Ports[:min(len(l.Ports), 255)]
	subnets = subnets[:min(len(subnets), 255)]
	b = append(b, flags, byte(len(subnets)))
	for _, p := range subnets {
		family := byte(6)
		if p.Addr().Is4() {
			family = 4
		}
		b = append(b, family, byte(p.Bits()))
		b = append(b, p.Addr().AsSlice()[:(p.Bits()+7)/8]...)
	}
	if version == oldVersion {
		return b
	}
	b = append(b, byte(len(ports)))
	for _, p := range ports {
		b = append(b, p[:]...)
	}
	return b
}

// Decode returns false for anything that Encode and EncodeOld did not make.
func Decode(b []byte) (Info, bool) {
	if len(b) < 2 || b[0] != version && b[0] != oldVersion {
		return Info{}, false
	}
	f := Info{Starting: b[1]&flagStarting != 0, InSync: b[1]&flagInSync != 0, Leaving: b[1]&flagLeaving != 0, Interfaces: []Interface{}}
	r := reader{b: b[2:]}
	for len(r.b) > 0 {
		var l Interface
		l.Name = string(r.take(int(r.byte())))
		copy(l.MAC[:], r.take(6))
		flags := r.byte()
		l.Up, l.Default4, l.Default6 = flags&flagUp != 0, flags&flagDefault4 != 0, flags&flagDefault6 != 0
		l.Reception = min(elect.Reception(flags>>shiftReception&maskReception), elect.Silent)
		for range r.byte() {
			switch p := r.subnet(); {
			case !p.IsValid():
			case slices.Contains(l.Subnets, p):
				l.Second = append(l.Second, p)
			default:
				l.Subnets = append(l.Subnets, p)
			}
		}
		if b[0] == version {
			for range r.byte() {
				var port MAC
				copy(port[:], r.take(len(port)))
				l.Ports = append(l.Ports, port)
			}
		}
		if r.bad || l.Name == "" {
			return Info{}, false
		}
		f.Interfaces = append(f.Interfaces, l)
	}
	return f, true
}

// reader takes bytes off the front; bad reports that there were too few.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) take(n int) []byte {
	if len(r.b) < n {
		r.bad, r.b = true, nil
		return nil
	}
	out := r.b[:n]
	r.b = r.b[n:]
	return out
}

func (r *reader) byte() byte {
	if b := r.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (r *reader) subnet() netip.Prefix {
	family, bits := r.byte(), int(r.byte())
	var a [16]byte
	size := map[byte]int{4: 4, 6: 16}[family]
	if bits > size*8 {
		r.bad = true
		return netip.Prefix{}
	}
	copy(a[:], r.take((bits+7)/8))
	addr, _ := netip.AddrFromSlice(a[:size])
	return netip.PrefixFrom(addr, bits)
}
