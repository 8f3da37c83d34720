// SPDX-License-Identifier: Apache-2.0

package nftables

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/causeway-lb/causeway/internal/testkit/nstest"
)

// Somebody else's packet mark is the same after translation as before, with
// and without affinity, although the rules pass values through it.
func TestForeignMarksStay(t *testing.T) {
	b := newBackend(t)
	listenAt(t, "10.244.1.2")
	nstest.Everywhere(t)
	nstest.Run(t, "nft", `
		add table ip foreign
		add chain ip foreign before { type filter hook output priority -150; }
		add rule ip foreign before tcp dport 80 meta mark set 0xcafe0001
		add chain ip foreign after { type filter hook postrouting priority 50; }
		add rule ip foreign after tcp dport 8080 tcp flags syn / syn,ack meta mark 0xcafe0001 counter comment "kept"
		add rule ip foreign after tcp dport 8080 tcp flags syn / syn,ack meta mark != 0xcafe0001 counter comment "changed"`)
	defer nstest.Run(t, "nft", "delete", "table", "ip", "foreign")
	for _, affinity := range []time.Duration{0, time.Hour} {
		d := withEndpoints("10.244.1.2")
		d.Services[name(0)].Frontends[0].Inside.Affinity = affinity
		mustSync(t, b, d)
		startLoad(t, "10.96.0.0:80").endAfter(t, 200)
	}
	list := nstest.Run(t, "nft", "list", "table", "ip", "foreign")
	for line := range strings.Lines(list) {
		var packets int
		if _, counters, ok := strings.Cut(line, "counter packets "); ok {
			if _, err := fmt.Sscan(counters, &packets); err != nil {
				t.Fatal(err)
			}
		}
		if strings.Contains(line, `"kept"`) && packets < 400 {
			t.Errorf("%d connections kept their mark, want 400", packets)
		}
		if strings.Contains(line, `"changed"`) && packets > 0 {
			t.Errorf("%d connections have another mark", packets)
		}
	}
}
