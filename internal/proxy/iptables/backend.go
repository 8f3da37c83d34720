// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/causeway-lb/causeway/internal/netlink/nft"
	"github.com/causeway-lb/causeway/internal/proxy/backend"
	"github.com/causeway-lb/causeway/internal/proxy/model"
	"github.com/causeway-lb/causeway/internal/refcount"
)

// DefaultMark is the first of the three bits of the packet mark in use. They
// are apart from those of the ipvs mode: while a node changes from one to the
// other a packet can have both.
const DefaultMark = 1 << 20

// Config of a Backend.
type Config struct {
	// Families to program; empty means both.
	Families []model.Family
	// Variant is "legacy", "nft", or "" for the one that iptables-restore is.
	Variant string
	// Mark is one bit of the packet mark; the two above it are used too. 0 is
	// DefaultMark.
	Mark uint32
}

// Validate says what is wrong.
func (c Config) Validate() error {
	if !slices.Contains([]string{"", "legacy", "nft"}, c.Variant) {
		return fmt.Errorf("unknown iptables variant %q: use legacy, nft, or leave it empty", c.Variant)
	}
	if c.Mark&(c.Mark-1) != 0 || c.Mark > 1<<29 {
		return fmt.Errorf("iptables mark %#x must be one bit, at most %#x", c.Mark, 1<<29)
	}
	return nil
}

// Backend programs iptables. It implements backend.Backend.
type Backend struct {
	families []*family
	// node is that of the last Resync, for Inspect; nil before the first.
	node *model.Node
}

var _ backend.Backend = (*Backend)(nil)

// New finds the programs. It changes nothing; whether the kernel has what they
// need shows at the first Resync, as an UnsupportedError. The programs run in
// the network namespace of the thread that calls it.
func New(cfg Config) (*Backend, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if len(cfg.Families) == 0 {
		cfg.Families = model.Families[:]
	}
	b := &Backend{}
	for _, fam := range cfg.Families {
		p, err := newProgram(fam, cfg.Variant)
		if err != nil {
			return nil, err
		}
		b.families = append(b.families, &family{
			run: p, render: renderer{fam: fam, marks: newMarks(cmp.Or(cfg.Mark, DefaultMark))},
		})
	}
	return b, nil
}

// Name is "iptables".
func (b *Backend) Name() string { return "iptables" }

// Close has nothing to release.
func (b *Backend) Close() error { return nil }

// Resync implements backend.Backend.
func (b *Backend) Resync(ctx context.Context, want model.Desired) (backend.Report, error) {
	report, err := b.each(ctx, func(f *family) (backend.Report, error) { return f.resync(ctx, want) })
	if err == nil {
		b.node = &want.Node
	}
	return report, err
}

// Apply implements backend.Backend.
func (b *Backend) Apply(ctx context.Context, step backend.Delta) (backend.Report, error) {
	return b.each(ctx, func(f *family) (backend.Report, error) { return f.change(ctx, step.Services) })
}

// each programs the families. They are independent of each other: an error in one
// does not keep the other from being programmed.
func (b *Backend) each(ctx context.Context, program func(*family) (backend.Report, error)) (backend.Report, error) {
	if err := ctx.Err(); err != nil {
		return backend.Report{}, err
	}
	var report backend.Report
	var errs []error
	for _, f := range b.families {
		r, err := program(f)
		report = report.Add(r)
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return report, fmt.Errorf("sync iptables: %w", err)
	}
	return report, nil
}

// Cleanup removes the jumps and the chains.
func (b *Backend) Cleanup(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	b.node = nil
	var errs []error
	for _, f := range b.families {
		errs = append(errs, f.cleanup(ctx))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("clean up iptables: %w", err)
	}
	return nil
}

// runner is program; tests put faults in between.
type runner interface {
	read(context.Context, table) (*dump, error)
	apply(context.Context, []byte) error
}

// family is one IP family's tables.
type family struct {
	run    runner
	render renderer
	// want are all wanted rules, by chain.
	want map[chainID]*chain
	// have are the chains as the last restore left them.
	have map[chainID][]string
	// objects counts their rules.
	objects int
}

type chainID struct {
	table table
	name  string
}

// chain is a wanted chain.
type chain struct {
	rules refcount.Map[string, string] // several Services may have one
}

// texts are the chain's rules in order.
func (c *chain) texts() []string {
	if c == nil {
		return nil
	}
	out := make([]string, 0, len(c.rules))
	for _, key := range slices.Sorted(maps.Keys(c.rules)) {
		out = append(out, c.rules[key].Value)
	}
	return out
}

func (f *family) add(r rules, dirty map[chainID]bool) {
	for id, text := range r {
		at := chainID{id.table, id.chain}
		c := f.want[at]
		if c == nil {
			c = &chain{rules: refcount.Map[string, string]{}}
			f.want[at] = c
		}
		c.rules.Put(id.key, text)
		dirty[at] = true
	}
}

func (f *family) remove(r rules, dirty map[chainID]bool) {
	for id := range r {
		at := chainID{id.table, id.chain}
		dirty[at] = true
		c := f.want[at]
		if c == nil {
			continue
		}
		c.rules.Drop(id.key)
		if len(c.rules) == 0 {
			delete(f.want, at)
		}
	}
}

// change applies the difference that some Services make.
func (f *family) change(ctx context.Context, services []model.Change) (backend.Report, error) {
	dirty := map[chainID]bool{}
	for _, c := range services {
		f.remove(f.render.service(c.Old), dirty)
	}
	for _, c := range services {
		f.add(f.render.service(c.New), dirty)
	}
	return f.write(ctx, dirty, nil)
}

// resync reads the kernel and makes it match want, whatever it was.
func (f *family) resync(ctx context.Context, want model.Desired) (backend.Report, error) {
	before := f.have
	var jumps bytes.Buffer
	f.have, f.objects = map[chainID][]string{}, 0
	fixes := map[table]string{}
	drift := 0
	for _, t := range []table{nat, filter} {
		d, err := f.run.read(ctx, t)
		if err != nil {
			return backend.Report{}, err
		}
		for name, texts := range d.chains {
			f.have[chainID{t, name}] = texts
			f.objects += len(texts)
		}
		jumps.Reset()
		for _, h := range hooks {
			if h.table == t {
				drift += h.fix(&jumps, d)
			}
		}
		fixes[t] = jumps.String()
	}
	drift += differences(before, f.have)
	f.want = map[chainID]*chain{}
	dirty := map[chainID]bool{}
	for _, c := range constantChains {
		f.want[c] = &chain{rules: refcount.Map[string, string]{}}
		dirty[c] = true
	}
	f.render.masqueradeAll = want.Node.MasqueradeAll
	f.add(f.render.node(&want.Node), dirty)
	for _, svc := range want.Services {
		f.add(f.render.service(svc), dirty)
	}
	for at := range f.have {
		dirty[at] = true
	}
	report, err := f.write(ctx, dirty, fixes)
	report.Drift = drift
	return report, err
}

// constantChains are there even when they have no rules.
var constantChains = []chainID{
	{nat, chainServices}, {nat, chainOutside}, {nat, chainClosed}, {nat, chainPorts}, {nat, chainPortsO},
	{nat, chainNodePorts}, {nat, chainNodePortsO}, {nat, chainHairpin}, {nat, chainLocal},
}

func (c chainID) constant() bool { return slices.Contains(constantChains, c) }

func differences(a, b map[chainID][]string) int {
	n := 0
	for at, texts := range a {
		other, ok := b[at]
		if !ok {
			n++
		}
		n += distance(texts, other)
	}
	for at, texts := range b {
		if _, ok := a[at]; !ok {
			n += 1 + len(texts)
		}
	}
	return n
}

// distance counts the rules that only one of two chains has.
func distance(a, b []string) int {
	added, deleted := compare(a, b)
	return added + deleted
}

// compare counts rules to add and to delete to get from old to new. An order
// that differs counts as one change.
func compare(old, new []string) (added, deleted int) {
	if slices.Equal(old, new) {
		return 0, 0
	}
	left := map[string]int{}
	for _, r := range old {
		left[r]++
	}
	for _, r := range new {
		if left[r] > 0 {
			left[r]--
		} else {
			added++
		}
	}
	for _, n := range left {
		deleted += n
	}
	if added+deleted == 0 {
		return 1, 0
	}
	return added, deleted
}

// write brings the dirty chains up to date: first filter, which then knows the
// marks that nat sets.
func (f *family) write(ctx context.Context, dirty map[chainID]bool, fixes map[table]string) (backend.Report, error) {
	var report backend.Report
	for _, t := range []table{filter, nat} {
		if err := f.writeTable(ctx, t, dirty, fixes[t], &report); err != nil {
			return report, fmt.Errorf("table %s: %w", t, err)
		}
	}
	report.Objects = f.objects
	return report, nil
}

func (f *family) writeTable(ctx context.Context, t table, dirty map[chainID]bool, fix string, report *backend.Report) error {
	var declare, fill, discard bytes.Buffer
	next := map[chainID][]string{}
	var gone []chainID
	for at := range dirty {
		if at.table != t {
			continue
		}
		c := f.want[at]
		old, had := f.have[at]
		if c == nil && !at.constant() {
			if had {
				fmt.Fprintf(&declare, ":%s - [0:0]\n", at.name)
				fmt.Fprintf(&discard, "-X %s\n", at.name)
				gone = append(gone, at)
				report.Deleted += len(old)
			}
			continue
		}
		texts := c.texts()
		if had && slices.Equal(old, texts) {
			continue
		}
		fmt.Fprintf(&declare, ":%s - [0:0]\n", at.name)
		for _, text := range texts {
			fmt.Fprintf(&fill, "-A %s %s\n", at.name, text)
		}
		added, deleted := compare(old, texts)
		report.Added += added
		report.Deleted += deleted
		next[at] = texts
	}
	if declare.Len()+len(fix) == 0 {
		return nil
	}
	var input bytes.Buffer
	fmt.Fprintf(&input, "*%s\n%s%s%s%sCOMMIT\n", t, declare.Bytes(), fill.Bytes(), fix, discard.Bytes())
	if err := f.run.apply(ctx, input.Bytes()); err != nil {
		return err
	}
	for at, texts := range next {
		f.objects += len(texts) - len(f.have[at])
		f.have[at] = texts
	}
	for _, at := range gone {
		f.objects -= len(f.have[at])
		delete(f.have, at)
	}
	return nil
}

// fix makes the jump the only one of its kind, and the first rule of its
// chain. It returns how much was wrong.
func (h hook) fix(out *bytes.Buffer, d *dump) int {
	have := d.jumps[h.chain]
	if len(have) == 1 && have[0] == h.jump && d.first[h.chain] {
		return 0
	}
	for _, text := range have {
		fmt.Fprintf(out, "-D %s %s\n", h.chain, text)
	}
	fmt.Fprintf(out, "-I %s 1 %s\n", h.chain, h.jump)
	return 1
}

// cleanup removes the jumps and chains that are there: those by which packets
// come in first. What came in before leaves as it should, masqueraded or
// refused, by the rest.
func (f *family) cleanup(ctx context.Context) error {
	f.have, f.want = nil, nil
	for _, t := range []table{nat, filter} {
		d, err := f.run.read(ctx, t)
		if err != nil {
			return err
		}
		if len(d.chains)+len(d.jumps) == 0 {
			continue
		}
		if t == nat {
			if err := f.shut(ctx, d); err != nil {
				return err
			}
		}
		var input bytes.Buffer
		fmt.Fprintf(&input, "*%s\n", t)
		for name := range d.chains {
			fmt.Fprintf(&input, ":%s - [0:0]\n", name)
		}
		for chain, texts := range d.jumps {
			for _, text := range texts {
				fmt.Fprintf(&input, "-D %s %s\n", chain, text)
			}
		}
		for name := range d.chains {
			fmt.Fprintf(&input, "-X %s\n", name)
		}
		input.WriteString("COMMIT\n")
		if err := f.run.apply(ctx, input.Bytes()); err != nil {
			return err
		}
	}
	return nil
}

// shut takes the jumps out by which packets come in, and waits for those that
// came.
func (f *family) shut(ctx context.Context, d *dump) error {
	var input bytes.Buffer
	for _, chain := range []string{"PREROUTING", "OUTPUT"} {
		for _, text := range d.jumps[chain] {
			fmt.Fprintf(&input, "-D %s %s\n", chain, text)
		}
		delete(d.jumps, chain)
	}
	if input.Len() == 0 {
		return nil
	}
	if err := f.run.apply(ctx, fmt.Appendf(nil, "*%s\n%sCOMMIT\n", nat, input.Bytes())); err != nil {
		return err
	}
	nft.Settle()
	return nil
}
