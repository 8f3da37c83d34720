// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"net/netip"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/events"

	"github.com/causeway-lb/causeway/api/v1alpha1"
	"github.com/causeway-lb/causeway/internal/testkit/nstest"
)

// TestBoundAddresses: the kernel's answers decide, not on which interface an address
// is.
func TestBoundAddresses(t *testing.T) {
	nstest.Require(t, "ip", "sysctl")
	nstest.Run(t, "ip", "link", "add", "eth0", "type", "veth", "peer", "name", "other")
	t.Cleanup(func() {
		for _, words := range [][]string{
			{"ip", "link", "del", "eth0"}, {"ip", "link", "del", "quiet"}, {"sysctl", "-qw", "net.ipv4.conf.all.arp_ignore=0"},
			{"ip", "addr", "del", "192.0.2.201/32", "dev", "lo"}, {"ip", "addr", "del", "203.0.113.1/32", "dev", "lo"},
			{"ip", "addr", "del", "2001:db8::201/128", "dev", "lo"},
		} {
			nstest.Run(t, words[0], words[1:]...)
		}
	})
	nstest.Run(t, "ip", "link", "add", "quiet", "type", "veth", "peer", "name", "quieter")
	nstest.Run(t, "ip", "link", "set", "quiet", "arp", "off")
	for _, l := range []string{"lo", "eth0", "other", "quiet", "quieter"} {
		nstest.Run(t, "ip", "link", "set", l, "up")
	}
	for a, l := range map[string]string{
		"192.0.2.1/24": "eth0", "2001:db8::1/64": "eth0", "192.0.2.200/32": "eth0", "2001:db8::200/128": "eth0",
		"192.0.2.201/32": "lo", "2001:db8::201/128": "lo", "192.0.2.202/32": "quiet", "203.0.113.1/32": "lo",
	} {
		nstest.Run(t, "ip", "addr", "add", a, "dev", l, "nodad")
	}
	want := func(when string, want map[string]string) {
		t.Helper()
		got, err := boundAddresses()
		must(t, err)
		for _, a := range []string{"192.0.2.200", "2001:db8::200", "192.0.2.201", "2001:db8::201", "192.0.2.202", "203.0.113.1"} {
			if on := got[netip.MustParseAddr(a)]; on != want[a] {
				t.Errorf("%s: %s is bound to %q, want %q", when, a, on, want[a])
			}
		}
	}
	set := func(name, value string) { nstest.Run(t, "sysctl", "-qw", "net.ipv4.conf."+name+".arp_ignore="+value) }
	own := map[string]string{"192.0.2.200": "eth0", "2001:db8::200": "eth0"}
	want("at first", map[string]string{
		"192.0.2.200": "eth0", "2001:db8::200": "eth0", "192.0.2.201": "lo", "192.0.2.202": "quiet", "203.0.113.1": "lo",
	})
	set("eth0", "1")
	want("the LAN's interface answers for its own", map[string]string{
		"192.0.2.200": "eth0", "2001:db8::200": "eth0", "203.0.113.1": "lo",
	})
	set("eth0", "0")
	set("all", "1")
	want("all answer for their own", own)
}

// TestBoundAddressIsReported: an event says where a LoadBalancer address is bound, once.
func TestBoundAddressIsReported(t *testing.T) {
	nstest.Require(t, "ip")
	nstest.Run(t, "ip", "link", "add", "eth0", "type", "veth", "peer", "name", "other")
	t.Cleanup(func() { nstest.Run(t, "ip", "link", "del", "eth0") })
	nstest.Run(t, "ip", "link", "set", "eth0", "up")
	nstest.Run(t, "ip", "addr", "add", "192.0.2.200/32", "dev", "eth0")
	recorder := events.NewFakeRecorder(8)
	store := NewStore()
	for _, a := range []string{"192.0.2.200", "192.0.2.201"} {
		store.addresses[a] = &v1alpha1.LoadBalancerAddress{
			ObjectMeta: metav1.ObjectMeta{Name: a}, Spec: v1alpha1.LoadBalancerAddressSpec{Address: a},
		}
	}
	env := Env{NodeName: "node-1", Store: store, Recorder: recorder}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go (&announcer{env: env, status: newAnnounceStatus(env)}).watchBound(ctx)
	select {
	case e := <-recorder.Events:
		if !strings.Contains(e, "AddressBound bound here, on eth0 of node node-1") {
			t.Errorf("event %q", e)
		}
	case <-time.After(20 * time.Second):
		t.Error("no event")
	}
}
