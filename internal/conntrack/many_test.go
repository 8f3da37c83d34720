// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"errors"
	"net/netip"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/causeway-lb/causeway/internal/netlink"
	"github.com/causeway-lb/causeway/internal/netlink/attributes"
	"github.com/causeway-lb/causeway/internal/proxy/model"
	"github.com/causeway-lb/causeway/internal/testkit/nstest"
)

// flows makes n UDP entries to a frontend, by turns at each endpoint.
func flows(t testing.TB, n int, frontend netip.AddrPort, endpoints ...netip.AddrPort) {
	t.Helper()
	s, err := netlink.Open(netlink.Config{Protocol: unix.NETLINK_NETFILTER, Datagram: 1 << 15})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	// Of linux/netfilter/nfnetlink_conntrack.h.
	const tupleOrig, tupleReply, timeout = 1, 2, 7
	const ip, proto, num, srcPort, dstPort = 1, 2, 1, 2, 3
	version, source, destination := byte(unix.AF_INET), uint16(1), uint16(2)
	if frontend.Addr().Is6() {
		version, source, destination = unix.AF_INET6, 3, 4
	}
	var b attributes.Encoder
	tuple := func(typ uint16, src, dst netip.AddrPort) {
		all, addrs := b.Nest(typ), b.Nest(ip)
		b.Bytes(source, src.Addr().AsSlice())
		b.Bytes(destination, dst.Addr().AsSlice())
		b.End(addrs)
		protocol := b.Nest(proto)
		b.Bytes(num, []byte{byte(model.UDP)})
		b.BE16(srcPort, src.Port())
		b.BE16(dstPort, dst.Port())
		b.End(protocol)
		b.End(all)
	}
	for i := range n {
		client := netip.AddrFrom4([4]byte{198, 18, byte(i >> 14), byte(i >> 6)})
		if frontend.Addr().Is6() {
			client = netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 14: byte(i >> 14), 15: byte(i >> 6)})
		}
		from := netip.AddrPortFrom(client, uint16(1024+i%64))
		start := len(b.Buf)
		flags := uint16(unix.NLM_F_CREATE | unix.NLM_F_EXCL)
		last := i%100 == 99 || i == n-1
		if last {
			flags |= unix.NLM_F_ACK
		}
		b.Buf = append(netlink.AppendHeader(b.Buf, unix.NFNL_SUBSYS_CTNETLINK<<8, flags, uint32(i)), version, unix.NFNETLINK_V0, 0, 0)
		tuple(tupleOrig, from, frontend)
		tuple(tupleReply, endpoints[i%len(endpoints)], from)
		b.BE32(timeout, 600)
		netlink.EndMessage(b.Buf[start:])
		if !last {
			continue
		}
		if err := s.Send(b.Buf); err != nil {
			t.Fatal(err)
		}
		answer, err := s.Receive()
		if err != nil {
			t.Fatal(err)
		}
		for m, err := range netlink.Messages(answer) {
			if err = errors.Join(err, m.Errno()); err != nil {
				t.Fatalf("flow %d: %v", i, err)
			}
		}
		b.Reset()
	}
}

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
