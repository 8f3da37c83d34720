// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

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

// Flow is who dialled what.
func (e *entry) Flow() Flow { return Flow{e.source, e.destination, e.endpoint} }

// Table is the kernel's connection tracking table in the network namespace of
// the calling thread.
type Table struct {
	// Reset has the clients of TCP flows that Clean ends answered with a reset.
	Reset bool
	// Node tells the clients of this node from others.
	Node model.Node
}

// Clean deletes the stale entries of all scopes and says how many there were.
// Errors of single deletions are joined; the rest is done all the same. What it
// holds in memory does not depend on how many entries there are.
func (t Table) Clean(scopes []Scope) (int, error) {
	if len(scopes) == 0 {
		return 0, nil
	}
	place := newPlace(&t.Node)
	e, err := openEnder()
	if err != nil {
		return 0, err
	}
	defer e.close()
	if t.Reset {
		e.refuser = &refuser{}
		defer e.refuser.close()
	}
	var errs []error
	for _, g := range groups(scopes) {
		err := list(g.fam, g.filter, func(en *entry) error {
			if !g.stale(en, place) {
				return nil
			}
			return e.add(g.fam, en)
		})
		if err = errors.Join(err, e.flush()); err != nil {
			errs = append(errs, fmt.Errorf("end flows to %s: %w", g.filter.Key, err))
		}
	}
	return e.deleted, errors.Join(errs...)
}

// Translated says whether there are flows of a family that were sent to
// another endpoint than they were dialled.
func (Table) Translated(f model.Family) (bool, error) {
	for _, proto := range []model.Protocol{model.TCP, model.UDP, model.SCTP} {
		err := list(f, Scope{Key: model.Key{Addr: f.Unspecified(), Protocol: proto}}, func(e *entry) error {
			if e.destination != e.endpoint {
				return errEnough
			}
			return nil
		})
		switch {
		case errors.Is(err, errEnough):
			return true, nil
		case err != nil:
			return false, fmt.Errorf("list %s flows: %w", proto, err)
		}
	}
	return false, nil
}

// errEnough ends a list early.
var errEnough = errors.New("enough")

// CleanUntranslated deletes the flows that were led nowhere else than where they
// were dialled, if what they dialled is asked for. A NodePort's key matches
// this node's addresses. It says how many there were.
func (Table) CleanUntranslated(f model.Family, dialled map[model.Key]bool) (int, error) {
	return cleanDialled(f, dialled, func(e *entry) bool { return e.destination == e.endpoint })
}

// CleanUnmapped is CleanUntranslated for the flows that no rule translated,
// those included that IPVS did.
func (Table) CleanUnmapped(f model.Family, dialled map[model.Key]bool) (int, error) {
	return cleanDialled(f, dialled, func(e *entry) bool { return e.status&dstNAT == 0 })
}

// CleanEnded is CleanUnmapped for TCP flows that have ended: the kernel keeps
// those for a while, and takes a connection from the same port for one of them,
// which no rule translates either.
func (Table) CleanEnded(f model.Family, dialled map[model.Key]bool) (int, error) {
	const timeWait, closed = 7, 8 // TCP_CONNTRACK_TIME_WAIT, _CLOSE
	return cleanDialled(f, dialled, func(e *entry) bool {
		return e.status&dstNAT == 0 && e.proto == model.TCP && (e.state == timeWait || e.state == closed)
	})
}

// cleanDialled deletes the flows to what is asked for, those that go says.
func cleanDialled(f model.Family, dialled map[model.Key]bool, goes func(*entry) bool) (int, error) {
	place := newPlace(&model.Node{})
	ender, err := openEnder()
	if err != nil {
		return 0, err
	}
	defer ender.close()
	var errs []error
	for _, proto := range []model.Protocol{model.TCP, model.UDP} {
		err := list(f, Scope{Key: model.Key{Addr: f.Unspecified(), Protocol: proto}}, func(e *entry) error {
			key := model.Key{Addr: e.destination.Addr(), Port: e.destination.Port(), Protocol: proto}
			nodePort := model.Key{Addr: f.Unspecified(), Port: key.Port, Protocol: proto}
			if !goes(e) || !dialled[key] && !(dialled[nodePort] && place.Local(key.Addr)) {
				return nil
			}
			return ender.add(f, e)
		})
		if err = errors.Join(err, ender.flush()); err != nil {
			errs = append(errs, fmt.Errorf("end %s flows: %w", proto, err))
		}
	}
	return ender.deleted, errors.Join(errs...)
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

func (g *group) stale(e *entry, at Place) bool {
	for _, key := range [...]model.Key{
		{Addr: e.destination.Addr(), Port: e.destination.Port(), Protocol: e.proto},
		{Addr: g.fam.Unspecified(), Port: e.destination.Port(), Protocol: e.proto},
	} {
		for i := range g.byKey[key] {
			s := &g.byKey[key][i]
			if !(s.Unanswered && e.status&seenReply != 0) && s.Stale(e.Flow(), at) {
				return true
			}
		}
	}
	return false
}

func family(f model.Family) byte {
	if f == model.IPv4 {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// list calls each for the entries whose original destination matches s, with the
// answered ones or without; its address and port are wildcards if zero. What each
// is given is its only until it returns; an error of each ends the list.
func list(fam model.Family, s Scope, each func(*entry) error) error {
	req := nl.NewNetlinkRequest(ctnetlink|msgGet, unix.NLM_F_DUMP)
	req.AddData(&nl.Nfgenmsg{NfgenFamily: family(fam), Version: nl.NFNETLINK_V0})
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
	sock, err := openSocket()
	if err != nil {
		return err
	}
	defer sock.close()
	if err := sock.send(req.Serialize()); err != nil {
		return err
	}
	var e entry
	return sock.receive(func(_ uint32, body []byte) error {
		if len(body) < nfgenmsgLen || !e.parse(body[nfgenmsgLen:]) || e.proto != s.Key.Protocol {
			return nil
		}
		return each(&e)
	}, nil)
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

// appendRemoval appends the message that deletes an entry, by its original tuple
// and its id, so that a new flow of the same tuple is not taken for it.
func (e *entry) appendRemoval(b []byte, fam model.Family, seq uint32, flags uint16) []byte {
	start := len(b)
	b = binary.NativeEndian.AppendUint32(b, 0) // length, below
	b = binary.NativeEndian.AppendUint16(b, ctnetlink|msgDelete)
	b = binary.NativeEndian.AppendUint16(b, unix.NLM_F_REQUEST|flags)
	b = binary.NativeEndian.AppendUint32(b, seq)
	b = binary.NativeEndian.AppendUint32(b, 0) // to the kernel
	b = append(b, family(fam), nl.NFNETLINK_V0, 0, 0)
	b = appendAttr(b, unix.NLA_F_NESTED|ctaTupleOrig, e.orig)
	if e.zone != nil {
		b = appendAttr(b, ctaZone, e.zone)
	}
	if e.id != nil {
		b = appendAttr(b, ctaID, e.id)
	}
	binary.NativeEndian.PutUint32(b[start:], uint32(len(b)-start))
	return b
}

func appendAttr(b []byte, typ uint16, data []byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(4+len(data)))
	b = binary.NativeEndian.AppendUint16(b, typ)
	b = append(b, data...)
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}

// nextAttr takes the first attribute off b; false at the end, or where what is
// left is none.
func nextAttr(b *[]byte) (typ int, data []byte, ok bool) {
	if len(*b) < 4 {
		return 0, nil, false
	}
	n := int(binary.NativeEndian.Uint16(*b))
	if n < 4 || n > len(*b) {
		return 0, nil, false
	}
	typ, data = int(binary.NativeEndian.Uint16((*b)[2:])&nl.NLA_TYPE_MASK), (*b)[4:n]
	*b = (*b)[min((n+3)&^3, len(*b)):]
	return typ, data, true
}

// parse reads what is needed into e, which keeps parts of b; false for entries
// without ports. It allocates nothing: there can be a million of them.
func (e *entry) parse(b []byte) bool {
	*e = entry{}
	var orig, reply tuple
	for typ, data, ok := nextAttr(&b); ok; typ, data, ok = nextAttr(&b) {
		switch typ {
		case ctaTupleOrig:
			e.orig = data
			orig.parse(data)
		case ctaTupleReply:
			reply.parse(data)
		case ctaStatus:
			if len(data) >= 4 {
				e.status = binary.BigEndian.Uint32(data)
			}
		case ctaProtoInfo:
			e.state = parseState(data)
		case ctaZone:
			e.zone = data
		case ctaID:
			e.id = data
		}
	}
	e.proto = model.Protocol(orig.proto)
	e.source = netip.AddrPortFrom(orig.src, orig.srcPort)
	e.destination = netip.AddrPortFrom(orig.dst, orig.dstPort)
	e.endpoint = netip.AddrPortFrom(reply.src, reply.srcPort)
	return orig.src.IsValid() && orig.dst.IsValid() && reply.src.IsValid()
}

// parseState gives TCP's state, 0 for other protocols.
func parseState(b []byte) (state uint8) {
	for typ, data, ok := nextAttr(&b); ok; typ, data, ok = nextAttr(&b) {
		if typ != protoInfoTCP {
			continue
		}
		for typ, value, ok := nextAttr(&data); ok; typ, value, ok = nextAttr(&data) {
			if typ == tcpState && len(value) >= 1 {
				state = value[0]
			}
		}
	}
	return state
}

type tuple struct {
	src, dst         netip.Addr
	proto            byte
	srcPort, dstPort uint16
}

func (t *tuple) parse(b []byte) {
	for typ, data, ok := nextAttr(&b); ok; typ, data, ok = nextAttr(&b) {
		switch typ {
		case tupleIP:
			for typ, value, ok := nextAttr(&data); ok; typ, value, ok = nextAttr(&data) {
				a, _ := netip.AddrFromSlice(value)
				switch typ {
				case ipv4Src, ipv6Src:
					t.src = a
				case ipv4Dst, ipv6Dst:
					t.dst = a
				}
			}
		case tupleProto:
			for typ, value, ok := nextAttr(&data); ok; typ, value, ok = nextAttr(&data) {
				switch {
				case typ == protoNum && len(value) >= 1:
					t.proto = value[0]
				case typ == protoSrcPort && len(value) >= 2:
					t.srcPort = binary.BigEndian.Uint16(value)
				case typ == protoDstPort && len(value) >= 2:
					t.dstPort = binary.BigEndian.Uint16(value)
				}
			}
		}
	}
}
