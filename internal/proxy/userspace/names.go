// SPDX-License-Identifier: Apache-2.0

package userspace

import (
	"cmp"
	"encoding/binary"
	"net/netip"

	"github.com/causeway-lb/causeway/internal/netlink/nft"
	"github.com/causeway-lb/causeway/internal/netlink/nft/expr"
	"github.com/causeway-lb/causeway/internal/proxy/model"
)

// Name is what the nf_tables tables are called.
const Name = "causeway-userspace"

// setID names a set or map of the tables.
type setID uint8

const (
	setServices         setID = iota // frontend -> action
	setServicesOutside               // the same, seen from outside if that differs
	setNodePorts                     // protocol . port -> action
	setNodePortsOutside              // the same, seen from outside if that differs
	setClusterIPs                    // addresses: other ports are refused
	setLoadBalancerIPs               // the same, from outside
	setRestricted                    // frontends with source ranges
	setSourceRanges                  // frontend . client range
	setLocalPods                     // ranges of the Pods of this node
	setNodePortAddresses
	numSets
)

var setNames = [numSets]string{
	"services", "services-outside", "node-ports", "node-ports-outside", "cluster-ips", "load-balancer-ips",
	"restricted", "source-ranges", "local-pods", "node-port-addresses",
}

// String is the set's name in the kernel.
func (s setID) String() string { return setNames[s] }

func tableOf(f model.Family) nft.Table {
	if f == model.IPv4 {
		return nft.Table{Family: nft.FamilyIPv4, Name: Name}
	}
	return nft.Table{Family: nft.FamilyIPv6, Name: Name}
}

// setsOf describes the sets of a family's table.
func setsOf(f model.Family) [numSets]nft.Set {
	addr := nft.TypeIPv4
	if f == model.IPv6 {
		addr = nft.TypeIPv6
	}
	type ts = []nft.Type
	frontend, port, mark := ts{addr, nft.TypeProto, nft.TypeService}, ts{nft.TypeProto, nft.TypeService}, ts{nft.TypeMark}
	all := [numSets]nft.Set{
		setServices: {Key: frontend, Data: mark}, setServicesOutside: {Key: frontend, Data: mark},
		setNodePorts: {Key: port, Data: mark}, setNodePortsOutside: {Key: port, Data: mark},
		setClusterIPs: {Key: ts{addr}}, setLoadBalancerIPs: {Key: ts{addr}}, setRestricted: {Key: frontend},
		setSourceRanges: {Key: append(ts{addr, nft.TypeProto, nft.TypeService}, addr), Interval: true},
		setLocalPods:    {Key: ts{addr}, Interval: true}, setNodePortAddresses: {Key: ts{addr}, Interval: true},
	}
	for id := range all {
		all[id].Table, all[id].Name = tableOf(f), setNames[id]
	}
	return all
}

// action is the value of a services map, and the packet's mark from then on.
type action uint32

const (
	actionReject action = 1
	actionDrop   action = 2
	// Mark is what packets have that belong to the proxy, all of its bits: a
	// routing rule makes them local.
	Mark action = 0x5b000001
)

// data is the action as a map's value.
func (a action) data() string { return string(expr.Word(uint32(a))) }

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

// compare orders elements by family, set and key, the end of a range before the
// start of the next: the kernel refuses a range that is closed before it opens.
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

// frontendKey encodes address . protocol . port, without the address for a
// NodePort.
func frontendKey(k model.Key) string {
	var b []byte
	if !k.Addr.IsUnspecified() {
		b = append(b, k.Addr.AsSlice()...)
	}
	b = append(b, byte(k.Protocol), 0, 0, 0)
	b = binary.BigEndian.AppendUint16(b, k.Port)
	return string(append(b, 0, 0))
}

// dialled is the frontend of an element of a services map.
func (e elementID) dialled() (model.Key, bool) {
	key := model.Key{Addr: e.family.Unspecified()}
	b := []byte(e.key)
	switch e.set {
	case setServices, setServicesOutside:
		n := len(key.Addr.AsSlice())
		if len(b) < n {
			return key, false
		}
		key.Addr, _ = netip.AddrFromSlice(b[:n])
		b = b[n:]
	case setNodePorts, setNodePortsOutside:
	default:
		return key, false
	}
	if len(b) < 6 {
		return key, false
	}
	key.Protocol, key.Port = model.Protocol(b[0]), binary.BigEndian.Uint16(b[4:])
	return key, true
}
