// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"encoding/binary"
	"net/netip"
	"runtime"
	"testing"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/causeway-lb/causeway/internal/proxy/model"
	"github.com/causeway-lb/causeway/internal/proxy/nstest"
)

// flows makes n UDP entries to a frontend, by turns at each endpoint.
func flows(t testing.TB, n int, frontend netip.AddrPort, endpoints ...netip.AddrPort) {
	t.Helper()
	s, err := openSocket()
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	tuple := func(src, dst netip.AddrPort) []byte {
		source, destination := uint16(ipv4Src), uint16(ipv4Dst)
		if dst.Addr().Is6() {
			source, destination = ipv6Src, ipv6Dst
		}
		ip := appendAttr(appendAttr(nil, source, src.Addr().AsSlice()), destination, dst.Addr().AsSlice())
		proto := appendAttr(nil, protoNum, []byte{byte(model.UDP)})
		proto = appendAttr(proto, protoSrcPort, binary.BigEndian.AppendUint16(nil, src.Port()))
		proto = appendAttr(proto, protoDstPort, binary.BigEndian.AppendUint16(nil, dst.Port()))
		return appendAttr(appendAttr(nil, unix.NLA_F_NESTED|tupleIP, ip), unix.NLA_F_NESTED|tupleProto, proto)
	}
	const ctaTimeout = 7
	var b []byte
	for i := range n {
		client := netip.AddrFrom4([4]byte{198, 18, byte(i >> 14), byte(i >> 6)})
		if frontend.Addr().Is6() {
			client = netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 14: byte(i >> 14), 15: byte(i >> 6)})
		}
		from := netip.AddrPortFrom(client, uint16(1024+i%64))
		start := len(b)
		b = append(b, 0, 0, 0, 0)
		b = binary.NativeEndian.AppendUint16(b, ctnetlink|msgNew)
		flags := uint16(unix.NLM_F_REQUEST | unix.NLM_F_CREATE | unix.NLM_F_EXCL)
		last := i%100 == 99 || i == n-1
		if last {
			flags |= unix.NLM_F_ACK
		}
		b = binary.NativeEndian.AppendUint16(b, flags)
		b = binary.NativeEndian.AppendUint32(b, uint32(i))
		b = append(b, 0, 0, 0, 0, family(model.FamilyOf(client)), nl.NFNETLINK_V0, 0, 0)
		b = appendAttr(b, unix.NLA_F_NESTED|ctaTupleOrig, tuple(from, frontend))
		b = appendAttr(b, unix.NLA_F_NESTED|ctaTupleReply, tuple(endpoints[i%len(endpoints)], from))
		b = appendAttr(b, ctaTimeout, binary.BigEndian.AppendUint32(nil, 600))
		binary.NativeEndian.PutUint32(b[start:], uint32(len(b)-start))
		if !last {
			continue
		}
		if err := s.send(b); err != nil {
			t.Fatal(err)
		}
		if err := s.receive(nil, nil); err != nil {
			t.Fatalf("flow %d: %v", i, err)
		}
		b = b[:0]
	}
}

const msgNew = 0

var manyFlows = []struct {
	name, frontend, gone, stays string
}{
	{"IPv4", "10.96.0.77:53", "10.244.1.2:53", "10.244.1.3:53"},
	{"IPv6", "[fd00:10:96::77]:53", "[fd00:10:244:1::2]:53", "[fd00:10:244:1::3]:53"},
}

// What cleaning up holds in memory does not grow with the number of flows.
func TestCleanHoldsNothing(t *testing.T) {
	nstest.Require(t, "nft")
	nstest.Run(t, "nft", "add table inet tracking; add chain inet tracking o { type filter hook output priority 0; }; add rule inet tracking o ct state new")
	for _, f := range manyFlows {
		t.Run(f.name, func(t *testing.T) {
			const n, bound = 20_000, 2 << 20
			flows(t, n, ap(f.frontend), ap(f.gone), ap(f.stays))
			scopes := Plan(model.Change{Old: udp(f.frontend, f.gone, f.stays), New: udp(f.frontend, f.stays)}, false)
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			deleted, err := Table{}.Clean(scopes)
			runtime.ReadMemStats(&after)
			if err != nil || deleted != n/2 {
				t.Errorf("Clean: %d flows, %v; want %d", deleted, err, n/2)
			}
			// All that was allocated, whether or not it was in use at the same time.
			if got := after.TotalAlloc - before.TotalAlloc; got > bound {
				t.Errorf("%d bytes were allocated for %d flows, want at most %d", got, n, bound)
			}
			deleted, err = Table{}.Clean(Plan(model.Change{Old: udp(f.frontend, f.stays)}, false))
			if err != nil || deleted != n/2 {
				t.Errorf("Clean of those that stayed: %d flows, %v; want %d", deleted, err, n/2)
			}
		})
	}
}

// One of two DNS endpoints goes, with 200,000 flows.
func BenchmarkClean(b *testing.B) {
	nstest.Require(b)
	f := manyFlows[0]
	b.ReportAllocs()
	for b.Loop() {
		b.StopTimer()
		flows(b, 200_000, ap(f.frontend), ap(f.gone), ap(f.stays))
		scopes := Plan(model.Change{Old: udp(f.frontend, f.gone, f.stays), New: udp(f.frontend, f.stays)}, false)
		b.StartTimer()
		if n, err := (Table{}).Clean(scopes); err != nil || n != 100_000 {
			b.Fatalf("%d, %v", n, err)
		}
		b.StopTimer()
		if _, err := (Table{}).Clean(Plan(model.Change{Old: udp(f.frontend, f.stays)}, false)); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}
