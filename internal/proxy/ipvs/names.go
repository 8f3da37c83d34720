// SPDX-License-Identifier: Apache-2.0

package ipvs

import (
	"cmp"
	"encoding/binary"
	"net/netip"
	"slices"

	"github.com/causeway-lb/causeway/internal/netlink/nft"
	"github.com/causeway-lb/causeway/internal/proxy/model"
)

// Name is what the nf_tables tables and the dummy interface are called.
const Name = "causeway-ipvs"

const familyARP nft.Family = 3 // NFPROTO_ARP

// setID names a set or map of the tables.
type setID uint8

const (
	setServices         setID = iota // frontend -> action
	setServicesOutside               // the same, seen from outside if that differs
	setNodePorts                     // protocol . port -> action
	setNodePortsOutside              // the same, seen from outside if that differs
	setAddresses                     // all but those of NodePorts: other ports are refused
	setRestricted                    // frontends with source ranges
	setSourceRanges                  // frontend . client range
	setLocalEndpoints                // addresses of endpoints on this node
	setHairpin                       // the same, as client . endpoint
	setLocalPods                     // ranges of the Pods of this node
	setNodePortAddresses
	setLoopbackPorts // protocol . port . slot -> endpoint
	numSets
)

var setNames = [numSets]string{
	"services", "services-outside", "node-ports", "node-ports-outside", "addresses", "restricted", "source-ranges",
	"local-endpoints", "hairpin", "local-pods", "node-port-addresses", "loopback-ports",
}

// String is the set's name in the kernel.
func (s setID) String() string { return setNames[s] }

func tableOf(f model.Family) nft.Table {
	if f == model.IPv4 {
		return nft.Table{Family: nft.FamilyIPv4, Name: Name}
	}
	return nft.Table{Family: nft.FamilyIPv6, Name: Name}
}

var arpTable = nft.Table{Family: familyARP, Name: Name}

// repliesOf is the table that corrects replies. It stands alone because
// connections need it as long as IPVS has them: longer than the other.
func repliesOf(f model.Family) nft.Table {
	t := tableOf(f)
	t.Name += "-replies"
	return t
}

// tablesFor are all tables of these families.
func tablesFor(families []model.Family) []nft.Table {
	var out []nft.Table
	for _, f := range families {
		out = append(out, tableOf(f), repliesOf(f))
	}
	if slices.Contains(families, model.IPv4) {
		out = append(out, arpTable)
	}
	return out
}

// sets describes the sets of a family's table.
func sets(f model.Family) [numSets]nft.Set {
	addr := nft.TypeIPv4
	if f == model.IPv6 {
		addr = nft.TypeIPv6
	}
	type ts = []nft.Type
	frontend, port, mark := ts{addr, nft.TypeProto, nft.TypeService}, ts{nft.TypeProto, nft.TypeService}, ts{nft.TypeMark}
	all := [numSets]nft.Set{
		setServices: {Key: frontend, Data: mark}, setServicesOutside: {Key: frontend, Data: mark},
		setNodePorts: {Key: port, Data: mark}, setNodePortsOutside: {Key: port, Data: mark},
		setAddresses: {Key: ts{addr}}, setRestricted: {Key: frontend},
		setSourceRanges:   {Key: append(ts{addr, nft.TypeProto, nft.TypeService}, addr), Interval: true},
		setLocalEndpoints: {Key: ts{addr}}, setHairpin: {Key: ts{addr, addr}},
		setLocalPods: {Key: ts{addr}, Interval: true}, setNodePortAddresses: {Key: ts{addr}, Interval: true},
		setLoopbackPorts: {Key: ts{nft.TypeProto, nft.TypeService, nft.TypeMark}, Data: ts{addr, nft.TypeService}},
	}
	for id := range all {
		all[id].Table, all[id].Name = tableOf(f), setNames[id]
	}
	return all
}

// arpSet has the IPv4 addresses that the kernel must not answer ARP for.
var arpSet = nft.Set{Table: arpTable, Name: setAddresses.String(), Key: []nft.Type{nft.TypeIPv4}}

// action is the value of a services map: a small number refuses, any other is
// the mark that the packet gets.
type action uint32

const (
	actionReject action = 1
	actionDrop   action = 2

	markBase   action = 0x5c000000
	markMask   action = 0xff000000
	markInside action = 1 << 23 // the client is on this node
	// markIndex tells virtual servers apart. Index 0 leaves the choice to address
	// and port. The bits between belong to the iptables mode.
	markIndex action = 1<<19 - 1
	// markKeep says that the endpoint is to see the client's address although all
	// other connections are masqueraded.
	markKeep action = 1 << 19
	// markProbe has the last index, which no virtual server is given.
	markProbe = markBase | markIndex
)

// data is the action as a map's value.
func (a action) data() string { return string(binary.NativeEndian.AppendUint32(nil, uint32(a))) }

func actionOf(data string) action {
	if len(data) < 4 {
		return 0
	}
	return action(binary.NativeEndian.Uint32([]byte(data)))
}

// byMark says whether a chooses a virtual server by mark.
func (a action) byMark() bool { return a&markMask == markBase && a&markIndex != 0 }

// elementID tells elements apart: two with the same cannot both exist.
type elementID struct {
	family model.Family
	set    setID
	key    string // the kernel's bytes
	keyEnd string // of a range over a concatenation
	end    bool   // the exclusive end of a range
}

func (e elementID) element(value string) nft.Element {
	return nft.Element{Key: e.key, KeyEnd: e.keyEnd, End: e.end, Value: value}
}

// compare orders elements by family, set and key, the end of a range before
// the start of the next.
func (e elementID) compare(o elementID) int {
	end := func(e elementID) int {
		if e.end {
			return 0
		}
		return 1
	}
	return cmp.Or(cmp.Compare(e.family, o.family), cmp.Compare(e.set, o.set), cmp.Compare(e.key, o.key),
		cmp.Compare(end(e), end(o)), cmp.Compare(e.keyEnd, o.keyEnd))
}

// addr is the address of an element of setAddresses.
func (e elementID) addr() netip.Addr {
	a, _ := netip.AddrFromSlice([]byte(e.key))
	return a
}

// protocol is that of an element of a services map.
func (e elementID) protocol() model.Protocol {
	key := e.key
	if e.set == setServices || e.set == setServicesOutside {
		key = key[len(e.family.Unspecified().AsSlice()):]
	}
	return model.Protocol(key[0])
}

// appendFrontend encodes address . protocol . port, without the address for a
// NodePort.
func appendFrontend(b []byte, k model.Key) []byte {
	if !k.Addr.IsUnspecified() {
		b = append(b, k.Addr.AsSlice()...)
	}
	b = append(b, byte(k.Protocol), 0, 0, 0)
	b = binary.BigEndian.AppendUint16(b, k.Port)
	return append(b, 0, 0)
}
