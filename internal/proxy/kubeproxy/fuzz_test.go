// SPDX-License-Identifier: Apache-2.0

package kubeproxy

import (
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// FuzzParse: of whatever iptables-save prints, only kube-proxy's chains and jumps are
// removed, and no chain that somebody else's rule needs.
func FuzzParse(f *testing.F) {
	f.Add("nat", ":KUBE-SERVICES - [0:0]\n:KUBE-MARK-MASQ - [0:0]\n:CNI - [0:0]\n"+
		`-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES`+"\n-A CNI -j KUBE-MARK-MASQ\n")
	f.Add("filter", ":KUBE-FIREWALL - [0:0]\n-A INPUT -j KUBE-FIREWALL\nCOMMIT\n")
	f.Add("nat", "-A\n:\n-A  -j\n-A X -g KUBE-SVC-X\n")
	f.Fuzz(func(t *testing.T, table, saved string) {
		got := parse(table, []byte(saved))
		if !slices.IsSorted(got.chains) {
			t.Errorf("chains are not sorted: %q", got.chains)
		}
		for _, name := range got.chains {
			if !ours(table, name) {
				t.Errorf("removes chain %q, which is not kube-proxy's", name)
			}
			if why, kept := got.kept[name]; kept {
				t.Errorf("removes chain %q, and keeps it for %q", name, why)
			}
		}
		for _, j := range got.jumps {
			if !j.commented() || !ours(table, j.target()) || ours(table, j.chain) {
				t.Errorf("removes %q of chain %q, which is no jump of kube-proxy's", j.text, j.chain)
			}
			if strings.Contains(j.text, "\n") {
				t.Errorf("rule %q is more than one line", j.text)
			}
		}
	})
}

// FuzzDecodeSet: whatever the kernel says of an ip set is read without a panic.
func FuzzDecodeSet(f *testing.F) {
	port := nl.NewRtAttr(nl.IPSET_ATTR_PORT|unix.NLA_F_NET_BYTEORDER, []byte{0x75, 0x30})
	data := nl.NewRtAttr(nl.IPSET_ATTR_DATA|unix.NLA_F_NESTED, port.Serialize())
	adt := nl.NewRtAttr(nl.IPSET_ATTR_ADT|unix.NLA_F_NESTED, data.Serialize())
	set := append([]byte{2, 0, 0, 0}, nl.NewRtAttr(nl.IPSET_ATTR_SETNAME, nl.ZeroTerminated("KUBE-NODE-PORT-TCP")).Serialize()...)
	set = append(set, adt.Serialize()...)
	if name, ports := decodeSet(set); name != "KUBE-NODE-PORT-TCP" || !slices.Equal(ports, []uint16{30000}) {
		f.Fatalf("read %q, %v", name, ports)
	}
	f.Add(set)
	f.Add(set[:len(set)-3])
	f.Add([]byte{2, 0})
	f.Fuzz(func(t *testing.T, message []byte) {
		name, ports := decodeSet(message)
		if len(ports) > len(message)/4 || len(name) > len(message) {
			t.Errorf("read a name of %d bytes and %d ports of %d bytes", len(name), len(ports), len(message))
		}
	})
}
