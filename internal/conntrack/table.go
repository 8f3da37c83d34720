// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/causeway-lb/causeway/internal/proxy/model"
)

// Attributes of ctnetlink (linux/netfilter/nfnetlink_conntrack.h).
const (
	msgGet, msgDelete = 1, 2

	ctaTupleOrig, ctaTupleReply = 1, 2
	ctaStatus, ctaProtoInfo     = 3, 4
	protoInfoTCP, tcpState      = 1, 1
	ctaID, ctaZone, ctaFilter   = 12, 18, 25
	ctaStatusMask               = 26

	tupleIP, tupleProto      = 1, 2
	ipv4Src, ipv4Dst         = 1, 2
	ipv6Src, ipv6Dst         = 3, 4
	protoNum                 = 1
	protoSrcPort             = 2
	protoDstPort             = 3
	filterOrig, filterReply  = 1, 2
	filterIPDst              = 1 << 1
	filterProtoNum           = 1 << 3
	filterProtoDstPort       = 1 << 5
	nfgenmsgLen              = 4
	ctnetlink                = unix.NFNL_SUBSYS_CTNETLINK << 8
	maxScopesByKernelsFilter = 16

	seenReply = 1 << 1 // IPS_SEEN_REPLY
	dstNAT    = 1 << 5 // IPS_DST_NAT
)

// entry is one tracked flow.
type entry struct {
	proto model.Protocol
	// source dialled destination and was led to endpoint.
	source, destination, endpoint netip.AddrPort
	// status are the IPS_* bits; state is TCP's, TCP_CONNTRACK_*.
	status uint32
	state  uint8
	// orig, zone and id name it to the kernel; the attributes as they came.
	orig, zone, id []byte
}

// Table is the kernel's connection tracking table in the network namespace of
// the calling thread.
type Table struct {
	// Reset has the clients of TCP flows that Clean ends answered with a reset.
	Reset bool
}

// Clean deletes the stale entries of all scopes and says how many there were.
// Errors of single deletions are joined; the rest is done all the same.
func (t Table) Clean(scopes []Scope) (int, error) {
	local := localAddrs()
	deleted := 0
	var errs []error
	for _, g := range groups(scopes) {
		entries, err := list(g.fam, g.filter)
		if err != nil {
			errs = append(errs, fmt.Errorf("list flows to %s: %w", g.filter.Key, err))
			continue
		}
		entries = slices.DeleteFunc(entries, func(e entry) bool { return !g.stale(e, local) })
		if t.Reset {
			// First, so that no segment passes in between.
			if err := refuse(g.fam, entries); err != nil {
				errs = append(errs, fmt.Errorf("have clients of %s reset: %w", g.filter.Key, err))
			}
		}
		for _, e := range entries {
			switch err := remove(g.fam, e); {
			case err == nil:
				deleted++
			case !errors.Is(err, unix.ENOENT):
				errs = append(errs, fmt.Errorf("delete flow to %s at %s: %w", e.destination, e.endpoint, err))
			}
		}
	}
	return deleted, errors.Join(errs...)
}

// Translated says whether there are flows of a family that were sent to
// another endpoint than they were dialled.
func (Table) Translated(f model.Family) (bool, error) {
	for _, proto := range []model.Protocol{model.TCP, model.UDP, model.SCTP} {
		entries, err := list(f, Scope{Key: model.Key{Addr: f.Unspecified(), Protocol: proto}})
		if err != nil {
			return false, fmt.Errorf("list %s flows: %w", proto, err)
		}
		if slices.ContainsFunc(entries, func(e entry) bool { return e.destination != e.endpoint }) {
			return true, nil
		}
	}
	return false, nil
}

// CleanUntranslated deletes the flows that were led nowhere else than where they
// were dialled, if what they dialled is asked for. A NodePort's key matches
// this node's addresses. It says how many there were.
func (Table) CleanUntranslated(f model.Family, dialled map[model.Key]bool) (int, error) {
	return cleanDialled(f, dialled, func(e entry) bool { return e.destination == e.endpoint })
}

// CleanUnmapped is CleanUntranslated for the flows that no rule translated,
// those included that IPVS did.
func (Table) CleanUnmapped(f model.Family, dialled map[model.Key]bool) (int, error) {
	return cleanDialled(f, dialled, func(e entry) bool { return e.status&dstNAT == 0 })
}

// CleanEnded is CleanUnmapped for TCP flows that have ended: the kernel keeps
// those for a while, and takes a connection from the same port for one of them,
// which no rule translates either.
func (Table) CleanEnded(f model.Family, dialled map[model.Key]bool) (int, error) {
	const timeWait, closed = 7, 8 // TCP_CONNTRACK_TIME_WAIT, _CLOSE
	return cleanDialled(f, dialled, func(e entry) bool {
		return e.status&dstNAT == 0 && e.proto == model.TCP && (e.state == timeWait || e.state == closed)
	})
}

// cleanDialled deletes the flows to what is asked for, those that go says.
func cleanDialled(f model.Family, dialled map[model.Key]bool, goes func(entry) bool) (int, error) {
	local := localAddrs()
	deleted := 0
	var errs []error
	for _, proto := range []model.Protocol{model.TCP, model.UDP} {
		entries, err := list(f, Scope{Key: model.Key{Addr: f.Unspecified(), Protocol: proto}})
		if err != nil {
			return deleted, fmt.Errorf("list %s flows: %w", proto, err)
		}
		for _, e := range entries {
			key := model.Key{Addr: e.destination.Addr(), Port: e.destination.Port(), Protocol: proto}
			nodePort := model.Key{Addr: f.Unspecified(), Port: key.Port, Protocol: proto}
			if !goes(e) || !dialled[key] && !(dialled[nodePort] && local(key.Addr)) {
				continue
			}
			switch err := remove(f, e); {
			case err == nil:
				deleted++
			case !errors.Is(err, unix.ENOENT):
				errs = append(errs, fmt.Errorf("delete flow to %s: %w", e.destination, err))
			}
		}
	}
	return deleted, errors.Join(errs...)
}

// group is the scopes that one dump serves.
type group struct {
	fam    model.Family
	filter Scope
	byKey  map[model.Key][]Scope
}

// groups makes one dump for each scope while they are few, else one for each
// family and protocol: the kernel walks the whole table for each. Scopes of
// unanswered flows share one in any case, for there are never many of those.
func groups(scopes []Scope) []group {
	var gs []group
	type shared struct {
		all        model.Key
		unanswered bool
	}
	index := map[shared]int{}
	alone := 0
	for _, s := range scopes {
		if !s.Unanswered {
			alone++
		}
	}
	for _, s := range scopes {
		if !s.Unanswered && alone <= maxScopesByKernelsFilter {
			gs = append(gs, group{s.Key.Family(), s, map[model.Key][]Scope{s.Key: {s}}})
			continue
		}
		all := shared{model.Key{Addr: s.Key.Family().Unspecified(), Protocol: s.Key.Protocol}, s.Unanswered}
		i, ok := index[all]
		if !ok {
			i = len(gs)
			index[all] = i
			gs = append(gs, group{s.Key.Family(), Scope{Key: all.all, Unanswered: s.Unanswered}, map[model.Key][]Scope{}})
		}
		gs[i].byKey[s.Key] = append(gs[i].byKey[s.Key], s)
	}
	return gs
}

func (g *group) stale(e entry, local func(netip.Addr) bool) bool {
	for _, key := range []model.Key{
		{Addr: e.destination.Addr(), Port: e.destination.Port(), Protocol: e.proto},
		{Addr: g.fam.Unspecified(), Port: e.destination.Port(), Protocol: e.proto},
	} {
		for _, s := range g.byKey[key] {
			if !(s.Unanswered && e.status&seenReply != 0) && s.Stale(e.destination, e.endpoint, local) {
				return true
			}
		}
	}
	return false
}

// localAddrs gives a test for this node's addresses, as they are now.
func localAddrs() func(netip.Addr) bool {
	mine := map[netip.Addr]bool{}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		addrs = nil // then no NodePort flow is touched
	}
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			mine[p.Addr().Unmap()] = true
		}
	}
	return func(a netip.Addr) bool { return mine[a] || a.IsLoopback() }
}

func family(f model.Family) byte {
	if f == model.IPv4 {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

func request(msg, flags int, fam model.Family) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(ctnetlink|msg, flags)
	req.AddData(&nl.Nfgenmsg{NfgenFamily: family(fam), Version: nl.NFNETLINK_V0})
	return req
}

// list dumps the entries whose original destination matches s, with the
// answered ones or without; its address and port are wildcards if zero.
func list(fam model.Family, s Scope) ([]entry, error) {
	req := request(msgGet, unix.NLM_F_DUMP, fam)
	orig, flags := tupleFilter(s)
	filter := nl.NewRtAttr(unix.NLA_F_NESTED|ctaFilter, nil)
	filter.AddRtAttr(filterOrig, binary.NativeEndian.AppendUint32(nil, flags))
	filter.AddRtAttr(filterReply, make([]byte, 4))
	req.AddData(orig)
	req.AddData(filter)
	if s.Unanswered {
		// Since Linux 5.13. The kernel keeps the answered ones to itself, of which
		// a busy frontend has many.
		req.AddData(nl.NewRtAttr(ctaStatus, binary.BigEndian.AppendUint32(nil, 0)))
		req.AddData(nl.NewRtAttr(ctaStatusMask, binary.BigEndian.AppendUint32(nil, seenReply)))
	}
	msgs, err := req.Execute(unix.NETLINK_NETFILTER, 0)
	if err != nil {
		return nil, err
	}
	var entries []entry
	for _, m := range msgs {
		if len(m) < nfgenmsgLen {
			continue
		}
		if e, ok := parseEntry(m[nfgenmsgLen:]); ok && e.proto == s.Key.Protocol {
			entries = append(entries, e)
		}
	}
	return entries, nil
}

func tupleFilter(s Scope) (orig *nl.RtAttr, flags uint32) {
	orig = nl.NewRtAttr(unix.NLA_F_NESTED|ctaTupleOrig, nil)
	flags = filterProtoNum
	// Linux 6.18 compares IPv6 addresses the wrong way round: it returns the
	// entries that do not match. So only IPv4 addresses are left to it.
	if s.Key.Addr.Is4() && !s.Key.Addr.IsUnspecified() {
		orig.AddRtAttr(unix.NLA_F_NESTED|tupleIP, nil).AddRtAttr(ipv4Dst, s.Key.Addr.AsSlice())
		flags |= filterIPDst
	}
	proto := orig.AddRtAttr(unix.NLA_F_NESTED|tupleProto, nil)
	proto.AddRtAttr(protoNum, []byte{byte(s.Key.Protocol)})
	if s.Key.Port != 0 {
		proto.AddRtAttr(protoDstPort, binary.BigEndian.AppendUint16(nil, s.Key.Port))
		flags |= filterProtoDstPort
	}
	return orig, flags
}

// remove deletes one entry, by its original tuple and its id, so that a new
// flow of the same tuple is not taken for it.
func remove(fam model.Family, e entry) error {
	req := request(msgDelete, unix.NLM_F_ACK, fam)
	req.AddData(nl.NewRtAttr(unix.NLA_F_NESTED|ctaTupleOrig, e.orig))
	if e.zone != nil {
		req.AddData(nl.NewRtAttr(ctaZone, e.zone))
	}
	if e.id != nil {
		req.AddData(nl.NewRtAttr(ctaID, e.id))
	}
	_, err := req.Execute(unix.NETLINK_NETFILTER, 0)
	return err
}

// attrs calls f for each attribute of b.
func attrs(b []byte, f func(typ int, data []byte)) {
	for len(b) >= 4 {
		n := int(binary.NativeEndian.Uint16(b))
		if n < 4 || n > len(b) {
			return
		}
		f(int(binary.NativeEndian.Uint16(b[2:])&nl.NLA_TYPE_MASK), b[4:n])
		b = b[min((n+3)&^3, len(b)):]
	}
}

// parseEntry reads what is needed; false for entries without ports.
func parseEntry(b []byte) (entry, bool) {
	var e entry
	var orig, reply tuple
	attrs(b, func(typ int, data []byte) {
		switch typ {
		case ctaTupleOrig:
			e.orig, orig = data, parseTuple(data)
		case ctaTupleReply:
			reply = parseTuple(data)
		case ctaStatus:
			if len(data) >= 4 {
				e.status = binary.BigEndian.Uint32(data)
			}
		case ctaProtoInfo:
			attrs(data, func(typ int, data []byte) {
				if typ != protoInfoTCP {
					return
				}
				attrs(data, func(typ int, data []byte) {
					if typ == tcpState && len(data) >= 1 {
						e.state = data[0]
					}
				})
			})
		case ctaZone:
			e.zone = data
		case ctaID:
			e.id = data
		}
	})
	e.proto = model.Protocol(orig.proto)
	e.source = netip.AddrPortFrom(orig.src, orig.srcPort)
	e.destination = netip.AddrPortFrom(orig.dst, orig.dstPort)
	e.endpoint = netip.AddrPortFrom(reply.src, reply.srcPort)
	return e, orig.dst.IsValid() && reply.src.IsValid()
}

type tuple struct {
	src, dst         netip.Addr
	proto            byte
	srcPort, dstPort uint16
}

func parseTuple(b []byte) tuple {
	var t tuple
	attrs(b, func(typ int, data []byte) {
		switch typ {
		case tupleIP:
			attrs(data, func(typ int, data []byte) {
				a, _ := netip.AddrFromSlice(data)
				switch typ {
				case ipv4Src, ipv6Src:
					t.src = a
				case ipv4Dst, ipv6Dst:
					t.dst = a
				}
			})
		case tupleProto:
			attrs(data, func(typ int, data []byte) {
				switch {
				case typ == protoNum && len(data) >= 1:
					t.proto = data[0]
				case typ == protoSrcPort && len(data) >= 2:
					t.srcPort = binary.BigEndian.Uint16(data)
				case typ == protoDstPort && len(data) >= 2:
					t.dstPort = binary.BigEndian.Uint16(data)
				}
			})
		}
	})
	return t
}
