// SPDX-License-Identifier: Apache-2.0

package nftables

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/types"

	"github.com/causeway-lb/causeway/internal/proxy/model"
	"github.com/causeway-lb/causeway/internal/testkit/backendtest"
	"github.com/causeway-lb/causeway/internal/testkit/modeltest"
	"github.com/causeway-lb/causeway/internal/testkit/nstest"
)

func name(i int) types.NamespacedName {
	return types.NamespacedName{Namespace: "default", Name: fmt.Sprintf("svc-%d", i)}
}

// service gives Service i with n endpoints of its own, in both families.
func service(i, n int) *model.Service {
	svc := &model.Service{Name: name(i)}
	for _, f := range model.Families {
		cluster, pods := netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)}), [4]byte{10, 128, 0, 0}
		target := &model.Target{}
		for e := range n {
			k := i*n + e
			pods[1], pods[2], pods[3] = byte(128+k>>16), byte(k>>8), byte(k)
			a := netip.AddrFrom4(pods)
			if f == model.IPv6 {
				a = sixth("fd00:10:244::", a)
			}
			target.Endpoints = append(target.Endpoints, model.Endpoint{AddrPort: netip.AddrPortFrom(a, 8080), Weight: 1})
		}
		if f == model.IPv6 {
			cluster = sixth("fd00:10:96::", cluster)
		}
		svc.Frontends = append(svc.Frontends, model.Frontend{
			Key: model.Key{Addr: cluster, Port: 80, Protocol: model.TCP}, Inside: target, Outside: target,
		})
	}
	return svc
}

// sixth puts an IPv4 address behind an IPv6 prefix.
func sixth(prefix string, v4 netip.Addr) netip.Addr {
	a, b := netip.MustParseAddr(prefix).As16(), v4.As4()
	copy(a[12:], b[:])
	return netip.AddrFrom16(a)
}

func desired(n, endpoints int) model.Desired {
	d := model.Desired{Services: map[types.NamespacedName]*model.Service{}}
	for i := range n {
		d.Services[name(i)] = service(i, endpoints)
	}
	return d
}

func mustSync(t testing.TB, b *Backend, d model.Desired, changed ...types.NamespacedName) {
	t.Helper()
	if _, err := backendtest.Sync(context.Background(), b, d, changed); err != nil {
		t.Fatal(err)
	}
}

// rules counts chains and rules as nft lists them.
func rules(t testing.TB) (chains, rules int) {
	t.Helper()
	inChain := false
	for line := range strings.Lines(nstest.Run(t, "nft", "list", "ruleset")) {
		line = strings.TrimSpace(line)
		switch {
		case strings.HasPrefix(line, "chain "):
			chains++
			inChain = true
		case line == "}":
			inChain = false
		case inChain && !strings.HasPrefix(line, "type "):
			rules++
		}
	}
	return chains, rules
}

func TestRuleSetIsConstant(t *testing.T) {
	b := newBackend(t)
	mustSync(t, b, desired(1, 5))
	chains, few := rules(t)
	mustSync(t, b, desired(1000, 5))
	chains1000, many := rules(t)
	if chains != chains1000 || few != many {
		t.Errorf("%d chains and %d rules with 1 Service, %d and %d with 1,000", chains, few, chains1000, many)
	}
	if chains == 0 || few == 0 {
		t.Error("no chains or no rules in the list")
	}
	t.Logf("%d chains, %d rules", chains, few)
}

func TestListIsReadable(t *testing.T) {
	b := newBackend(t)
	d, _ := model.Compute(worldOf(5, 120).Snapshot())
	d.Node.LocalhostNodePorts = true
	sticky := service(1, 5)
	for _, f := range sticky.Frontends {
		f.Inside.Affinity = 3 * time.Hour
	}
	d.Services[sticky.Name] = sticky
	mustSync(t, b, d)
	list := nstest.Run(t, "nft", "list", "ruleset")
	for _, want := range []string{
		"dnat ip to ip daddr . meta l4proto . th dport . numgen random mod 5 map @endpoints",
		"dnat ip6 to ip6 daddr . meta l4proto . th dport . numgen random mod 5 map @endpoints",
		"ip saddr . ip daddr @hairpin masquerade fully-random",
		"ip daddr . meta l4proto . th dport @restricted ip daddr . meta l4proto . th dport . ip saddr != @source-ranges drop",
		"meta mark vmap @classes", "timeout 3h",
	} {
		if !strings.Contains(list, want) {
			t.Errorf("list lacks %q", want)
		}
	}
	for _, bad := range []string{"invalid type", "[unknown"} {
		if strings.Contains(list, bad) {
			t.Errorf("list has %q", bad)
		}
	}
}

func worldOf(seed uint64, changes int) *modeltest.World {
	w := modeltest.New(seed)
	for range changes {
		w.Change()
	}
	return w
}

// A change that the kernel refuses because somebody has meddled is repaired and
// made by the same Sync.
func TestChangeAfterMeddling(t *testing.T) {
	b := newBackend(t)
	defer mustCleanup(t, b)
	d := desired(10, 3)
	mustSync(t, b, d)
	// Deleting an element that is gone already is refused, and the other half of
	// the transaction with it.
	nstest.Run(t, "nft", "delete", "element", "ip", "causeway", "services", "{ 10.96.0.3 . tcp . 80 }")
	next := desired(12, 3)
	delete(next.Services, name(3))
	changed := []types.NamespacedName{name(3), name(10), name(11)}
	r, err := backendtest.Sync(t.Context(), b, next, changed)
	if err != nil || !r.Full || len(r.Rejected) > 0 {
		t.Fatalf("Sync: %+v, %v; want a full one that succeeds", r, err)
	}
	again, err := backendtest.Sync(t.Context(), b, next, nil)
	if err != nil || again.Added+again.Deleted+again.Drift != 0 {
		t.Errorf("after repair: %+v, %v", again, err)
	}
}

// While another process owns the table the kernel refuses everything: the
// Sync fails, names the reason, blames no Service, and the next one repairs.
func TestRefusedSync(t *testing.T) {
	b := newBackend(t)
	defer mustCleanup(t, b)
	d := desired(10, 3)
	mustSync(t, b, d)
	mustCleanup(t, b)
	end := nstest.Own(t, "ip causeway")
	if r, err := backendtest.Sync(t.Context(), b, d, nil); !errors.Is(err, unix.EPERM) {
		t.Errorf("Sync: %+v, %v; want a refusal with EPERM", r, err)
	}
	end() // the table goes with its owner
	r, err := backendtest.Sync(t.Context(), b, d, []types.NamespacedName{})
	if err != nil || !r.Full || len(r.Rejected) > 0 {
		t.Errorf("next Sync: %+v, %v; want a full one that succeeds", r, err)
	}
}

func TestDriftIsFoundAndRepaired(t *testing.T) {
	b := newBackend(t)
	d, _ := model.Compute(worldOf(6, 100).Snapshot())
	mustSync(t, b, d)
	whole := nstest.Run(t, "nft", "list", "ruleset")
	nstest.Run(t, "nft", "add", "table", "ip", "foreign")
	defer nstest.Run(t, "nft", "delete", "table", "ip", "foreign")
	for _, harm := range []string{
		"flush ruleset; add table ip foreign",
		"delete table ip6 causeway",
		"flush map ip causeway services",
		"flush set ip causeway local-pods",
		"flush chain ip causeway inside",
		"flush map ip6 causeway classes",
		"add rule ip causeway inside counter drop",
		"add chain ip causeway mine; add rule ip causeway mine drop",
		"add element ip causeway cluster-ips { 192.0.2.1 }",
		"delete chain ip causeway filter-forward",
		"flush set ip causeway node-port-addresses",
	} {
		t.Run(harm, func(t *testing.T) {
			nstest.Run(t, "nft", harm)
			r, err := backendtest.Sync(t.Context(), b, d, nil)
			if err != nil {
				t.Fatal(err)
			}
			if r.Drift == 0 {
				t.Errorf("drift was not counted: %+v", r)
			}
			list := nstest.Run(t, "nft", "list", "ruleset")
			if words(t, list) != words(t, whole+"table ip foreign {\n}\n") {
				t.Error("the rules are not as before")
			}
		})
	}
}

// words makes lists comparable whose maps are in another order.
func words(t testing.TB, list string) string {
	t.Helper()
	cmd := exec.Command("sh", "-c", `tr -d '{},' | tr -s ' \t' '\n\n' | sed 's/elements//' | sort`)
	cmd.Stdin = strings.NewReader(list)
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

func TestWatchHearsOthersOnly(t *testing.T) {
	b := newBackend(t)
	ctx, cancel := context.WithCancel(t.Context())
	heard := make(chan struct{}, 100)
	done := make(chan error, 1)
	go func() { done <- b.Watch(ctx, func() { heard <- struct{}{} }) }()
	<-heard // the first one says that the watch has begun
	mustSync(t, b, desired(50, 3))
	mustSync(t, b, desired(51, 3), name(50))
	nstest.Run(t, "nft", "add", "table", "ip", "foreign")
	nstest.Run(t, "nft", "delete", "table", "ip", "foreign")
	select {
	case <-heard:
		t.Error("heard of its own or a foreign table's change")
	case <-time.After(100 * time.Millisecond):
	}
	nstest.Run(t, "nft", "delete", "element", "ip", "causeway", "services", "{ 10.96.0.3 . tcp . 80 }")
	select {
	case <-heard:
	case <-time.After(20 * time.Second):
		t.Error("did not hear of a deleted element")
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// A frontend that passes from one Service to another in one Sync stays.
func TestFrontendChangesOwner(t *testing.T) {
	b := newBackend(t)
	d := desired(2, 2)
	mustSync(t, b, d)
	moved := service(0, 2)
	moved.Name = name(7)
	next := model.Desired{Services: map[types.NamespacedName]*model.Service{name(7): moved, name(1): d.Services[name(1)]}}
	r, err := backendtest.Sync(t.Context(), b, next, []types.NamespacedName{name(0), name(7)})
	if err != nil || r.Added+r.Deleted != 0 {
		t.Errorf("%+v, %v; want no change in the kernel", r, err)
	}
	full, err := backendtest.Sync(t.Context(), b, next, nil)
	if err != nil || full.Added+full.Deleted+full.Drift != 0 {
		t.Errorf("%+v, %v; want nothing to repair", full, err)
	}
}
