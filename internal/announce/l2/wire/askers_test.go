// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"net/netip"
	"testing"
	"time"
)

// TestRecent: the hosts that asked lately are known by address, the latest hardware address of
// each, and no more than there is room for.
func TestRecent(t *testing.T) {
	a, b := netip.MustParseAddr("192.0.2.200"), netip.MustParseAddr("192.0.2.201")
	host := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}) }
	r := recent{hosts: map[askedBy]lately{}}
	now := time.Unix(1000, 0)
	r.note(now, Message{Address: a, Asker: host(1), From: MAC{1}})
	r.note(now, Message{Address: a, Asker: host(1), From: MAC{2}})
	r.note(now, Message{Address: b, Asker: host(2), From: MAC{3}})
	got := r.of(now, a)
	if len(got) != 1 || got[0] != (Message{Kind: Question, Address: a, Asker: host(1), From: MAC{2}}) {
		t.Errorf("askers %v", got)
	}
	if got := r.of(now.Add(recentAge), a); len(got) != 0 {
		t.Errorf("askers after %v: %v", recentAge, got)
	}
	for i := range 3 * maxRecent {
		r.note(now, Message{Address: b, Asker: host(i), From: MAC{4}})
	}
	if len(r.hosts) != maxRecent || len(r.order) != maxRecent {
		t.Errorf("%d hosts, %d in order, want %d", len(r.hosts), len(r.order), maxRecent)
	}
	if got := r.of(now, a); len(got) != 0 {
		t.Errorf("the oldest is still there: %v", got)
	}
	if got := len(r.of(now, b)); got != maxRecentAddress {
		t.Errorf("%d askers of one address, want %d", got, maxRecentAddress)
	}
}
