// SPDX-License-Identifier: Apache-2.0

package nftables

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/types"

	"github.com/causeway-lb/causeway/internal/netlink/nft"
	"github.com/causeway-lb/causeway/internal/proxy/backend"
	"github.com/causeway-lb/causeway/internal/proxy/model"
)

// Config of a Backend.
type Config struct {
	// Families to program; empty means both.
	Families []model.Family
}

// Backend programs nf_tables. It implements backend.Backend and
// backend.Repairer.
type Backend struct {
	conn     *nft.Conn
	families []*family
	// synced says that the fields below and those of families describe the
	// kernel. They change only after a commit has succeeded.
	synced  bool
	node    model.Node
	applied map[types.NamespacedName]*model.Service
	// refused are the Services that are set aside, with what the kernel said.
	// applied has what the kernel kept of them.
	refused map[types.NamespacedName]error
	// heard is what others did since the last Sync.
	heard heard
}

var (
	_ backend.Backend  = (*Backend)(nil)
	_ backend.Repairer = (*Backend)(nil)
)

// New opens a Backend in the network namespace of the calling thread. It
// changes nothing yet. A kernel without nf_tables gives an UnsupportedError.
func New(cfg Config) (*Backend, error) {
	conn, err := nft.Dial()
	if err != nil {
		if errors.Is(err, unix.EPROTONOSUPPORT) {
			return nil, &backend.UnsupportedError{Feature: "nf_tables", MinKernel: "5.9", Err: err}
		}
		return nil, err
	}
	b := &Backend{conn: conn, refused: map[types.NamespacedName]error{}}
	fams := cfg.Families
	if len(fams) == 0 {
		fams = model.Families[:]
	}
	for _, f := range fams {
		b.families = append(b.families, &family{fam: f, table: tableOf(f), render: newRenderer(f)})
	}
	return b, nil
}

// Name is "nftables".
func (b *Backend) Name() string { return "nftables" }

// Close closes the sockets; the rules stay.
func (b *Backend) Close() error { return b.conn.Close() }

// Sync implements backend.Backend: one transaction over both families. Only a
// table that does not exist yet is filled by several, before the last one
// hooks it up.
func (b *Backend) Sync(ctx context.Context, want model.Desired, changed []types.NamespacedName) (backend.Report, error) {
	if err := ctx.Err(); err != nil {
		return backend.Report{}, err
	}
	report, err := b.sync(want, changed)
	if err != nil {
		b.synced = false
		return backend.Report{Full: report.Full}, fmt.Errorf("sync nftables: %w", unsupported(err))
	}
	b.tellRefused(&report)
	return report, nil
}

// sync is Sync without the bookkeeping of failures. A change that the kernel
// refuses is followed by a full sync, which knows whether somebody else's doing
// was the reason and else finds out whose elements were.
func (b *Backend) sync(want model.Desired, changed []types.NamespacedName) (backend.Report, error) {
	damage := b.heard.take()
	full := changed == nil || !b.synced || damage.whole || !reflect.DeepEqual(b.node, want.Node)
	again := slices.Collect(maps.Keys(b.refused))
	var report, repaired backend.Report
	var err error
	if !full {
		accepted, aside := b.split(changed)
		again = aside
		if repaired, err = b.repair(damage); err == nil {
			report, err = b.change(want, accepted)
		}
		full = nft.Refusals(err) != nil
	}
	if full {
		known := maps.Clone(b.refused)
		report, err = b.isolate(want)
		report.Full = true
		for name := range b.refused {
			if known[name] == nil {
				again = append(again, name)
			}
		}
	}
	report = report.Add(repaired)
	if err != nil || len(again) == 0 {
		return report, err
	}
	more, err := b.retry(want, again)
	report = report.Add(more)
	report.Objects = 0
	for _, f := range b.families {
		report.Objects += f.objects
	}
	return report, err
}

// unsupported recognises what a kernel without a feature answers.
func unsupported(err error) error {
	var refused *nft.Error
	switch {
	case !errors.As(err, &refused):
	case errors.Is(refused.Err, unix.EOPNOTSUPP):
		return &backend.UnsupportedError{Feature: refused.Op, MinKernel: "5.9", Err: err}
	case errors.Is(refused.Err, unix.ENOENT) && (strings.HasPrefix(refused.Op, "add chain ") || strings.HasPrefix(refused.Op, "add rule ")):
		// Whatever these lead to was made before: what is missing is the chain's
		// type or an expression.
		return &backend.UnsupportedError{Feature: "address translation by nf_tables (CONFIG_NFT_NAT)", MinKernel: "5.9", Err: err}
	}
	return err
}

// change applies the difference that some Services make.
func (b *Backend) change(want model.Desired, changed []types.NamespacedName) (backend.Report, error) {
	changed = slices.Compact(slices.SortedFunc(slices.Values(changed), compareNames))
	var tx nft.Batch
	deltas := make([]*delta, len(b.families))
	for i, f := range b.families {
		d := newDelta()
		for _, name := range changed {
			d.service(f.render, b.applied[name], want.Services[name])
		}
		f.write(&tx, d, &b.node)
		deltas[i] = d
	}
	if err := b.conn.Commit(&tx); err != nil {
		return backend.Report{}, err
	}
	report := backend.Report{}
	for i, f := range b.families {
		report = report.Add(f.applied(deltas[i]))
	}
	for _, name := range changed {
		if svc := want.Services[name]; svc != nil {
			b.applied[name] = svc
		} else {
			delete(b.applied, name)
		}
	}
	return report, nil
}

// fullSync reads the kernel back and makes it match want, whatever it was.
func (b *Backend) fullSync(want model.Desired) (backend.Report, error) {
	var tx nft.Batch
	plans := make([]*plan, len(b.families))
	for i, f := range b.families {
		f.render.masqueradeAll = want.Node.MasqueradeAll
		expected := b.expected(want, f.render)
		p, err := f.plan(b.conn, want, expected)
		if err != nil {
			return backend.Report{}, err
		}
		if p.fresh() {
			if err := p.fill(b.conn); err != nil {
				return backend.Report{}, err
			}
		}
		p.write(&tx)
		plans[i] = p
	}
	if err := b.conn.Commit(&tx); err != nil {
		return backend.Report{}, err
	}
	report := backend.Report{Full: true}
	for i, f := range b.families {
		f.adopt(plans[i])
		report = report.Add(plans[i].report)
	}
	b.synced, b.node, b.applied = true, want.Node, maps.Clone(want.Services)
	if b.applied == nil {
		b.applied = map[types.NamespacedName]*model.Service{}
	}
	return report, nil
}

// expected gives the elements that may differ from the last Sync without
// anybody's fault, nil if there is no last Sync to compare with.
func (b *Backend) expected(want model.Desired, r *renderer) map[elementID]bool {
	if !b.synced || !reflect.DeepEqual(b.node, want.Node) {
		return nil
	}
	ids := map[elementID]bool{}
	mark := func(e element) { ids[e.id()] = true }
	for name, svc := range want.Services {
		if old := b.applied[name]; old != svc {
			r.service(svc, mark)
			if old != nil {
				r.service(old, mark)
			}
		}
	}
	for name, old := range b.applied {
		if want.Services[name] == nil {
			r.service(old, mark)
		}
	}
	return ids
}

// Cleanup deletes the tables.
func (b *Backend) Cleanup(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	b.synced = false
	var tables []nft.Table
	for _, f := range b.families {
		tables = append(tables, f.table)
	}
	if err := b.conn.RemoveTables(tables...); err != nil {
		return fmt.Errorf("clean up nftables: %w", err)
	}
	return nil
}

// Watch implements backend.Watcher with a netlink monitor.
func (b *Backend) Watch(ctx context.Context, notify func()) error {
	m, err := nft.NewMonitor(b.conn.Port())
	if err != nil {
		return err
	}
	defer m.Close()
	// What happened before the monitor listened is unknown.
	b.heard.note(&nft.Change{})
	notify()
	return m.Run(ctx, func(c *nft.Change) {
		if b.heard.note(c) {
			notify()
		}
	})
}

// Pinpointed implements backend.Repairer.
func (b *Backend) Pinpointed() bool { return b.synced && b.heard.pinpointed() }
