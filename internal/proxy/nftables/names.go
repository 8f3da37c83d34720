// SPDX-License-Identifier: Apache-2.0

package nftables

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/causeway-lb/causeway/internal/netlink/nft"
	"github.com/causeway-lb/causeway/internal/proxy/model"
)

// TableName is the name of the tables that this package owns, one a family.
const TableName = "causeway"

// referenceName is the name of a table that is there for a moment at the
// start: see family.learn.
const referenceName = TableName + "-reference"

// setID names one of the sets and maps of a table.
type setID uint8

// The sets and maps. Those of a use come in fours, in the order of use.index:
// addresses from inside, from outside, NodePorts from inside, from outside.
const (
	setServices          = setID(4 * iota) // frontend -> class
	setEndpoints                           // frontend . slot -> endpoint
	setAffinitySlots                       // frontend . slot -> endpoint's number
	setAffinityEndpoints                   // frontend . endpoint's number -> endpoint
	setClasses                             // class -> verdict
	setFirstSingle
)

// The sets that there is one of.
const (
	setClusterIPs             = setFirstSingle + iota // addresses (shared)
	setLoadBalancerIPs                                // addresses (shared)
	setRestricted                                     // frontends with source ranges
	setSourceRanges                                   // frontend . client range
	setLocalEndpoints                                 // addresses of endpoints on this node (shared)
	setHairpin                                        // the same, as client . endpoint (shared)
	setLocalPods                                      // ranges of the Pods of this node
	setNodePortAddresses                              // ranges of local addresses
	setAffinityGroups                                 // frontend -> the group of frontends that share affinity
	setNodePortAffinityGroups                         // the same for NodePorts
	setKeepsClient                                    // frontends of policy Local, if all others are masqueraded
	setNodePortKeepsClient                            // the same for NodePorts
	setAffinity                                       // client . group -> endpoint's number; the kernel writes it
	numSets
)

var setNames = func() (names [numSets]string) {
	for id, base := range map[setID][2]string{
		setServices:          {"services", "node-ports"},
		setEndpoints:         {"endpoints", "node-port-endpoints"},
		setAffinitySlots:     {"affinity-slots", "node-port-affinity-slots"},
		setAffinityEndpoints: {"affinity-endpoints", "node-port-affinity-endpoints"},
		setClasses:           {"classes", "node-port-classes"},
	} {
		names[id], names[id+1] = base[0], base[0]+"-outside"
		names[id+2], names[id+3] = base[1], base[1]+"-outside"
	}
	copy(names[setFirstSingle:], []string{
		"cluster-ips", "load-balancer-ips", "restricted", "source-ranges", "local-endpoints", "hairpin",
		"local-pods", "node-port-addresses", "affinity-groups", "node-port-affinity-groups", "keeps-client", "node-port-keeps-client", "affinity",
	})
	return names
}()

// String is the set's name in the kernel.
func (s setID) String() string { return setNames[s] }

// shared says that several Services can have the same element, so that they
// are counted.
func (s setID) shared() bool {
	switch s {
	case setClusterIPs, setLoadBalancerIPs, setLocalEndpoints, setHairpin:
		return true
	}
	return s.classes()
}

// classes says that s is one of the maps from class to verdict.
func (s setID) classes() bool { return s >= setClasses && s < setClasses+4 }

// ranges says that the set has ranges of addresses, as pairs of elements that
// the kernel lets go only in a certain order: it is replaced as a whole.
func (s setID) ranges() bool { return s == setLocalPods || s == setNodePortAddresses }

// dynamic says that rules fill the map, so that its elements are the kernel's.
func (s setID) dynamic() bool { return s == setAffinity }

// flat says that all elements of the set have keys of one length and values
// of one length, none of them an end of a range.
func (s setID) flat() bool {
	return !s.classes() && !s.ranges() && !s.dynamic() && s != setSourceRanges
}

// affinityEntries bounds the affinity map: clients times Service ports that are
// remembered at a time. When it is full new clients are balanced without.
const affinityEntries = 1 << 18

// sets describes all sets of a table.
func sets(t nft.Table) [numSets]nft.Set {
	addr := t.Family.AddrType()
	type ts = []nft.Type
	port := ts{nft.TypeProto, nft.TypeService}
	frontend := append(ts{addr}, port...)
	endpoint, number := ts{addr, nft.TypeService}, ts{nft.TypeMark}
	var all [numSets]nft.Set
	for _, u := range uses {
		key := frontend
		if u.nodePort {
			key = port
		}
		slot := slices.Concat(key, number)
		all[u.of(setServices)] = nft.Set{Key: key, Data: number}
		all[u.of(setEndpoints)] = nft.Set{Key: slot, Data: endpoint}
		all[u.of(setAffinitySlots)] = nft.Set{Key: slot, Data: number}
		all[u.of(setAffinityEndpoints)] = nft.Set{Key: slot, Data: endpoint}
		all[u.of(setClasses)] = nft.Set{Key: number, Data: ts{nft.TypeVerdict}}
		all[u.groups()] = nft.Set{Key: key, Data: number}
	}
	for _, id := range []setID{setClusterIPs, setLoadBalancerIPs, setLocalEndpoints} {
		all[id] = nft.Set{Key: ts{addr}}
	}
	all[setAffinity] = nft.Set{Key: ts{addr, nft.TypeMark}, Data: number, Dynamic: true, Size: affinityEntries}
	all[setKeepsClient] = nft.Set{Key: frontend}
	all[setNodePortKeepsClient] = nft.Set{Key: port}
	all[setRestricted] = nft.Set{Key: frontend}
	all[setSourceRanges] = nft.Set{Key: slices.Concat(frontend, ts{addr}), Interval: true}
	all[setHairpin] = nft.Set{Key: ts{addr, addr}}
	all[setLocalPods] = nft.Set{Key: ts{addr}, Interval: true}
	all[setNodePortAddresses] = nft.Set{Key: ts{addr}, Interval: true}
	for id := range all {
		all[id].Table, all[id].Name = t, setNames[id]
	}
	return all
}

// class is the value that the services maps hold: how a frontend picks its
// endpoint. The low 15 bits are the number of slots, the others the affinity
// time-out in seconds.
type class uint32

const (
	classReject class = 0
	classDrop   class = 1<<slotBits - 1

	slotBits = 15
)

// All numbers of slots fit beside classDrop.
const _ = uint(classDrop - 1 - model.MaxTable)

func newClass(slots int, affinity time.Duration) class {
	return class(uint32(affinity/time.Second)<<slotBits | uint32(slots))
}

func (c class) slots() int              { return int(c & classDrop) }
func (c class) affinity() time.Duration { return time.Duration(c>>slotBits) * time.Second }

// use is one of the four ways to a class: what is dialled, and from where.
type use struct {
	nodePort, outside bool
}

var uses = [...]use{{}, {outside: true}, {nodePort: true}, {nodePort: true, outside: true}}

func (u use) index() setID {
	var i setID
	if u.outside {
		i++
	}
	if u.nodePort {
		i += 2
	}
	return i
}

// of gives this use's set of the four that begin with first.
func (u use) of(first setID) setID { return first + u.index() }

// keepsClient gives the set of frontends that are not masqueraded without need.
func (u use) keepsClient() setID {
	if u.nodePort {
		return setNodePortKeepsClient
	}
	return setKeepsClient
}

// groups gives the map from frontends to groups, which both views share.
func (u use) groups() setID {
	if u.nodePort {
		return setNodePortAffinityGroups
	}
	return setAffinityGroups
}

// baseClasses are the numbers of endpoints whose chains are always there. A
// new chain costs the kernel a walk over the maps that it looks up, so the
// usual ones are made in advance, and others stay until the next full sync.
func (u use) baseClasses() int {
	if u == (use{}) {
		return 64
	}
	return 16
}

// chain names the chain that serves a class, for example
// "endpoints-5-affinity-10800".
func (u use) chain(c class) string {
	name := fmt.Sprintf("endpoints-%d", c.slots())
	if a := c.affinity(); a > 0 {
		name += fmt.Sprintf("-affinity-%d", int(a/time.Second))
	}
	if u.nodePort {
		name = "node-port-" + name
	}
	if u.outside {
		name += "-outside"
	}
	return name
}

// verdict is the value of a class's element in the classes maps.
func (u use) verdict(c class) string {
	switch c {
	case classReject:
		return nft.Goto(chainReject)
	case classDrop:
		return nft.Drop
	}
	return nft.Goto(u.chain(c))
}

func tableOf(f model.Family) nft.Table {
	return nft.Table{Family: nft.FamilyOf(f.Unspecified()), Name: TableName}
}

func compareNames(a, b types.NamespacedName) int {
	return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
}
