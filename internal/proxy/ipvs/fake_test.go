// SPDX-License-Identifier: Apache-2.0

package ipvs

import (
	"context"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/causeway-lb/causeway/internal/netlink/ipvs"
	"github.com/causeway-lb/causeway/internal/netlink/nft"
	"github.com/causeway-lb/causeway/internal/proxy/model"
	"github.com/causeway-lb/causeway/internal/testkit/nfttest"
)

// fakeKernel refuses what the kernel refuses. With faults it fails at random:
// before a change, or behind it.
type fakeKernel struct {
	servers  map[ipvs.Key]*ipvs.VirtualServer
	nftables *nfttest.Kernel
	routes   map[netip.Addr]bool
	addrs    map[netip.Addr]bool
	lacks    map[string]bool // schedulers
	opened   bool            // the firewall
	rnd      *rand.Rand
	odds     float64
	failures int
	calls    []string
}

var errFault = nfttest.ErrFault

func newFakeKernel() *fakeKernel {
	return &fakeKernel{
		servers: map[ipvs.Key]*ipvs.VirtualServer{}, nftables: nfttest.NewKernel(), routes: map[netip.Addr]bool{},
		addrs: map[netip.Addr]bool{}, lacks: map[string]bool{},
	}
}

// fail lets calls fail from now on; with a nil rnd none does.
func (k *fakeKernel) fail(rnd *rand.Rand, odds float64) {
	const requests = 50 // that reading the tables takes, about: a read is to fail as often as any call
	k.rnd, k.odds = rnd, odds
	k.nftables.Faults(rnd, odds/requests)
}

func (k *fakeKernel) fault() bool {
	if k.rnd == nil || k.rnd.Float64() >= k.odds {
		return false
	}
	k.failures++
	return true
}

// try runs change with a fault before it, behind it, or none.
func (k *fakeKernel) try(change func() error) error {
	if k.fault() {
		return errFault
	}
	err := change()
	if k.fault() {
		return errFault
	}
	return err
}

// note records a call; among faults nobody looks at them.
func (k *fakeKernel) note(call func() string) {
	if k.rnd == nil {
		k.calls = append(k.calls, call())
	}
}

type fakeServers struct{ *fakeKernel }
type fakeTables struct {
	*tables
	*fakeKernel
}
type fakeRoutes struct{ *fakeKernel }
type fakeFirewall struct{ *fakeKernel }

func (k fakeServers) Do(changes []ipvs.Change) []error {
	errs := make([]error, len(changes))
	for i, c := range changes {
		errs[i] = k.try(func() error { return k.change(c) })
	}
	return errs
}

func (k fakeServers) change(c ipvs.Change) error {
	k.note(c.String)
	s := k.servers[c.Server]
	if s == nil && c.Op != ipvs.AddServer {
		return unix.ESRCH
	}
	if c.Op <= ipvs.SetServer && k.lacks[c.Settings.Scheduler] {
		return unix.ENOENT
	}
	at := -1
	if s != nil {
		at = slices.IndexFunc(s.Reals, func(r ipvs.RealServer) bool { return r.AddrPort == c.Real.AddrPort })
	}
	switch c.Op {
	case ipvs.AddServer:
		if s != nil {
			return unix.EEXIST
		}
		k.servers[c.Server] = &ipvs.VirtualServer{Key: c.Server, Settings: c.Settings}
	case ipvs.SetServer:
		s.Settings = c.Settings
	case ipvs.DeleteServer:
		delete(k.servers, c.Server)
	case ipvs.AddReal:
		if at >= 0 {
			return unix.EEXIST
		}
		s.Reals = append(s.Reals, c.Real)
	case ipvs.SetReal:
		if at < 0 {
			return unix.ENOENT
		}
		s.Reals[at].Weight = c.Real.Weight
	case ipvs.DeleteReal:
		if at < 0 {
			return unix.ENOENT
		}
		s.Reals = slices.Delete(s.Reals, at, at+1)
	}
	return nil
}

func (k fakeServers) Read() ([]ipvs.VirtualServer, error) {
	var out []ipvs.VirtualServer
	for _, s := range k.servers {
		c := *s
		c.Reals = slices.Clone(s.Reals)
		out = append(out, c)
	}
	if k.fault() {
		return nil, errFault
	}
	return out, nil
}

func (k fakeServers) ReadReals(key ipvs.Key) ([]ipvs.RealServer, error) {
	if k.fault() {
		return nil, errFault
	}
	if s := k.servers[key]; s != nil {
		return slices.Clone(s.Reals), nil
	}
	return nil, nil
}

func (k fakeTables) commit(node *model.Node, rebuild []nft.Table, edits []edit) error {
	err := k.tables.commit(node, rebuild, edits)
	if err == nil {
		k.note(func() string { return "commit" })
	}
	return err
}

// state is what is there, and which tables are.
func (k *fakeKernel) state(t testing.TB) (elements map[elementID]string, there map[nft.Table]bool) {
	t.Helper()
	tables := newTables(k.nftables.Conn(), model.Families[:])
	s, err := tables.read()
	if err != nil {
		t.Fatal(err)
	}
	there = map[nft.Table]bool{}
	for _, table := range tablesFor(model.Families[:]) {
		names, err := tables.Conn.Tables(table.Family)
		if err != nil {
			t.Fatal(err)
		}
		if slices.Contains(names, table.Name) {
			there[table] = true
		}
	}
	return s.elements, there
}

func (k fakeRoutes) read() (routed, own map[netip.Addr]bool, err error) {
	if k.fault() {
		return nil, nil, errFault
	}
	return maps.Clone(k.routes), maps.Clone(k.addrs), nil
}

func (k fakeRoutes) own() (map[netip.Addr]bool, error) {
	if k.fault() {
		return nil, errFault
	}
	return maps.Clone(k.addrs), nil
}

func (k fakeRoutes) listed() (map[netip.Addr]bool, error) { return maps.Clone(k.routes), nil }

func (k fakeRoutes) add(a netip.Addr) error {
	return k.try(func() error { k.note(func() string { return "route " + a.String() }); k.routes[a] = true; return nil })
}

func (k fakeRoutes) delete(a netip.Addr) error {
	return k.try(func() error {
		k.note(func() string { return "unroute " + a.String() })
		delete(k.routes, a)
		return nil
	})
}

func (k fakeRoutes) remove() error { return k.try(func() error { clear(k.routes); return nil }) }

func (k fakeFirewall) open(context.Context) error {
	return k.try(func() error { k.opened = true; return nil })
}

func (k fakeFirewall) close(context.Context) error {
	return k.try(func() error { k.opened = false; return nil })
}

func newFakeBackend(k *fakeKernel, cfg Config) *Backend {
	b := newBackend(cfg.withDefaults(), fakeServers{k}, fakeTables{newTables(k.nftables.Conn(), cfg.withDefaults().Families), k}, fakeRoutes{k}, fakeFirewall{k})
	b.prepare = func() error { return k.try(func() error { return nil }) }
	return b
}
