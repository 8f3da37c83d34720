// SPDX-License-Identifier: Apache-2.0

package ipvs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"github.com/causeway-lb/causeway/internal/netlink"
	"github.com/causeway-lb/causeway/internal/netlink/attributes"
)

// Commands and attributes of linux/ip_vs.h.
const (
	cmdNewService = 1
	cmdSetService = 2
	cmdDelService = 3
	cmdGetService = 4
	cmdNewDest    = 5
	cmdSetDest    = 6
	cmdDelDest    = 7
	cmdGetDest    = 8

	attrService = 1
	attrDest    = 2

	svcFamily   = 1
	svcProtocol = 2
	svcAddr     = 3
	svcPort     = 4
	svcFWMark   = 5
	svcSched    = 6
	svcFlags    = 7
	svcTimeout  = 8
	svcNetmask  = 9

	destAddr     = 1
	destPort     = 2
	destForward  = 3
	destWeight   = 4
	destUpper    = 5
	destLower    = 6
	destActive   = 7
	destInactive = 8
	destPersist  = 9
	destFamily   = 11

	flagPersistent = 1  // IP_VS_SVC_F_PERSISTENT
	flagFallback   = 8  // IP_VS_SVC_F_SCHED_SH_FALLBACK, _MH_FALLBACK
	flagTag        = 32 // IP_VS_SVC_F_SCHED3
	forwardMasq    = 0  // IP_VS_CONN_F_MASQ
	forwardDirect  = 3  // IP_VS_CONN_F_DROUTE
)

// Key names a virtual server: by what is dialled, or by the mark that packets
// carry. Comparable.
type Key struct {
	// Addr, Port and Protocol (an IP protocol number) are zero if Mark is not.
	Addr     netip.Addr
	Port     uint16
	Protocol uint8
	// Mark and IPv6 name a virtual server for all marked packets of a family.
	Mark uint32
	IPv6 bool
}

func (k Key) family() uint16 {
	if k.IPv6 || k.Addr.Is6() {
		return unix.AF_INET6
	}
	return unix.AF_INET
}

// String is "192.0.2.1:80/6" or "mark 0x5c000001 (IPv4)".
func (k Key) String() string {
	if k.Mark == 0 {
		return fmt.Sprintf("%s/%d", netip.AddrPortFrom(k.Addr, k.Port), k.Protocol)
	}
	if k.IPv6 {
		return fmt.Sprintf("mark %#x (IPv6)", k.Mark)
	}
	return fmt.Sprintf("mark %#x (IPv4)", k.Mark)
}

// Settings are what can be changed of a virtual server.
type Settings struct {
	// Scheduler is its name in the kernel, for example "rr".
	Scheduler string
	// Persistence keeps a client with its real server for that long after its
	// last connection; whole seconds, 0 for none.
	Persistence time.Duration
	// Fallback has the schedulers sh and mh take another real server where the
	// hash leads to one with weight 0; they refuse the client otherwise.
	Fallback bool
	// Tag tells one's own virtual servers from others': it is the third of the
	// flags for schedulers, which none of them has a use for.
	Tag bool
}

// VirtualServer is one as the kernel has it.
type VirtualServer struct {
	Key
	Settings
	Reals []RealServer
}

// RealServer is one as the kernel has it.
type RealServer struct {
	netip.AddrPort
	// Weight is its share of new connections; 0 gets none, and keeps those it
	// has.
	Weight uint32
	// Direct delivers packets as they are, instead of translating them. It is
	// not read back.
	Direct bool
	// Active, Inactive and Persistent count its connections: established ones,
	// others, and clients that are kept with it.
	Active, Inactive, Persistent uint32
}

// Op is what a Change does.
type Op uint8

// The operations.
const (
	AddServer Op = iota + 1
	SetServer
	DeleteServer // with its real servers
	AddReal
	SetReal
	DeleteReal
)

var commands = [...]uint8{
	AddServer: cmdNewService, SetServer: cmdSetService, DeleteServer: cmdDelService,
	AddReal: cmdNewDest, SetReal: cmdSetDest, DeleteReal: cmdDelDest,
}

// String is for errors.
func (o Op) String() string {
	return [...]string{"", "add virtual server", "change virtual server", "delete virtual server",
		"add real server", "change real server", "delete real server"}[o]
}

// Change is one change to a virtual server or one of its real servers.
type Change struct {
	Op     Op
	Server Key
	// Settings are for AddServer and SetServer.
	Settings Settings
	// Real is for the operations on real servers; of it Weight is not used by
	// DeleteReal, and the counts never are.
	Real RealServer
}

// String is for errors.
func (c Change) String() string {
	switch c.Op {
	case AddServer, SetServer:
		return fmt.Sprintf("%s %s (%s)", c.Op, c.Server, c.Settings.Scheduler)
	case AddReal, SetReal, DeleteReal:
		return fmt.Sprintf("%s %s of %s", c.Op, c.Real.AddrPort, c.Server)
	}
	return fmt.Sprintf("%s %s", c.Op, c.Server)
}

// Error is a Change that the kernel refused.
type Error struct {
	Change Change
	Err    error
}

func (e *Error) Error() string { return e.Change.String() + ": " + e.Err.Error() }
func (e *Error) Unwrap() error { return e.Err }

func (c *Change) append(buf []byte, family uint16, seq uint32) []byte {
	m := newMessage(buf, family, unix.NLM_F_ACK, commands[c.Op], seq)
	switch c.Op {
	case AddServer, SetServer:
		m.service(c.Server, &c.Settings)
	case DeleteServer:
		m.service(c.Server, nil)
	default:
		m.service(c.Server, nil)
		m.dest(c.Real, c.Op != DeleteReal)
	}
	return m.end()
}

// message is one generic netlink message at the end of a buffer.
type message struct {
	attributes.Encoder
	off int
}

func newMessage(buf []byte, family, flags uint16, cmd uint8, seq uint32) *message {
	m := &message{off: len(buf)}
	m.Buf = append(netlink.AppendHeader(buf, family, flags, seq), cmd, familyVersion, 0, 0)
	return m
}

// end completes the message and returns the buffer.
func (m *message) end() []byte {
	netlink.EndMessage(m.Buf[m.off:])
	return m.Buf
}

// addr is a union nf_inet_addr: 16 bytes for both families.
func (m *message) addr(typ uint16, a netip.Addr) {
	var data [16]byte
	copy(data[:], a.AsSlice())
	m.Bytes(typ, data[:])
}

// service writes a virtual server: its name, and its settings if there are.
func (m *message) service(k Key, s *Settings) {
	off := m.Nest(attrService)
	defer m.End(off)
	m.Uint16(svcFamily, k.family())
	if k.Mark != 0 {
		m.Uint32(svcFWMark, k.Mark)
	} else {
		m.Uint16(svcProtocol, uint16(k.Protocol))
		m.addr(svcAddr, k.Addr)
		m.BE16(svcPort, k.Port)
	}
	if s == nil {
		return
	}
	m.String(svcSched, s.Scheduler)
	var flags uint32
	if s.Persistence > 0 {
		flags |= flagPersistent
	}
	if s.Fallback {
		flags |= flagFallback
	}
	if s.Tag {
		flags |= flagTag
	}
	m.Bytes(svcFlags, binary.NativeEndian.AppendUint32(binary.NativeEndian.AppendUint32(nil, flags), flagPersistent|flagFallback|flagTag))
	m.Uint32(svcTimeout, uint32(s.Persistence/time.Second))
	mask := uint32(0xffffffff) // one client is one IPv4 address
	if k.family() == unix.AF_INET6 {
		mask = 128
	}
	m.Uint32(svcNetmask, mask)
}

// dest writes a real server: its name, and the rest if full.
func (m *message) dest(r RealServer, full bool) {
	off := m.Nest(attrDest)
	defer m.End(off)
	m.addr(destAddr, r.Addr())
	m.BE16(destPort, r.Port())
	family := uint16(unix.AF_INET)
	if r.Addr().Is6() {
		family = unix.AF_INET6
	}
	m.Uint16(destFamily, family)
	if full {
		forward := uint32(forwardMasq)
		if r.Direct {
			forward = forwardDirect
		}
		m.Uint32(destForward, forward)
		m.Uint32(destWeight, r.Weight)
		m.Uint32(destUpper, 0)
		m.Uint32(destLower, 0)
	}
}

var errMalformed = errors.New("malformed answer from IPVS")

// Payloads that are shorter than these are malformed.
var (
	serviceSizes = map[uint16]int{svcFamily: 2, svcProtocol: 2, svcPort: 2, svcFWMark: 4, svcFlags: 4, svcTimeout: 4}
	destSizes    = map[uint16]int{destPort: 2, destFamily: 2, destWeight: 4, destActive: 4, destInactive: 4, destPersist: 4}
)

// fields calls each for the attributes of the one of type nest.
func fields(body []byte, nest uint16, sizes map[uint16]int, each func(typ uint16, data []byte)) error {
	for a := attributes.Decode(body); a.Next(); {
		if a.Type != nest {
			continue
		}
		for n := attributes.Decode(a.Data); n.Next(); {
			if len(n.Data) < sizes[n.Type] {
				return errMalformed
			}
			each(n.Type, n.Data)
		}
	}
	return nil
}

func decodeAddr(b []byte, family uint16) (netip.Addr, error) {
	n := 4
	if family == unix.AF_INET6 {
		n = 16
	}
	if len(b) < n {
		return netip.Addr{}, errMalformed
	}
	a, _ := netip.AddrFromSlice(b[:n])
	return a, nil
}

func decodeService(body []byte) (s VirtualServer, err error) {
	var family uint16
	var addr []byte
	var flags, timeout uint32
	err = fields(body, attrService, serviceSizes, func(typ uint16, data []byte) {
		switch typ {
		case svcFamily:
			family = attributes.Uint16(data)
		case svcProtocol:
			s.Protocol = uint8(attributes.Uint16(data))
		case svcAddr:
			addr = data
		case svcPort:
			s.Port = attributes.BE16(data)
		case svcFWMark:
			s.Mark = attributes.Uint32(data)
		case svcSched:
			s.Scheduler = attributes.String(data)
		case svcFlags:
			flags = attributes.Uint32(data)
		case svcTimeout:
			timeout = attributes.Uint32(data)
		}
	})
	if err != nil || family == 0 {
		return s, errMalformed
	}
	if flags&flagPersistent != 0 {
		s.Persistence = time.Duration(timeout) * time.Second
	}
	s.Fallback, s.Tag = flags&flagFallback != 0, flags&flagTag != 0
	if s.Mark != 0 {
		s.Key = Key{Mark: s.Mark, IPv6: family == unix.AF_INET6}
		return s, nil
	}
	s.Addr, err = decodeAddr(addr, family)
	return s, err
}

func decodeDest(body []byte, family uint16) (r RealServer, err error) {
	var addr []byte
	var port uint16
	err = fields(body, attrDest, destSizes, func(typ uint16, data []byte) {
		switch typ {
		case destAddr:
			addr = data
		case destPort:
			port = attributes.BE16(data)
		case destFamily:
			family = attributes.Uint16(data)
		case destWeight:
			r.Weight = attributes.Uint32(data)
		case destActive:
			r.Active = attributes.Uint32(data)
		case destInactive:
			r.Inactive = attributes.Uint32(data)
		case destPersist:
			r.Persistent = attributes.Uint32(data)
		}
	})
	if err != nil {
		return r, err
	}
	a, err := decodeAddr(addr, family)
	r.AddrPort = netip.AddrPortFrom(a, port)
	return r, err
}
