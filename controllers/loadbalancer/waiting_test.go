// SPDX-License-Identifier: Apache-2.0

package loadbalancer

import (
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/causeway-lb/causeway/internal/provisioner"
)

func TestWaitingFreedReturnsLongestWaiterAndRequesters(t *testing.T) {
	w := newWaiting()
	key := func(name string) types.NamespacedName { return types.NamespacedName{Namespace: "ns", Name: name} }
	waits := func(pools ...provisioner.FullPool) *provisioner.AllocationError {
		return &provisioner.AllocationError{Families: []corev1.IPFamily{corev1.IPv4Protocol}, Full: pools}
	}
	four := func(pool string) provisioner.FullPool {
		return provisioner.FullPool{Pool: pool, Family: corev1.IPv4Protocol}
	}
	six := func(pool string) provisioner.FullPool {
		return provisioner.FullPool{Pool: pool, Family: corev1.IPv6Protocol}
	}
	w.add(key("six"), waits(six("a")))
	w.add(key("nowhere"), waits()) // no pool admits it
	w.add(key("other"), waits(four("b")))
	both := waits(four("a"), six("c"))
	both.Families = append(both.Families, corev1.IPv6Protocol)
	w.add(key("both"), both)
	w.add(key("first"), waits(four("a"), four("b")))
	w.add(key("second"), waits(four("a")))
	w.add(key("asking"), &provisioner.AllocationError{Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1")}})
	w.add(key("six"), waits(six("a"))) // keeps its turn

	freed := func(addr, pool string) []string {
		var names []string
		for _, k := range w.freed(netip.MustParseAddr(addr), pool) {
			names = append(names, k.Name)
		}
		return names
	}
	for _, test := range []struct {
		addr, pool string
		want       []string
	}{
		{"192.0.2.1", "a", []string{"asking", "both", "first"}},
		{"192.0.2.2", "a", []string{"both", "first"}},
		{"192.0.2.2", "b", []string{"other"}},
		{"2001:db8::1", "a", []string{"six"}},
		{"2001:db8::1", "c", []string{"both"}},
		{"192.0.2.2", "c", nil},
	} {
		if diff := cmp.Diff(test.want, freed(test.addr, test.pool)); diff != "" {
			t.Errorf("%s of pool %s freed (-want +got):\n%s", test.addr, test.pool, diff)
		}
	}
	w.remove(key("first"))
	if diff := cmp.Diff([]string{"both", "second"}, freed("192.0.2.2", "a")); diff != "" {
		t.Errorf("after the first has gone (-want +got):\n%s", diff)
	}
	if got := w.all(); len(got) != 6 || got[0].Name != "six" {
		t.Errorf("all: %v", got)
	}
}

// A provisioner that fails is tried again after 5 seconds, then less and less
// often, every 5 minutes at last; success begins again.
func TestServeBackoff(t *testing.T) {
	b := serveBackoff()
	service := types.NamespacedName{Namespace: "ns", Name: "web"}
	var got []time.Duration
	for range 9 {
		got = append(got, b.When(service)/time.Second)
	}
	b.Forget(service)
	got = append(got, b.When(service)/time.Second)
	if diff := cmp.Diff([]time.Duration{5, 10, 20, 40, 80, 160, 300, 300, 300, 5}, got); diff != "" {
		t.Errorf("seconds (-want +got):\n%s", diff)
	}
}
