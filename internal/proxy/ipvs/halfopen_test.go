// SPDX-License-Identifier: Apache-2.0

package ipvs

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/causeway-lb/causeway/internal/proxy/model"
)

// What of the kernel's list keeps virtual servers: connections to our real servers
// that somebody may still use.
func TestAnyConnected(t *testing.T) {
	to := map[destination]bool{
		{model.TCP, netip.MustParseAddrPort("10.244.1.4:8080")}:         true,
		{model.TCP, netip.MustParseAddrPort("[fd00:10:244:1::2]:8080")}: true,
		{model.SCTP, netip.MustParseAddrPort("10.244.1.4:8080")}:        true,
	}
	const (
		header = "Pro FromIP   FPrt ToIP     TPrt DestIP   DPrt State       Expires PEName PEData\n"
		client = "C0000264 A042 C000020B 7580 "
	)
	for _, test := range []struct {
		name, line string
		want       bool
	}{
		{"none", "", false},
		{"established", "TCP " + client + "0AF40104 1F90 ESTABLISHED     900", true},
		{"coming up", "TCP " + client + "0AF40104 1F90 SYN_RECV        59", true},
		{"ended, and a SYN-ACK repeated", "TCP " + client + "0AF40104 1F90 SYN_SENT         81", false},
		{"ended", "TCP " + client + "0AF40104 1F90 TIME_WAIT        88", false},
		{"another port", "TCP " + client + "0AF40104 1F91 ESTABLISHED     900", false},
		{"somebody else's", "TCP " + client + "0AF40105 1F90 ESTABLISHED     900", false},
		{"UDP", "UDP " + client + "0AF40104 1F90 UDP             247", false},
		{"SCTP", "SCTP " + client + "0AF40104 1F90 ESTABLISHED     900", true},
		{"SCTP, coming up", "SCTP " + client + "0AF40104 1F90 COOKIE_ECHOED     9", true},
		{"IPv6", "TCP 2001:0db8:0002:0000:0000:0000:0000:0011 D4FA fd00:0010:0096:0000:0000:0000:0000:0010 0050 " +
			"fd00:0010:0244:0001:0000:0000:0000:0002 1F90 ESTABLISHED    69", true},
		{"a line cut short", "TCP " + client + "0AF40104", false},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := anyConnected(strings.NewReader(header+test.line+"\n"), to)
			if got != test.want || err != nil {
				t.Errorf("connected: %v, error %v, want %v", got, err, test.want)
			}
		})
	}
}
