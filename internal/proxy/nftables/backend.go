// SPDX-License-Identifier: Apache-2.0

package nftables

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"strings"

	"golang.org/x/sys/unix"

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
	families []*family // change only after a commit has succeeded
	// node is that of the last Resync, for Inspect; nil before the first.
	node *model.Node
	// heard is what other programs did since the last Resync or Repair.
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
	b := &Backend{conn: conn}
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

// Resync implements backend.Backend: one transaction over both families. Only a
// table that does not exist yet is filled by several, before the last one
// hooks it up.
func (b *Backend) Resync(ctx context.Context, want model.Desired) (backend.Report, error) {
	if err := ctx.Err(); err != nil {
		return backend.Report{}, err
	}
	b.heard.take()
	report, err := b.resync(want)
	return report, b.failed(err, func(yield func(*model.Service) bool) {
		for _, svc := range want.Services {
			if !yield(svc) {
				return
			}
		}
	})
}

// Apply implements backend.Backend: one transaction over both families.
func (b *Backend) Apply(ctx context.Context, step backend.Delta) (backend.Report, error) {
	if err := ctx.Err(); err != nil {
		return backend.Report{}, err
	}
	report, err := b.change(step)
	return report, b.failed(err, func(yield func(*model.Service) bool) {
		for _, c := range step.Services {
			if c.Old != nil && !yield(c.Old) || c.New != nil && !yield(c.New) {
				return
			}
		}
	})
}

// Repair implements backend.Repairer.
func (b *Backend) Repair(ctx context.Context, had model.Desired) (backend.Report, error) {
	if err := ctx.Err(); err != nil {
		return backend.Report{}, err
	}
	report, err := b.repair(b.heard.takePinpointed(), had)
	return report, b.failed(err, func(func(*model.Service) bool) {})
}

// failed returns err for the caller: a RejectedError, with those of services that
// have rejected elements, if the kernel rejected the transaction.
func (b *Backend) failed(err error, services iter.Seq[*model.Service]) error {
	if err == nil {
		return nil
	}
	rejections := nft.Refusals(err)
	err = fmt.Errorf("sync nftables: %w", unsupported(err))
	if rejections == nil {
		return err
	}
	return &backend.RejectedError{Services: b.blame(services, rejections), Err: err}
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
func (b *Backend) change(step backend.Delta) (backend.Report, error) {
	var tx nft.Batch
	deltas := make([]*delta, len(b.families))
	for i, f := range b.families {
		d := newDelta()
		for _, c := range step.Services {
			d.service(f.render, c.Old, c.New)
		}
		f.write(&tx, d, &step.Node)
		deltas[i] = d
	}
	if err := b.conn.Commit(&tx); err != nil {
		return backend.Report{}, err
	}
	report := backend.Report{}
	for i, f := range b.families {
		report = report.Add(f.applied(deltas[i]))
	}
	return report, nil
}

// resync reads the kernel and makes it match want, whatever it was.
func (b *Backend) resync(want model.Desired) (backend.Report, error) {
	var tx nft.Batch
	plans := make([]*plan, len(b.families))
	for i, f := range b.families {
		f.render.masqueradeAll = want.Node.MasqueradeAll
		p, err := f.plan(b.conn, want)
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
	report := backend.Report{}
	for i, f := range b.families {
		f.adopt(plans[i])
		report = report.Add(plans[i].report)
	}
	b.node = &want.Node
	return report, nil
}

// Cleanup deletes the tables.
func (b *Backend) Cleanup(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	b.node = nil
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
func (b *Backend) Pinpointed() bool { return b.heard.pinpointed() }
