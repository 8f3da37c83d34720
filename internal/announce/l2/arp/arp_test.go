// SPDX-License-Identifier: Apache-2.0

package arp

import (
	"encoding/hex"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/bpf"

	"github.com/causeway-lb/causeway/internal/announce/l2/wire"
	"github.com/causeway-lb/causeway/internal/announce/nodeinfo"
)

var (
	self   = wire.MAC{2, 0, 0, 0, 0, 1}
	client = wire.MAC{2, 0, 0, 0, 0, 0x99}
	vip    = netip.MustParseAddr("192.0.2.200")
	asker  = netip.MustParseAddr("192.0.2.100")
	addrs  = cmp.Comparer(func(a, b netip.Addr) bool { return a == b })
)

func unhex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.Join(strings.Fields(s), ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func messages(frame []byte) []wire.Message {
	var out []wire.Message
	Protocol{}.Parse(frame, func(m wire.Message) { out = append(out, m) })
	return out
}

// TestFrames holds every frame that is sent against its bytes by RFC 826 and
// RFC 5227.
func TestFrames(t *testing.T) {
	question := wire.Message{Kind: wire.Question, Address: vip, From: client, Asker: asker, To: wire.Broadcast}
	tests := []struct {
		name string
		got  []byte
		want string
	}{
		{"answer", Protocol{}.Answer(question, self, wire.Seal{}),
			"020000000099 020000000001 0806 0001 0800 06 04 0002 020000000001 c00002c8 020000000099 c0000264"},
		{"probe", Protocol{}.Probe(vip, self, wire.MAC{}, wire.Seal{}),
			"ffffffffffff 020000000001 0806 0001 0800 06 04 0001 020000000001 00000000 000000000000 c00002c8"},
		{"probe of one host", Protocol{}.Probe(vip, self, client, wire.Seal{}),
			"020000000099 020000000001 0806 0001 0800 06 04 0001 020000000001 00000000 000000000000 c00002c8"},
		{"gratuitous request", Protocol{}.Announce(vip, self, wire.Seal{})[0],
			"ffffffffffff 020000000001 0806 0001 0800 06 04 0001 020000000001 c00002c8 000000000000 c00002c8"},
		{"gratuitous reply", Protocol{}.Announce(vip, self, wire.Seal{})[1],
			"ffffffffffff 020000000001 0806 0001 0800 06 04 0002 020000000001 c00002c8 020000000001 c00002c8"},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			if diff := cmp.Diff(unhex(t, tc.want), tc.got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestParseMeaning(t *testing.T) {
	tests := []struct {
		name string
		give Packet
		want []wire.Message
	}{
		{"question, and a claim of the asker's own address",
			Packet{EthernetTo: wire.Broadcast, EthernetFrom: client, Op: OpRequest, SenderMAC: client, SenderAddr: asker, TargetAddr: vip},
			[]wire.Message{
				{Kind: wire.Advertisement, Address: asker, From: client, To: wire.Broadcast},
				{Kind: wire.Question, Address: vip, From: client, Asker: asker, To: wire.Broadcast},
			}},
		{"probe",
			Packet{EthernetTo: wire.Broadcast, Op: OpRequest, SenderMAC: client, SenderAddr: netip.IPv4Unspecified(), TargetAddr: vip},
			[]wire.Message{{Kind: wire.Probe, Address: vip, From: client, Asker: netip.IPv4Unspecified(), To: wire.Broadcast}}},
		{"announcement",
			Packet{EthernetTo: wire.Broadcast, Op: OpRequest, SenderMAC: client, SenderAddr: vip, TargetAddr: vip},
			[]wire.Message{{Kind: wire.Advertisement, Address: vip, From: client, To: wire.Broadcast}}},
		{"reply", Packet{EthernetTo: self, Op: OpReply, SenderMAC: client, SenderAddr: vip, TargetMAC: self, TargetAddr: asker},
			[]wire.Message{{Kind: wire.Advertisement, Address: vip, From: client, To: self}}},
		{"reply from nobody", Packet{Op: OpReply, SenderMAC: client, SenderAddr: netip.IPv4Unspecified(), TargetAddr: vip}, nil},
		{"sender is a group", Packet{Op: OpRequest, SenderMAC: wire.Broadcast, SenderAddr: asker, TargetAddr: vip}, nil},
		{"sender has no hardware address", Packet{Op: OpRequest, SenderAddr: asker, TargetAddr: vip}, nil},
		{"reverse ARP", Packet{Op: 3, SenderMAC: client, SenderAddr: asker, TargetAddr: vip}, nil},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			if diff := cmp.Diff(tc.want, messages(tc.give.Frame()), addrs); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			padded := append(tc.give.Frame(), make([]byte, 18)...)
			if diff := cmp.Diff(tc.want, messages(padded), addrs); diff != "" {
				t.Errorf("padded (-want +got):\n%s", diff)
			}
		})
	}
}

func TestParseRefuses(t *testing.T) {
	good := Protocol{}.Announce(vip, self, wire.Seal{})[0]
	for name, at := range map[string]int{"ether type": 13, "hardware type": 15, "protocol type": 16, "hardware length": 18, "protocol length": 19} {
		bad := append([]byte(nil), good...)
		bad[at]++
		if _, ok := Parse(bad); ok {
			t.Errorf("accepted a frame with another %s", name)
		}
	}
	if _, ok := Parse(good[:len(good)-1]); ok {
		t.Error("accepted a frame that is cut short")
	}
}

// TestFilter runs the kernel program on frames in x/net's BPF machine.
func TestFilter(t *testing.T) {
	p := Protocol{}
	other := netip.MustParseAddr("192.0.2.201")
	watched := netip.MustParseAddr("192.0.2.210")
	one := wire.Ranges([]uint32{p.Key(vip)}, wire.MaxRanges)
	both := wire.Ranges([]uint32{p.Key(vip), p.Key(watched)}, wire.MaxRanges)
	vm, err := bpf.NewVM(p.Filter(one, both))
	if err != nil {
		t.Fatal(err)
	}
	request := func(spa, tpa netip.Addr) []byte {
		return Packet{Op: OpRequest, SenderMAC: client, SenderAddr: spa, TargetAddr: tpa}.Frame()
	}
	broken := request(asker, vip)
	broken[18] = 8
	for _, tc := range []struct {
		name  string
		frame []byte
		want  bool
	}{
		{"question about ours", request(asker, vip), true},
		{"question about another", request(asker, other), false},
		{"somebody uses ours", request(vip, other), true},
		{"probe for ours", p.Probe(vip, client, wire.MAC{}, wire.Seal{}), true},
		{"question about one that is only watched", request(asker, watched), false},
		{"announcement of one that is only watched", p.Announce(watched, client, wire.Seal{})[0], true},
		{"announcement of another", p.Announce(other, client, wire.Seal{})[0], false},
		{"wrong lengths", broken, false},
	} {
		n, err := vm.Run(tc.frame)
		if err != nil || (n > 0) != tc.want {
			t.Errorf("%s: accepted %v (%v), want %v", tc.name, n > 0, err, tc.want)
		}
	}
}

// TestSeal: a seal comes through every frame, opens with either key, and with
// nothing else.
func TestSeal(t *testing.T) {
	key, old := []byte("the key"), []byte("the one before")
	node := nodeinfo.IDOf("node-1")
	seal := wire.NewSeal(old, node, vip, self)
	p := Protocol{}
	frames := append(p.Announce(vip, self, seal), p.Probe(vip, self, wire.MAC{}, seal),
		p.Answer(wire.Message{Kind: wire.Question, Address: vip, From: client, Asker: asker, To: self}, self, seal))
	for _, frame := range frames {
		for _, m := range messages(frame) {
			got, ok := m.Seal.Open([][]byte{key, old}, m.Address, m.From)
			if !ok || got != node {
				t.Errorf("%v: seal %x does not open", m.Kind, m.Seal)
			}
			if _, ok := m.Seal.Open([][]byte{key}, m.Address, m.From); ok {
				t.Error("opens with another key")
			}
			if _, ok := m.Seal.Open([][]byte{old}, m.Address, client); ok {
				t.Error("opens for another sender")
			}
			if _, ok := m.Seal.Open([][]byte{old}, asker, m.From); ok {
				t.Error("opens for another address")
			}
		}
	}
	for _, m := range messages(append(p.Probe(vip, self, wire.MAC{}, wire.Seal{}), make([]byte, 18)...)) {
		if _, ok := m.Seal.Open([][]byte{old}, m.Address, m.From); ok {
			t.Error("padding opens")
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(Protocol{}.Announce(vip, self, wire.Seal{})[1])
	f.Add(Protocol{}.Probe(vip, self, wire.MAC{}, wire.Seal{}))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, frame []byte) {
		p, ok := Parse(frame)
		if ok {
			again, ok := Parse(p.Frame())
			if !ok || again != p {
				t.Fatalf("%+v became %+v", p, again)
			}
		}
		for _, m := range messages(frame) {
			if !ok || !m.Address.Is4() || m.From.IsGroup() {
				t.Fatalf("%+v from %x", m, frame)
			}
		}
	})
}
