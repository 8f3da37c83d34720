// SPDX-License-Identifier: Apache-2.0

package ndp

import (
	"encoding/binary"
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
	vip    = netip.MustParseAddr("2001:db8:0:1::200")
	asker  = netip.MustParseAddr("2001:db8:0:1::100")
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

func solicitation(source netip.Addr) Packet {
	p := Packet{
		EthernetTo: groupMAC(SolicitedNode(vip)), EthernetFrom: client,
		Source: source, Dest: SolicitedNode(vip), Type: TypeSolicitation, Target: vip,
	}
	if !source.IsUnspecified() {
		p.LinkLayer = client
	}
	return p
}

// TestFrames holds every frame that is sent against its bytes by RFC 4861. The
// checksum is held against plainSum.
func TestFrames(t *testing.T) {
	question := messages(solicitation(asker).Frame())[1]
	probe := messages(Protocol{}.Probe(vip, client, wire.MAC{}, wire.Seal{}))[0]
	sealed := messages(Protocol{}.Probe(vip, client, wire.MAC{}, wire.NewSeal([]byte("key"), nodeinfo.IDOf("node-2"), vip, client)))[0]
	const (
		vip6   = "20010db8000000010000000000000200"
		asker6 = "20010db8000000010000000000000100"
		all    = "ff020000000000000000000000000001"
		group  = "ff0200000000000000000001ff000200"
	)
	tests := []struct {
		name string
		got  []byte
		want string
	}{
		{"answer", Protocol{}.Answer(question, self, wire.Seal{}), "020000000099 020000000001 86dd 60000000 0020 3a ff" + vip6 + asker6 + "8800 XXXX 60000000" + vip6 + "0201 020000000001"},
		{"probe", Protocol{}.Probe(vip, self, wire.MAC{}, wire.Seal{}), "3333ff000200 020000000001 86dd 60000000 0018 3a ff" + strings.Repeat("0", 32) + group + "8700 XXXX 00000000" + vip6},
		{"answer to a stranger's probe", Protocol{}.Answer(probe, self, wire.Seal{}), "333300000001 020000000001 86dd 60000000 0020 3a ff" + vip6 + all + "8800 XXXX 20000000" + vip6 + "0201 020000000001"},
		{"answer to a probe of ours", Protocol{}.Answer(sealed, self, wire.Seal{}), "020000000099 020000000001 86dd 60000000 0020 3a ff" + vip6 + all + "8800 XXXX 20000000" + vip6 + "0201 020000000001"},
		{"unsolicited advertisement", Protocol{}.Announce(vip, self, wire.Seal{})[0], "333300000001 020000000001 86dd 60000000 0020 3a ff" + vip6 + all + "8800 XXXX 20000000" + vip6 + "0201 020000000001"},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			checksum := hex.EncodeToString(tc.got[icmpStart+2 : icmpStart+4])
			want := unhex(t, strings.Replace(tc.want, "XXXX", checksum, 1))
			if diff := cmp.Diff(want, tc.got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if got := plainSum(tc.got); got != 0xffff {
				t.Errorf("ones' complement sum %04x, want ffff", got)
			}
		})
	}
}

// plainSum computes the checksum over a pseudo-header that is laid out byte by
// byte, as RFC 8200 section 8.1 draws it.
func plainSum(frame []byte) uint16 {
	icmp := frame[54:]
	b := append([]byte(nil), frame[22:54]...)
	b = binary.BigEndian.AppendUint32(b, uint32(len(icmp)))
	b = append(b, 0, 0, 0, 58)
	b = append(b, icmp...)
	total := 0
	for i := 0; i < len(b); i += 2 {
		total += int(b[i])<<8 | int(b[i+1])
	}
	for total > 0xffff {
		total = total>>16 + total&0xffff
	}
	return uint16(total)
}

func TestParseMeaning(t *testing.T) {
	advertisement := Packet{
		EthernetTo: groupMAC(allNodes), EthernetFrom: client, Source: asker, Dest: allNodes,
		Type: TypeAdvertisement, Override: true, Target: vip, LinkLayer: client,
	}
	bare := advertisement
	bare.LinkLayer = wire.MAC{}
	unicast := solicitation(asker)
	unicast.Dest, unicast.EthernetTo, unicast.LinkLayer = vip, self, wire.MAC{}
	multi := groupMAC(SolicitedNode(vip))
	claim := []wire.Message{{Kind: wire.Advertisement, Address: vip, From: client, To: groupMAC(allNodes)}}
	tests := []struct {
		name string
		give Packet
		want []wire.Message
	}{
		{"question", solicitation(asker), []wire.Message{
			{Kind: wire.Advertisement, Address: asker, From: client, To: multi},
			{Kind: wire.Question, Address: vip, From: client, Asker: asker, To: multi},
		}},
		{"unicast question without option (RFC 4861 7.3.3)", unicast, []wire.Message{
			{Kind: wire.Advertisement, Address: asker, From: client, To: self},
			{Kind: wire.Question, Address: vip, From: client, Asker: asker, To: self},
		}},
		{"probe", solicitation(netip.IPv6Unspecified()), []wire.Message{
			{Kind: wire.Probe, Address: vip, From: client, Asker: netip.IPv6Unspecified(), To: multi},
		}},
		{"advertisement", advertisement, claim},
		{"advertisement without option", bare, claim},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			if diff := cmp.Diff(tc.want, messages(tc.give.Frame()), addrs); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			padded := append(tc.give.Frame(), make([]byte, 6)...)
			if diff := cmp.Diff(tc.want, messages(padded), addrs); diff != "" {
				t.Errorf("padded (-want +got):\n%s", diff)
			}
		})
	}
}

// TestParseRefuses goes through the checks of RFC 4861 sections 7.1.1 and 7.1.2.
func TestParseRefuses(t *testing.T) {
	packet := func(change func(*Packet)) []byte {
		p := solicitation(asker)
		change(&p)
		return p.Frame()
	}
	bytes := func(change func(b []byte)) []byte {
		b := solicitation(asker).Frame()
		change(b)
		b[56], b[57] = 0, 0
		binary.BigEndian.PutUint16(b[56:], ^sum(b))
		return b
	}
	for name, frame := range map[string][]byte{
		"hop limit below 255":           bytes(func(b []byte) { b[21] = 254 }),
		"code not zero":                 bytes(func(b []byte) { b[55] = 1 }),
		"option of length zero":         bytes(func(b []byte) { b[79] = 0 }),
		"option longer than the rest":   bytes(func(b []byte) { b[79] = 2 }),
		"echo request":                  bytes(func(b []byte) { b[54] = 128 }),
		"target is a group":             packet(func(p *Packet) { p.Target = allNodes }),
		"source is a group":             packet(func(p *Packet) { p.Source = allNodes }),
		"probe to another group":        packet(func(p *Packet) { p.Source, p.LinkLayer, p.Dest = netip.IPv6Unspecified(), wire.MAC{}, allNodes }),
		"probe with link-layer option":  packet(func(p *Packet) { p.Source = netip.IPv6Unspecified() }),
		"solicited flag to a group":     packet(func(p *Packet) { p.Type, p.Solicited, p.Dest = TypeAdvertisement, true, allNodes }),
		"advertisement from nobody":     packet(func(p *Packet) { p.Type, p.Source = TypeAdvertisement, netip.IPv6Unspecified() }),
		"cut short":                     solicitation(asker).Frame()[:80],
		"payload longer than the frame": bytes(func(b []byte) { b[19]++ }),
	} {
		if p, ok := Parse(frame); ok {
			t.Errorf("%s: accepted %+v", name, p)
		}
	}
	wrong := solicitation(asker).Frame()
	wrong[56]++
	if _, ok := Parse(wrong); ok {
		t.Error("wrong checksum: accepted")
	}
}

func TestFilter(t *testing.T) {
	p := Protocol{}
	watched := netip.MustParseAddr("2001:db8:0:1::210")
	one := wire.Ranges([]uint32{p.Key(vip)}, wire.MaxRanges)
	both := wire.Ranges([]uint32{p.Key(vip), p.Key(watched)}, wire.MaxRanges)
	vm, err := bpf.NewVM(p.Filter(one, both))
	if err != nil {
		t.Fatal(err)
	}
	other := netip.MustParseAddr("2001:db8:0:1::201")
	fromOurs := solicitation(vip)
	fromOurs.Target, fromOurs.Dest = other, SolicitedNode(other)
	echo := solicitation(asker).Frame()
	echo[54] = 128
	far := solicitation(asker).Frame()
	far[21] = 64
	for _, tc := range []struct {
		name  string
		frame []byte
		want  bool
	}{
		{"question about ours", solicitation(asker).Frame(), true},
		{"advertisement of ours", p.Announce(vip, client, wire.Seal{})[0], true},
		{"probe for one that is only watched", p.Probe(watched, client, wire.MAC{}, wire.Seal{}), false},
		{"advertisement of one that is only watched", p.Announce(watched, client, wire.Seal{})[0], true},
		{"advertisement of another", p.Announce(other, client, wire.Seal{})[0], false},
		{"question about another", p.Probe(other, client, wire.MAC{}, wire.Seal{}), false},
		{"somebody uses ours", fromOurs.Frame(), true},
		{"echo request", echo, false},
		{"from beyond the link", far, false},
	} {
		n, err := vm.Run(tc.frame)
		if err != nil || (n > 0) != tc.want {
			t.Errorf("%s: accepted %v (%v), want %v", tc.name, n > 0, err, tc.want)
		}
	}
}

func TestSolicitedNode(t *testing.T) {
	a := netip.MustParseAddr("4037::1:800:200e:8c6c") // the example of RFC 4291
	if got, want := SolicitedNode(a), netip.MustParseAddr("ff02::1:ff0e:8c6c"); got != want {
		t.Errorf("group %v, want %v", got, want)
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
	f.Add(Protocol{}.Announce(vip, self, wire.Seal{})[0])
	f.Add(Protocol{}.Probe(vip, self, wire.MAC{}, wire.Seal{}))
	f.Add(solicitation(asker).Frame())
	f.Fuzz(func(t *testing.T, frame []byte) {
		p, ok := Parse(frame)
		if ok && !p.EthernetTo.IsZero() {
			again, ok := Parse(p.Frame())
			if !ok || again != p {
				t.Fatalf("%+v became %+v", p, again)
			}
		}
		// The checksum hides most of the parser from random input: repair it.
		if len(frame) >= minFrame {
			frame[56], frame[57] = 0, 0
			end := min(len(frame), icmpStart+int(binary.BigEndian.Uint16(frame[18:])))
			if end >= minFrame {
				binary.BigEndian.PutUint16(frame[56:], ^sum(frame[:end]))
			}
		}
		for _, m := range messages(frame) {
			if !m.Address.Is6() || m.From.IsGroup() || m.From.IsZero() {
				t.Fatalf("%+v from %x", m, frame)
			}
		}
	})
}
