// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/causeway-lb/causeway/internal/netlink"
	"github.com/causeway-lb/causeway/internal/netlink/attributes"
)

// Attributes of ctnetlink (linux/netfilter/nfnetlink_conntrack.h).
const (
	msgGet    = unix.NFNL_SUBSYS_CTNETLINK<<8 | 1
	msgDelete = unix.NFNL_SUBSYS_CTNETLINK<<8 | 2

	ctaTupleOrig, ctaTupleReply = 1, 2
	ctaStatus, ctaProtoInfo     = 3, 4
	protoInfoTCP, tcpState      = 1, 1
	ctaID, ctaZone, ctaFilter   = 12, 18, 25
	ctaStatusMask               = 26

	tupleIP, tupleProto     = 1, 2
	ipv4Src, ipv4Dst        = 1, 2
	ipv6Src, ipv6Dst        = 3, 4
	protoNum                = 1
	protoSrcPort            = 2
	protoDstPort            = 3
	filterOrig, filterReply = 1, 2
	filterIPDst             = 1 << 1
	filterProtoNum          = 1 << 3
	filterProtoDstPort      = 1 << 5

	nfgenmsgLen = 4

	seenReply = 1 << 1 // IPS_SEEN_REPLY
	dstNAT    = 1 << 5 // IPS_DST_NAT

	timeWait, closed = 7, 8 // TCP_CONNTRACK_TIME_WAIT, TCP_CONNTRACK_CLOSE
)

// Flow is what was dialled, by whom, and the endpoint that the packets are sent to.
type Flow struct {
	Source, Destination, Endpoint netip.AddrPort
}

// Entry is one entry of the table.
type Entry struct {
	Flow
	// Protocol is the IP protocol number.
	Protocol uint8
	// status are the IPS_* bits; state is TCP's, TCP_CONNTRACK_*.
	status uint32
	state  uint8
	// orig, zone and id name it to the kernel; the attributes as they came.
	orig, zone, id []byte
}

// Replied reports whether the flow has been answered, by any host.
func (e *Entry) Replied() bool { return e.status&seenReply != 0 }

// Translated reports whether the flow's endpoint is another than was dialled,
// by whatever means.
func (e *Entry) Translated() bool { return e.Destination != e.Endpoint }

// MappedByRule reports whether a rule translated the flow's destination; IPVS does
// so without one.
func (e *Entry) MappedByRule() bool { return e.status&dstNAT != 0 }

// Ended reports whether the flow is a TCP connection that has ended. The kernel
// keeps those for a while.
func (e *Entry) Ended() bool {
	return e.Protocol == unix.IPPROTO_TCP && (e.state == timeWait || e.state == closed)
}

// Filter says which entries to list.
type Filter struct {
	Protocol uint8
	// To is the original destination: any address of its family if that is
	// unspecified, any port if that is 0.
	To netip.AddrPort
	// Unreplied leaves out those that have been answered. Linux before 5.13 lists
	// them all the same.
	Unreplied bool
}

func familyOf(a netip.Addr) byte {
	if a.Is6() {
		return unix.AF_INET6
	}
	return unix.AF_INET
}

func open() (*netlink.Socket, error) {
	const datagram = 1 << 15 // the most that the kernel puts into one part of a dump
	return netlink.Open(netlink.Config{Protocol: unix.NETLINK_NETFILTER, Datagram: datagram})
}

// List calls each for the entries that match f in the network namespace of the
// calling thread. The entry is valid until each returns; an error of each ends the
// list and is returned. The kernel may list more than f asks for: of other ports
// (Linux before 5.8), and of other IPv6 addresses.
func List(f Filter, each func(*Entry) error) error {
	s, err := open()
	if err != nil {
		return err
	}
	defer s.Close()
	if err := s.Send(f.request()); err != nil {
		return err
	}
	var e Entry
	for {
		datagram, err := s.Receive()
		if err != nil {
			return err
		}
		for m, err := range netlink.Messages(datagram) {
			switch {
			case err != nil:
				return err
			case m.Type == unix.NLMSG_DONE || m.Type == unix.NLMSG_ERROR:
				return m.Errno()
			case len(m.Body) < nfgenmsgLen || !e.parse(m.Body[nfgenmsgLen:]) || e.Protocol != f.Protocol:
				continue
			}
			if err := each(&e); err != nil {
				return err
			}
		}
	}
}

func appendHeader(b []byte, typ, flags uint16, seq uint32, family byte) []byte {
	return append(netlink.AppendHeader(b, typ, flags, seq), family, unix.NFNETLINK_V0, 0, 0)
}

func (f *Filter) request() []byte {
	e := attributes.Encoder{Buf: appendHeader(nil, msgGet, unix.NLM_F_DUMP, 1, familyOf(f.To.Addr()))}
	flags := uint32(filterProtoNum)
	orig := e.Nest(ctaTupleOrig)
	// Linux 6.18 compares IPv6 addresses the wrong way round: it returns the
	// entries that do not match. So only IPv4 addresses are left to it.
	if a := f.To.Addr(); a.Is4() && !a.IsUnspecified() {
		ip := e.Nest(tupleIP)
		e.Bytes(ipv4Dst, a.AsSlice())
		e.End(ip)
		flags |= filterIPDst
	}
	proto := e.Nest(tupleProto)
	e.Bytes(protoNum, []byte{f.Protocol})
	if f.To.Port() != 0 {
		e.BE16(protoDstPort, f.To.Port())
		flags |= filterProtoDstPort
	}
	e.End(proto)
	e.End(orig)
	filter := e.Nest(ctaFilter)
	e.Uint32(filterOrig, flags)
	e.Uint32(filterReply, 0)
	e.End(filter)
	if f.Unreplied {
		// The kernel keeps the answered ones to itself, of which a busy frontend has
		// many.
		e.BE32(ctaStatus, 0)
		e.BE32(ctaStatusMask, seenReply)
	}
	netlink.EndMessage(e.Buf)
	return e.Buf
}

// appendRemoval appends the message that deletes the entry.
func (e *Entry) appendRemoval(b []byte, seq uint32, flags uint16) []byte {
	start := len(b)
	x := attributes.Encoder{Buf: appendHeader(b, msgDelete, flags, seq, familyOf(e.Source.Addr()))}
	x.Bytes(unix.NLA_F_NESTED|ctaTupleOrig, e.orig)
	if e.zone != nil {
		x.Bytes(ctaZone, e.zone)
	}
	if e.id != nil {
		x.Bytes(ctaID, e.id)
	}
	netlink.EndMessage(x.Buf[start:])
	return x.Buf
}

// parse reads what is needed into e, which keeps parts of b; false for entries
// without ports. It allocates nothing: there can be a million of them.
func (e *Entry) parse(b []byte) bool {
	*e = Entry{}
	var orig, reply tuple
	for a := attributes.Decode(b); a.Next(); {
		switch a.Type {
		case ctaTupleOrig:
			e.orig, orig = a.Data, tuple{} // of two, the last counts
			orig.parse(a.Data)
		case ctaTupleReply:
			reply = tuple{}
			reply.parse(a.Data)
		case ctaStatus:
			e.status = attributes.BE32(a.Data)
		case ctaProtoInfo:
			e.state = parseState(a.Data)
		case ctaZone:
			e.zone = a.Data
		case ctaID:
			e.id = a.Data
		}
	}
	e.Protocol = orig.proto
	e.Source = netip.AddrPortFrom(orig.src, orig.srcPort)
	e.Destination = netip.AddrPortFrom(orig.dst, orig.dstPort)
	e.Endpoint = netip.AddrPortFrom(reply.src, reply.srcPort)
	return orig.src.IsValid() && orig.dst.IsValid() && reply.src.IsValid()
}

// parseState returns TCP's state, 0 for other protocols.
func parseState(b []byte) (state uint8) {
	for a := attributes.Decode(b); a.Next(); {
		if a.Type != protoInfoTCP {
			continue
		}
		for n := attributes.Decode(a.Data); n.Next(); {
			if n.Type == tcpState && len(n.Data) >= 1 {
				state = n.Data[0]
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
	for a := attributes.Decode(b); a.Next(); {
		switch a.Type {
		case tupleIP:
			for n := attributes.Decode(a.Data); n.Next(); {
				a, _ := netip.AddrFromSlice(n.Data)
				switch n.Type {
				case ipv4Src, ipv6Src:
					t.src = a
				case ipv4Dst, ipv6Dst:
					t.dst = a
				}
			}
		case tupleProto:
			for n := attributes.Decode(a.Data); n.Next(); {
				switch {
				case n.Type == protoNum && len(n.Data) >= 1:
					t.proto = n.Data[0]
				case n.Type == protoSrcPort:
					t.srcPort = attributes.BE16(n.Data)
				case n.Type == protoDstPort:
					t.dstPort = attributes.BE16(n.Data)
				}
			}
		}
	}
}
