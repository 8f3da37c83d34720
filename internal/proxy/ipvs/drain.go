// SPDX-License-Identifier: Apache-2.0

package ipvs

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/go-logr/logr"

	"github.com/causeway-lb/causeway/internal/netlink/conntrack"
	"github.com/causeway-lb/causeway/internal/netlink/ipvs"
	"github.com/causeway-lb/causeway/internal/proxy/backend"
	"github.com/causeway-lb/causeway/internal/proxy/model"
)

// drain notes that a real server goes when its connections have ended.
func (b *Backend) drain(key ipvs.Key, real netip.AddrPort) {
	reals := b.draining[key]
	if reals == nil {
		reals = map[netip.AddrPort]time.Time{}
		b.draining[key] = reals
	}
	if _, ok := reals[real]; !ok {
		reals[real] = b.now().Add(b.cfg.DrainTimeout)
	}
	b.schedule()
}

// undrain takes that back.
func (b *Backend) undrain(key ipvs.Key, real netip.AddrPort) {
	delete(b.draining[key], real)
	if len(b.draining[key]) == 0 {
		delete(b.draining, key)
	}
}

// schedule has sweep run once, after a while.
func (b *Backend) schedule() {
	if b.timer != nil || b.closed {
		return
	}
	b.timer = time.AfterFunc(b.cfg.DrainInterval, b.sweep)
}

// sweep deletes the real servers that have drained or took too long, and
// virtual servers that only stood for them. An error makes the next Sync read
// the kernel.
func (b *Backend) sweep() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.timer = nil
	if b.closed {
		return
	}
	var changes []ipvs.Change
	for key, reals := range b.draining {
		changes = b.drained(changes, key, reals)
	}
	if errs, _ := b.do(changes, &backend.Report{}); len(ignoreAbsent(errs)) > 0 {
		b.synced = false
	}
	if len(b.draining) > 0 {
		b.schedule()
	}
}

// drained adds the deletions that one virtual server is ready for.
func (b *Backend) drained(changes []ipvs.Change, key ipvs.Key, reals map[netip.AddrPort]time.Time) []ipvs.Change {
	found, err := b.servers.ReadReals(key)
	if err != nil {
		b.synced = false
		return changes
	}
	left := len(found)
	for _, r := range found {
		deadline, draining := reals[r.AddrPort]
		if !draining || r.Active+r.Inactive > 0 && b.now().Before(deadline) {
			continue
		}
		changes = append(changes, ipvs.Change{Op: ipvs.DeleteReal, Server: key, Real: r})
		left--
	}
	if w := b.want.servers[key]; left == 0 && (w == nil || len(w.reals) == 0) {
		changes = append(changes, ipvs.Change{Op: ipvs.DeleteServer, Server: key})
	}
	return changes
}

// Leave is Cleanup for a node that has another mode now, which translates new
// connections before they come here. While virtual servers have connections,
// those stay, and what leads packets to them; the tables, which would still
// refuse and mark, go at once. Flows by UDP are handed over before. done says that nothing is left; call it again
// until then.
func (b *Backend) Leave(ctx context.Context) (done bool, err error) {
	busy, err := b.quiesce()
	if err != nil {
		return false, fmt.Errorf("leave ipvs: %w", err)
	}
	if busy {
		return false, nil
	}
	if err := b.untrack(b.endpoints()); err != nil {
		logr.FromContextOrDiscard(ctx).Error(err, "Flows by UDP may lose datagrams while IPVS goes")
	}
	return true, b.Cleanup(ctx)
}

// quiesce removes what concerns new connections, and says whether there are
// established ones.
func (b *Backend) quiesce() (busy bool, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.synced = false
	found, err := b.read()
	if err != nil {
		return false, err
	}
	b.want = newWanted()
	b.load(found)
	active := map[destination]bool{}
	for key := range b.have.servers {
		reals, err := b.servers.ReadReals(key)
		if err != nil {
			return false, err
		}
		for _, r := range reals {
			if r.Active == 0 {
				continue
			}
			protocols := []model.Protocol{model.Protocol(key.Protocol)}
			if key.Mark != 0 {
				protocols = []model.Protocol{model.TCP, model.UDP, model.SCTP} // a mark does not say
			}
			for _, p := range protocols {
				active[destination{p, r.AddrPort}] = true
			}
		}
	}
	if len(active) > 0 {
		busy, err = b.connected(active)
	}
	if err != nil || !busy {
		return false, err
	}
	return true, b.tables.retire()
}

// endpoints are all real servers.
func (b *Backend) endpoints() map[netip.AddrPort]bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	out := map[netip.AddrPort]bool{}
	for _, server := range b.have.servers {
		for real := range server.reals {
			out[real] = true
		}
	}
	return out
}

// untrackUDP has connection tracking forget the flows by UDP that IPVS translates to
// these endpoints: from their next datagram on they are the new mode's. No rule of that
// one is asked about a flow that is known, and here it soon ends.
func untrackUDP(endpoints map[netip.AddrPort]bool) error {
	d, err := conntrack.OpenDeleter(nil)
	if err != nil {
		return err
	}
	defer d.Close()
	var errs []error
	for _, anywhere := range []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
		filter := conntrack.Filter{Protocol: uint8(model.UDP), To: netip.AddrPortFrom(anywhere, 0)}
		errs = append(errs, conntrack.List(filter, func(e *conntrack.Entry) error {
			if !e.Translated() || e.MappedByRule() || !endpoints[e.Endpoint] {
				return nil
			}
			return d.Add(e)
		}), d.Flush())
	}
	return errors.Join(errs...)
}
