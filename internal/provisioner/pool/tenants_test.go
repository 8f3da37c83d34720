// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/causeway-lb/causeway/internal/alloc"
	"github.com/causeway-lb/causeway/internal/provisioner"
)

// of makes the request that of another namespace's Service.
func of(namespace, name string) func(*provisioner.Request) {
	return func(r *provisioner.Request) {
		r.Owner = alloc.Owner{Namespace: namespace, Name: name, UID: namespace + name}
	}
}

func allocate(t *testing.T, w *world, req provisioner.Request) provisioner.Allocation {
	t.Helper()
	got, err := w.Allocate(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	w.watch.catchUp(-1)
	return got
}

// A sharing key counts in a namespace, however well it is guessed, unless the pool
// says otherwise.
func TestSharingKeyInOneNamespace(t *testing.T) {
	for _, scope := range []bool{false, true} {
		t.Run(fmt.Sprint("all=", scope), func(t *testing.T) {
			w := newWorld(newStore(1, 0), with(pool("a", "192.0.2.1-192.0.2.9"), func(p *Pool) { p.SharedByAll = scope }))
			keyed := func(port uint16, addresses ...string) func(*provisioner.Request) {
				return func(r *provisioner.Request) {
					r.SharingKey, r.Addresses = "web", addrs(addresses...)
					r.Ports = []provisioner.Port{{Protocol: corev1.ProtocolTCP, Port: port}}
				}
			}
			first := allocate(t, w, request("x", of("blue", "secret-shop"), keyed(80)))
			same := allocate(t, w, request("x", of("blue", "other"), keyed(81)))
			if same.Addresses[0] != first.Addresses[0] {
				t.Errorf("in one namespace: %v and %v", first.Addresses, same.Addresses)
			}
			other := allocate(t, w, request("x", of("red", "web"), keyed(82)))
			if (other.Addresses[0] == first.Addresses[0]) != scope {
				t.Errorf("in another namespace: %v and %v", first.Addresses, other.Addresses)
			}
			asks := allocate(t, w, request("x", of("red", "asks"), keyed(83, first.Addresses[0].String())))
			if (asks.Unmet == nil) != scope {
				t.Errorf("asked for in another namespace: unmet %+v", asks.Unmet)
			}
		})
	}
}

// What a tenant is told names no Service of another namespace.
func TestErrorsNameNoOtherNamespace(t *testing.T) {
	for _, sharedByAll := range []bool{false, true} {
		w := newWorld(newStore(1, 0), with(pool("a", "192.0.2.1-192.0.2.9"), func(p *Pool) { p.SharedByAll = sharedByAll }))
		w.ports = map[string][]provisioner.Port{"blue/secret-shop": {{Protocol: corev1.ProtocolTCP, Port: 80}}}
		w.LocalPods = func(alloc.Owner) string { return "blue/app=secret" }
		allocate(t, w, request("x", of("blue", "secret-shop"), func(r *provisioner.Request) { r.SharingKey = "k" }))
		s := w.store
		s.put(Record{Address: addr("192.0.2.9"), Pool: "a", UID: "u", Reserved: true, ReservedFor: alloc.Owner{Namespace: "blue", Name: "secret-shop"}})
		w.watch.catchUp(-1)
		for _, change := range []func(*provisioner.Request){
			func(*provisioner.Request) {},
			func(r *provisioner.Request) { r.SharingKey = "other" },
			func(r *provisioner.Request) { r.SharingKey = "k" },
			func(r *provisioner.Request) { r.SharingKey, r.LocalPods = "k", "red/app=web" },
			func(r *provisioner.Request) { r.Addresses = addrs("192.0.2.9") },
		} {
			asks := func(r *provisioner.Request) {
				r.Addresses = addrs("192.0.2.1")
				r.Ports = []provisioner.Port{{Protocol: corev1.ProtocolTCP, Port: 80}}
			}
			got := allocate(t, w, request("x", of("red", "web"), asks, change))
			if got.Unmet == nil || strings.Contains(got.Unmet.Message, "secret") || strings.Contains(got.Unmet.Message, "blue") {
				t.Errorf("unmet %+v", got.Unmet)
			}
		}
	}
}

func TestMaxPerNamespace(t *testing.T) {
	limited := with(pool("a", "192.0.2.1-192.0.2.9", "2001:db8::1-2001:db8::9"), func(p *Pool) { p.MaxPerNamespace = 2 })
	w := newWorld(newStore(1, 0), limited)
	for i := range 2 {
		if got := allocate(t, w, request("x", of("blue", fmt.Sprint("web-", i)), dual(corev1.IPFamilyPolicyRequireDualStack))); got.Unmet != nil {
			t.Fatalf("Service %d: unmet %+v", i, got.Unmet)
		}
	}
	for _, test := range []struct {
		name    string
		change  []func(*provisioner.Request)
		refused bool
	}{
		{name: "a third", change: []func(*provisioner.Request){of("blue", "web-2")}, refused: true},
		{name: "a third that asks for an address", change: []func(*provisioner.Request){of("blue", "web-2"), func(r *provisioner.Request) { r.Addresses = addrs("192.0.2.8") }}, refused: true},
		{name: "a third of IPv6", change: []func(*provisioner.Request){of("blue", "web-2"), six}, refused: true},
		{name: "another namespace's", change: []func(*provisioner.Request){of("red", "web-2")}},
		{name: "one that moves", change: []func(*provisioner.Request){of("blue", "web-1"), func(r *provisioner.Request) { r.Addresses = addrs("192.0.2.7") }}},
		{name: "one that wants another besides", change: []func(*provisioner.Request){of("blue", "web-1"), func(r *provisioner.Request) { r.Addresses = addrs("192.0.2.7", "192.0.2.8") }}, refused: true},
	} {
		got := allocate(t, w, request("x", test.change...))
		if test.refused != (got.Unmet != nil) || got.Unmet != nil && (got.Unmet.Reason != provisioner.ReasonLimit || !strings.Contains(got.Unmet.Message, "maxPerNamespace")) {
			t.Errorf("%s: unmet %+v", test.name, got.Unmet)
		}
	}
	if err := w.Release(t.Context(), alloc.Owner{Namespace: "blue", Name: "web-0"}); err != nil {
		t.Fatal(err)
	}
	w.watch.catchUp(-1)
	if got := allocate(t, w, request("x", of("blue", "web-2"))); got.Unmet != nil {
		t.Errorf("after one was deleted: unmet %+v", got.Unmet)
	}
	w.consistent(t)
}

// An address that is shared counts once.
func TestMaxPerNamespaceShared(t *testing.T) {
	w := newWorld(newStore(1, 0), with(pool("a", "192.0.2.1-192.0.2.9"), func(p *Pool) { p.MaxPerNamespace = 1 }))
	for i := range 3 {
		got := allocate(t, w, request("x", of("blue", fmt.Sprint("web-", i)), func(r *provisioner.Request) {
			r.SharingKey, r.Ports = "k", []provisioner.Port{{Protocol: corev1.ProtocolTCP, Port: uint16(80 + i)}}
		}))
		if got.Unmet != nil || got.Addresses[0] != addr("192.0.2.1") {
			t.Errorf("Service %d: %v, unmet %+v", i, got.Addresses, got.Unmet)
		}
	}
}

func TestMaxPerService(t *testing.T) {
	w := newWorld(newStore(1, 0), with(pool("a", "192.0.2.1-192.0.2.9"), func(p *Pool) { p.MaxPerService = 2 }))
	asks := func(n int) func(*provisioner.Request) {
		return func(r *provisioner.Request) { r.Addresses = addrs("192.0.2.1", "192.0.2.2", "192.0.2.3")[:n] }
	}
	if got := allocate(t, w, request("web", asks(3))); got.Unmet == nil || got.Unmet.Reason != provisioner.ReasonLimit || len(got.Addresses) != 0 {
		t.Errorf("three: %+v", got)
	}
	if got := allocate(t, w, request("web", asks(2))); got.Unmet != nil {
		t.Errorf("two: unmet %+v", got.Unmet)
	}
}

// Services of policy Local that share an address keep it when their Pods come to
// differ, and the one that came later is told.
func TestLocalConflictAfterChange(t *testing.T) {
	w := newWorld(newStore(1, 0), pool("a", "192.0.2.1-192.0.2.9"))
	pods := map[string]string{}
	w.LocalPods = func(o alloc.Owner) string { return pods[o.Name] }
	asking := func(name string, port uint16) provisioner.Allocation {
		t.Helper()
		return allocate(t, w, request(name, func(r *provisioner.Request) {
			r.SharingKey, r.LocalPods = "k", pods[name]
			r.Ports = []provisioner.Port{{Protocol: corev1.ProtocolTCP, Port: port}}
		}))
	}
	for _, change := range []struct {
		name         string
		first, later string // Pods; "" is policy Cluster
		told         bool
	}{
		{"the same Pods", "ns/app=a", "ns/app=a", false},
		{"the later has others", "ns/app=a", "ns/app=b", true},
		{"the first has others", "ns/app=c", "ns/app=a", true},
		{"one of policy Cluster", "", "ns/app=a", false},
		{"which turns Local", "ns/app=b", "ns/app=a", true},
		{"the same again", "ns/app=b", "ns/app=b", false},
	} {
		pods["first"], pods["later"] = change.first, change.later
		first, later := asking("first", 80), asking("later", 81)
		if first.Unmet != nil || len(first.Addresses) != 1 || len(later.Addresses) != 1 || first.Addresses[0] != later.Addresses[0] {
			t.Fatalf("%s: %+v and %+v", change.name, first, later)
		}
		if change.told != (later.Unmet != nil) || later.Enough && change.told || later.Unmet != nil && later.Unmet.Reason != provisioner.ReasonSharingNotAllowed {
			t.Errorf("%s: the later one's unmet is %+v", change.name, later.Unmet)
		}
	}
}
