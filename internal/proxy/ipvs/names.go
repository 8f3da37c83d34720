// SPDX-License-Identifier: Apache-2.0

package ipvs

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"github.com/causeway-lb/causeway/internal/netlink/nft"
	"github.com/causeway-lb/causeway/internal/netlink/nft/expr"
	"github.com/causeway-lb/causeway/internal/proxy/elements"
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
	return nft.Table{Family: nft.FamilyOf(f.Unspecified()), Name: Name}
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
func sets(f model.Family) []nft.Set {
	addr := tableOf(f).Family.AddrType()
	type ts = []nft.Type
	frontend, port, mark := ts{addr, nft.TypeProto, nft.TypeService}, ts{nft.TypeProto, nft.TypeService}, ts{nft.TypeMark}
	all := []nft.Set{
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
func (a action) data() string { return string(expr.Word(uint32(a))) }

func actionOf(data string) action {
	if len(data) < 4 {
		return 0
	}
	return action(binary.NativeEndian.Uint32([]byte(data)))
}

// byMark says whether a chooses a virtual server by mark.
func (a action) byMark() bool { return a&markMask == markBase && a&markIndex != 0 }

// elementID tells elements apart.
type elementID = elements.ID[setID]

// addrOf is the address of an element of setAddresses.
func addrOf(id elementID) netip.Addr {
	a, _ := netip.AddrFromSlice([]byte(id.Key))
	return a
}

// protocolOf is that of an element of a services map.
func protocolOf(id elementID) model.Protocol {
	k, _ := elements.Frontend(id.Family, id.Key, id.Set == setServices || id.Set == setServicesOutside)
	return k.Protocol
}
