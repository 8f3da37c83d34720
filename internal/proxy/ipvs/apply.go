// SPDX-License-Identifier: Apache-2.0

package ipvs

import (
	"errors"
	"maps"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/causeway-lb/causeway/internal/netlink/ipvs"
	"github.com/causeway-lb/causeway/internal/netlink/nft"
	"github.com/causeway-lb/causeway/internal/proxy/backend"
	"github.com/causeway-lb/causeway/internal/proxy/model"
	"github.com/causeway-lb/causeway/internal/refcount"
)

// rebuilding are tables to be made anew, and the node that their rules follow.
type rebuilding struct {
	node   *model.Node
	tables []nft.Table
	// was are the elements that they had: written again, but no change.
	was map[elementID]string
}

// apply makes the kernel match what is wanted where t says that it may differ:
// see "Order" in the package's documentation. A step's errors do not
// keep the other virtual servers from being served; they are returned joined,
// and steps that build on the failed one are left out.
func (b *Backend) apply(t *touched, r *rebuilding) (backend.Report, error) {
	var report backend.Report
	// Virtual servers take what this node itself sends at once. Unless connections are
	// tracked by then, as these tables ask for, the others would have what has begun
	// meanwhile for new, and in the middle.
	replies, rest := splitReplies(r.tables)
	if len(replies) > 0 {
		if err := b.tables.commit(r.node, replies, nil); err != nil {
			return report, unsupported(err)
		}
	}
	if err := b.raiseServers(t, &report); err != nil {
		return report, err
	}
	if err := b.refreshOwn(t); err != nil {
		return report, err
	}
	edits := b.edits(t)
	var errs []error
	for _, e := range edits {
		if e.Key.Set == setAddresses && !e.Has && b.have.routes[addrOf(e.Key)] {
			errs = append(errs, b.deleteRoute(addrOf(e.Key), &report))
		}
	}
	errs = append(errs, b.strayRoutes(t, &report)...)
	if err := errors.Join(errs...); err != nil {
		return report, err
	}
	if err := b.tables.commit(r.node, rest, edits); err != nil {
		return report, unsupported(err)
	}
	b.remember(edits, r, &report)
	for id := range t.elements {
		a := addrOf(id)
		if _, is := b.have.elements[id]; id.Set != setAddresses || !is || b.have.routes[a] {
			continue
		}
		if err := b.routes.add(a); err != nil {
			errs = append(errs, err)
			continue
		}
		b.have.routes[a] = true
		report.Added++
	}
	errs = append(errs, b.lowerServers(t, &report)...)
	report.Objects = len(b.have.elements) + len(b.have.routes) + b.want.serving
	return report, errors.Join(errs...)
}

// splitReplies returns those of the tables that are of replies, and the rest.
func splitReplies(tables []nft.Table) (replies, rest []nft.Table) {
	for _, t := range tables {
		if slices.ContainsFunc(model.Families[:], func(f model.Family) bool { return t == repliesOf(f) }) {
			replies = append(replies, t)
		} else {
			rest = append(rest, t)
		}
	}
	return replies, rest
}

func unsupported(err error) error {
	if errors.Is(err, unix.EOPNOTSUPP) {
		return &backend.UnsupportedError{Feature: "nf_tables with reject in prerouting", MinKernel: "5.9", Err: err}
	}
	return err
}

// refreshOwn looks again at the node's own addresses if new ones come up.
func (b *Backend) refreshOwn(t *touched) error {
	for id := range t.elements {
		if id.Set != setAddresses || b.want.elements[id] == nil {
			continue
		}
		if _, had := b.have.elements[id]; !had && !b.have.own[addrOf(id)] {
			own, err := b.routes.own()
			if err == nil {
				b.have.own = own
			}
			return err
		}
	}
	return nil
}

// edits are the elements that differ. An address that the node has itself is left
// to it. The kernel takes ranges only in ascending order.
func (b *Backend) edits(t *touched) []edit {
	wanted := func(id elementID) (string, bool) {
		if id.Set == setAddresses && b.have.own[addrOf(id)] {
			return "", false
		}
		return b.want.elements.Get(id)
	}
	return refcount.Edits(t.elements, b.have.elements, wanted, elementID.Compare)
}

func (b *Backend) remember(edits []edit, r *rebuilding, report *backend.Report) {
	for _, e := range edits {
		was, there := r.was[e.Key]
		again := there && e.Has && was == e.New
		delete(r.was, e.Key)
		if e.Had || there && !again {
			report.Deleted++
		}
		if e.Had {
			delete(b.have.elements, e.Key)
		}
		if e.Has {
			b.have.elements[e.Key] = e.New
		}
		if e.Has && !again {
			report.Added++
		}
	}
	report.Deleted += len(r.was) // not wanted any more
}

func (b *Backend) deleteRoute(a netip.Addr, report *backend.Report) error {
	if err := b.routes.delete(a); err != nil {
		return err
	}
	delete(b.have.routes, a)
	report.Deleted++
	return nil
}

// strayRoutes deletes routes without an element; a full Sync can meet some.
func (b *Backend) strayRoutes(t *touched, report *backend.Report) []error {
	if !t.full {
		return nil
	}
	var errs []error
	for a := range maps.Clone(b.have.routes) {
		id := elementID{Family: model.FamilyOf(a), Set: setAddresses, Key: string(a.AsSlice())}
		if b.want.elements[id] == nil || b.have.own[a] {
			errs = append(errs, b.deleteRoute(a, report))
		}
	}
	return errs
}

// raiseServers brings up what is wanted of virtual and real servers, and takes
// new connections from what is not.
func (b *Backend) raiseServers(t *touched, report *backend.Report) error {
	keys := slices.Collect(maps.Keys(t.servers))
	for {
		var changes []ipvs.Change
		for _, key := range keys {
			changes = b.raise(changes, key)
		}
		errs, retry := b.do(changes, report)
		if len(retry) == 0 {
			return errors.Join(errs...)
		}
		keys = retry
	}
}

func (b *Backend) raise(changes []ipvs.Change, key ipvs.Key) []ipvs.Change {
	w, h := b.want.servers[key], b.have.servers[key]
	if w == nil || h == nil && len(w.reals) == 0 {
		return changes
	}
	settings := w.Settings
	settings.Tag = true
	settings.Scheduler = b.available(settings.Scheduler)
	settings.Fallback = settings.Scheduler == "mh" || settings.Scheduler == "sh"
	switch {
	case h == nil:
		changes = append(changes, ipvs.Change{Op: ipvs.AddServer, Server: key, Settings: settings})
		h = &present{}
	case h.Settings != settings:
		changes = append(changes, ipvs.Change{Op: ipvs.SetServer, Server: key, Settings: settings})
	}
	for real, weight := range w.reals {
		op := ipvs.SetReal
		old, had := h.reals[real]
		if !had {
			op = ipvs.AddReal
		}
		if !had || old != weight {
			changes = append(changes, ipvs.Change{Op: op, Server: key, Real: ipvs.RealServer{AddrPort: real, Weight: weight}})
		}
		b.undrain(key, real)
	}
	for real, weight := range h.reals {
		if _, wanted := w.reals[real]; wanted || w.atOnce {
			continue
		}
		if weight != 0 {
			changes = append(changes, ipvs.Change{Op: ipvs.SetReal, Server: key, Real: ipvs.RealServer{AddrPort: real}})
		}
		b.drain(key, real)
	}
	return changes
}

// available is the scheduler to use in place of one that the kernel may lack.
func (b *Backend) available(scheduler string) string {
	if scheduler == affinityScheduler && b.lacking[scheduler] {
		scheduler = affinityFallback
	}
	if b.lacking[scheduler] {
		return b.cfg.Scheduler
	}
	return scheduler
}

// do carries out changes and remembers those that succeeded. retry are virtual
// servers whose scheduler the kernel turned out to lack.
func (b *Backend) do(changes []ipvs.Change, report *backend.Report) (errs []error, retry []ipvs.Key) {
	failed := map[ipvs.Key]bool{}
	for i, err := range b.servers.Do(changes) {
		c := &changes[i]
		scheduler := c.Settings.Scheduler
		switch {
		case err == nil:
			b.done(c, report)
		case errors.Is(err, unix.ENOENT) && c.Op <= ipvs.SetServer && scheduler != b.cfg.Scheduler:
			b.lacking[scheduler] = true // so that available gives another
			failed[c.Server] = true
			retry = append(retry, c.Server)
		case failed[c.Server]: // follows from the scheduler
		default:
			errs = append(errs, err)
		}
	}
	if len(errs) > 0 {
		return errs, nil
	}
	return nil, retry
}

// done writes one successful change into have.
func (b *Backend) done(c *ipvs.Change, report *backend.Report) {
	h := b.have.servers[c.Server]
	if h == nil && c.Op != ipvs.AddServer {
		return // its addition was reported as failed; the next Sync reads the kernel
	}
	switch c.Op {
	case ipvs.AddServer:
		b.have.servers[c.Server] = &present{Settings: c.Settings, reals: map[netip.AddrPort]uint32{}}
	case ipvs.SetServer:
		h.Settings = c.Settings
	case ipvs.AddReal, ipvs.SetReal:
		h.reals[c.Real.AddrPort] = c.Real.Weight
	case ipvs.DeleteReal:
		delete(h.reals, c.Real.AddrPort)
		b.undrain(c.Server, c.Real.AddrPort)
	case ipvs.DeleteServer:
		delete(b.have.servers, c.Server)
		delete(b.draining, c.Server)
		b.releaseMark(c.Server)
	}
	if c.Op == ipvs.DeleteReal || c.Op == ipvs.DeleteServer {
		report.Deleted++
	} else {
		report.Added++
	}
}

// releaseMark frees the index of a virtual server's mark, unless another one
// has the same: the same frontend's, seen from inside only, or not, or masqueraded
// otherwise; or, after deletions that failed, one of the other family.
func (b *Backend) releaseMark(key ipvs.Key) {
	a := action(key.Mark)
	if !a.byMark() {
		return
	}
	for _, mark := range []action{a, a ^ markInside, a ^ markKeep, a ^ markInside ^ markKeep} {
		for _, v6 := range []bool{false, true} {
			k := ipvs.Key{Mark: uint32(mark), IPv6: v6}
			if b.want.servers[k] != nil || b.have.servers[k] != nil {
				return
			}
		}
	}
	b.render.marks.release(a & markIndex)
}

// lowerServers deletes what nothing leads to any more.
func (b *Backend) lowerServers(t *touched, report *backend.Report) []error {
	var changes []ipvs.Change
	b.touchFading(t)
	for key := range t.servers {
		w, h := b.want.servers[key], b.have.servers[key]
		switch {
		case h == nil && w == nil:
			b.releaseMark(key) // it never came up
		case w == nil:
			changes = b.fade(changes, key, h)
		case h != nil && len(h.reals)+len(w.reals) == 0: // it only stood for what has drained
			changes = append(changes, ipvs.Change{Op: ipvs.DeleteServer, Server: key})
		case h != nil && w.atOnce:
			for real := range h.reals {
				if _, wanted := w.reals[real]; !wanted {
					changes = append(changes, ipvs.Change{Op: ipvs.DeleteReal, Server: key, Real: ipvs.RealServer{AddrPort: real}})
				}
			}
			if len(w.reals) == 0 {
				changes = append(changes, ipvs.Change{Op: ipvs.DeleteServer, Server: key})
			}
		}
	}
	errs, _ := b.do(changes, report)
	return errs
}

// fade takes away a virtual server that nothing leads to any more, if it can be
// missed: where its connections can go on, it stays until they have ended.
func (b *Backend) fade(changes []ipvs.Change, key ipvs.Key, h *present) []ipvs.Change {
	if len(h.reals) == 0 || !b.outlives(key, h) {
		return append(changes, ipvs.Change{Op: ipvs.DeleteServer, Server: key})
	}
	for real, weight := range h.reals {
		if weight != 0 {
			changes = append(changes, ipvs.Change{Op: ipvs.SetReal, Server: key, Real: ipvs.RealServer{AddrPort: real}})
		}
		b.drain(key, real)
	}
	return changes
}

// touchFading adds the virtual servers that were left for their connections at
// addresses that are led here no more.
func (b *Backend) touchFading(t *touched) {
	gone := map[netip.Addr]bool{}
	for id := range t.elements {
		if id.Set == setAddresses && b.want.elements[id] == nil {
			gone[addrOf(id)] = true
		}
	}
	if len(gone) == 0 {
		return
	}
	for key := range b.draining {
		if gone[key.Addr] && b.want.servers[key] == nil {
			t.servers[key] = true
		}
	}
}

// outlives says whether connections of a virtual server that is wanted no more
// still get to it: its frontend's views have become the same or ceased to be, or
// its port was taken out of a Service whose address stays, or was a NodePort.
// UDP must not: see "Removal" in the package's documentation.
func (b *Backend) outlives(key ipvs.Key, h *present) bool {
	if key.Mark == 0 {
		address := elementID{Family: model.FamilyOf(key.Addr), Set: setAddresses, Key: string(key.Addr.AsSlice())}
		return model.Protocol(key.Protocol) != model.UDP && b.want.elements[address] != nil
	}
	if id, known := b.render.marks.owner[action(key.Mark)&markIndex]; known && id.Key != "" {
		return protocolOf(id) != model.UDP
	}
	// An earlier process had it. That only lets drain what may.
	for _, weight := range h.reals {
		if weight != 0 {
			return false
		}
	}
	return true
}

// ignoreAbsent leaves out that something to delete was not there.
func ignoreAbsent(errs []error) []error {
	return slices.DeleteFunc(errs, func(err error) bool {
		return err == nil || errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENOENT)
	})
}
