// SPDX-License-Identifier: Apache-2.0

package elements

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/causeway-lb/causeway/internal/netlink/nft"
	"github.com/causeway-lb/causeway/internal/proxy/model"
	"github.com/causeway-lb/causeway/internal/refcount"
)

// Set is the number of a set of a mode; its String is the set's name in the kernel.
type Set interface {
	~uint8
	fmt.Stringer
}

// ID tells elements apart: two with the same cannot both exist.
type ID[S Set] struct {
	Family model.Family
	Set    S
	Key    string // the kernel's bytes
	KeyEnd string // of a range over a concatenation
	End    bool   // the exclusive end of a range
}

// Element returns the element with a value, "" where the set has none.
func (id ID[S]) Element(value string) nft.Element {
	return nft.Element{Key: id.Key, KeyEnd: id.KeyEnd, End: id.End, Value: value}
}

// Compare orders elements by family, set and key, the end of a range before the
// start of the next: the kernel refuses a range that is closed before it opens.
func (id ID[S]) Compare(o ID[S]) int {
	start := func(id ID[S]) int {
		if id.End {
			return 0
		}
		return 1
	}
	return cmp.Or(cmp.Compare(id.Family, o.Family), cmp.Compare(id.Set, o.Set), cmp.Compare(id.Key, o.Key),
		cmp.Compare(start(id), start(o)), cmp.Compare(id.KeyEnd, o.KeyEnd))
}

// Edit is the change of one element.
type Edit[S Set] = refcount.Edit[ID[S], string]

// Map is values by element, "" where a set has none.
type Map[S Set] map[ID[S]]string

// Address adds an address to a set.
func (m Map[S]) Address(set S, a netip.Addr) {
	m[ID[S]{Family: model.FamilyOf(a), Set: set, Key: string(a.AsSlice())}] = ""
}

// SourceRanges adds a frontend to the set of those that only some clients may use,
// and which ones.
func (m Map[S]) SourceRanges(f *model.Frontend, restricted, ranges S) {
	if !f.Restricted {
		return
	}
	key := FrontendKey(f.Key)
	m[ID[S]{Family: f.Family(), Set: restricted, Key: key}] = ""
	for _, p := range f.SourceRanges {
		m[ID[S]{
			Family: f.Family(), Set: ranges,
			Key: key + string(p.Addr().AsSlice()), KeyEnd: key + string(model.RangeOf(p).Last.AsSlice()),
		}] = ""
	}
}

// Node returns the elements that follow from the node alone: the ranges of its Pods
// and of the addresses at which NodePorts answer.
func Node[S Set](n *model.Node, families []model.Family, localPods, nodePorts S) Map[S] {
	m := Map[S]{}
	for _, f := range families {
		var pods []netip.Prefix
		for _, p := range n.PodCIDRs {
			if model.FamilyOf(p.Addr()) == f {
				pods = append(pods, p.Masked())
			}
		}
		for _, p := range model.Disjoint(pods) {
			m.addRange(ID[S]{Family: f, Set: localPods}, model.RangeOf(p))
		}
		for _, r := range n.NodePortRanges(f) {
			m.addRange(ID[S]{Family: f, Set: nodePorts}, r)
		}
	}
	return m
}

// addRange writes an inclusive range the way a single-part interval set wants
// it: its start, and the first address behind it marked as the end.
func (m Map[S]) addRange(id ID[S], r model.AddrRange) {
	id.Key = string(r.First.AsSlice())
	m[id] = ""
	if next := r.Last.Next(); next.IsValid() {
		id.Key, id.End = string(next.AsSlice()), true
		m[id] = ""
	}
}

// FrontendKey encodes address . protocol . port, without the address for a
// NodePort.
func FrontendKey(k model.Key) string {
	var b []byte
	if !k.Addr.IsUnspecified() {
		b = append(b, k.Addr.AsSlice()...)
	}
	b = append(b, byte(k.Protocol), 0, 0, 0)
	b = binary.BigEndian.AppendUint16(b, k.Port)
	return string(append(b, 0, 0))
}

// Frontend decodes a FrontendKey, with an address or without. ok is false for what
// is none.
func Frontend(f model.Family, key string, address bool) (k model.Key, ok bool) {
	k.Addr = f.Unspecified()
	b := []byte(key)
	if n := len(k.Addr.AsSlice()); address && len(b) >= n {
		k.Addr, _ = netip.AddrFromSlice(b[:n])
		b = b[n:]
	}
	const length = 8
	if len(b) != length {
		return model.Key{}, false
	}
	k.Protocol, k.Port = model.Protocol(b[0]), binary.BigEndian.Uint16(b[4:])
	return k, true
}
