// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/causeway-lb/causeway/internal/netlink"
	"github.com/causeway-lb/causeway/internal/netlink/attributes"
)

// FuzzMessages: whatever connection tracking answers is read without a panic, the
// walk ends, and what is read of an entry names it again in the message that
// deletes it.
func FuzzMessages(f *testing.F) {
	message := func(typ uint16, body []byte) []byte {
		b := append(netlink.AppendHeader(nil, typ, 0, 1), body...)
		netlink.EndMessage(b)
		return b
	}
	e := attributes.Encoder{Buf: []byte{2, 0, 0, 0}}
	for _, typ := range []uint16{ctaTupleOrig, ctaTupleReply} {
		tuple, ip := e.Nest(typ), e.Nest(tupleIP)
		e.Bytes(ipv4Src, []byte{198, 51, 100, 9})
		e.Bytes(ipv4Dst, []byte{10, 96, 0, 10})
		e.End(ip)
		proto := e.Nest(tupleProto)
		e.Bytes(protoNum, []byte{17})
		e.BE16(protoSrcPort, 1024)
		e.BE16(protoDstPort, 53)
		e.End(proto)
		e.End(tuple)
	}
	e.BE32(ctaStatus, 2)
	e.BE16(ctaZone, 7)
	e.Bytes(ctaID, []byte{1, 2, 3, 4})
	entry := message(unix.NFNL_SUBSYS_CTNETLINK<<8, e.Buf)
	f.Add(entry)
	empty := attributes.Encoder{Buf: e.Buf[:len(e.Buf):len(e.Buf)]}
	empty.Bytes(ctaTupleOrig, nil)
	f.Add(message(unix.NFNL_SUBSYS_CTNETLINK<<8, empty.Buf)) // a second tuple, without an address
	f.Add(append(entry[:len(entry):len(entry)], message(unix.NLMSG_DONE, []byte{0, 0, 0, 0})...))
	f.Add(message(unix.NLMSG_ERROR, []byte{0xfe, 0xff, 0xff, 0xff}))
	f.Add(message(unix.NLMSG_ERROR, nil))
	f.Add([]byte{3, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		var e, again Entry
		for m, err := range netlink.Messages(b) {
			_ = m.Errno()
			if err != nil || len(m.Body) < nfgenmsgLen || !e.parse(m.Body[nfgenmsgLen:]) {
				continue
			}
			removal := e.appendRemoval(nil, 1, 0)
			for m, err := range netlink.Messages(removal) {
				if err != nil {
					t.Error(err)
					break
				}
				again.parse(m.Body[nfgenmsgLen:])
			}
			if again.Source != e.Source || again.Destination != e.Destination || string(again.id) != string(e.id) {
				t.Errorf("an entry %v is deleted as %v", e.Flow, again.Flow)
			}
		}
	})
}

// The request has the family and what CTA_FILTER is to compare.
func TestFilter(t *testing.T) {
	for _, tc := range []struct {
		to     string
		family byte
		flags  uint32
	}{
		{"0.0.0.0:0", unix.AF_INET, filterProtoNum},
		{"192.0.2.1:53", unix.AF_INET, filterProtoNum | filterProtoDstPort | filterIPDst},
		{"[::]:0", unix.AF_INET6, filterProtoNum},
		{"[2001:db8::1]:53", unix.AF_INET6, filterProtoNum | filterProtoDstPort},
	} {
		f := Filter{Protocol: 17, To: netip.MustParseAddrPort(tc.to)}
		for m, err := range netlink.Messages(f.request()) {
			if err != nil || m.Body[0] != tc.family {
				t.Fatalf("%s: %v, family %d", tc.to, err, m.Body[0])
			}
			for a := attributes.Decode(m.Body[nfgenmsgLen:]); a.Next(); {
				if a.Type != ctaFilter {
					continue
				}
				for n := attributes.Decode(a.Data); n.Next(); {
					if n.Type == filterOrig && attributes.Uint32(n.Data) != tc.flags {
						t.Errorf("%s: flags %#x, want %#x", tc.to, attributes.Uint32(n.Data), tc.flags)
					}
				}
			}
		}
	}
}
