// SPDX-License-Identifier: Apache-2.0

package userspace

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/causeway-lb/causeway/internal/netlink/nft"
	"github.com/causeway-lb/causeway/internal/proxy/backend"
	"github.com/causeway-lb/causeway/internal/proxy/elements"
	"github.com/causeway-lb/causeway/internal/proxy/model"
	"github.com/causeway-lb/causeway/internal/refcount"
)

// Config of a Backend.
type Config struct {
	// Families to serve; empty means both.
	Families []model.Family
	// UDPTimeout ends a flow that nobody has sent in for that long; 0 is two
	// minutes.
	UDPTimeout time.Duration
	// DialTimeout bounds the search for an endpoint that answers; 0 is ten
	// seconds.
	DialTimeout time.Duration
	// Grace is how long Close waits for connections that are open to end; 0 is
	// one second.
	Grace time.Duration
	// MaxDescriptors is how many file descriptors connections may use; 0 is the
	// process's limit less what the rest of it needs.
	MaxDescriptors int
	// ResetTCP resets TCP connections whose endpoint has gone, or whose client is not
	// admitted any more. Without it they go on while both ends keep them.
	ResetTCP bool
	// Metrics are counted in; nil makes some that nobody sees.
	Metrics *Metrics
}

// Validate says what is wrong.
func (c Config) Validate() error {
	if c.UDPTimeout < 0 || c.DialTimeout < 0 || c.Grace < 0 || c.MaxDescriptors < 0 {
		return errors.New("time-outs and limits of the userspace proxy must not be negative")
	}
	return nil
}

func (c Config) withDefaults() Config {
	if len(c.Families) == 0 {
		c.Families = model.Families[:]
	}
	if c.UDPTimeout == 0 {
		c.UDPTimeout = 2 * time.Minute
	}
	if c.DialTimeout == 0 {
		c.DialTimeout = 10 * time.Second
	}
	if c.Grace == 0 {
		c.Grace = time.Second
	}
	if c.Metrics == nil {
		c.Metrics = NewMetrics()
	}
	return c
}

// What the Backend needs of the kernel; tests put faults in between.
type (
	tableKernel interface {
		read() (elements.Map[setID], []model.Family, error)
		commit(rebuild []*program, edits []edit) error
		remove() error
	}
	routeKernel interface {
		ensure() (missing int, err error)
		remove() error
	}
	keepKernel interface {
		keep() (beside bool, err error)
		remove() error
		forget(elements.Map[setID]) error
	}
)

// Backend serves Services by a proxy in this process. It implements
// backend.Backend and backend.Watcher.
type Backend struct {
	families []model.Family
	tables   tableKernel
	routes   routeKernel
	keeper   keepKernel
	proxy    *proxy
	budget   *budget
	port     uint32 // of the netlink socket
	release  func() error

	// synced reports whether want describes the kernel, node the node of its rules.
	synced bool
	node   model.Node
	beside bool // IPVS had virtual servers
	want   refcount.Map[elementID, string]

	notifyMu sync.Mutex
	notify   func()
}

var (
	_ backend.Backend = (*Backend)(nil)
	_ backend.Watcher = (*Backend)(nil)
)

// New opens a Backend in the network namespace of the calling thread. It
// changes nothing yet.
func New(cfg Config) (*Backend, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg = cfg.withDefaults()
	cfg.Families = slices.DeleteFunc(slices.Clone(cfg.Families), func(f model.Family) bool { return !hasFamily(f) })
	budget, err := newBudget(cfg.MaxDescriptors)
	if err != nil {
		return nil, err
	}
	conn, err := nft.Dial()
	if errors.Is(err, unix.EPROTONOSUPPORT) {
		return nil, &backend.UnsupportedError{Feature: "nf_tables (CONFIG_NF_TABLES)", Err: err}
	}
	if err != nil {
		return nil, err
	}
	r, err := newRoutes(cfg.Families)
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	b := newBackend(cfg, budget, newTables(conn, cfg.Families), r, &keeper{conn: conn, families: cfg.Families})
	b.port = conn.Port()
	b.release = func() error {
		r.close()
		return conn.Close()
	}
	return b, nil
}

// Present says whether the kernel may have something of ours.
func Present() (bool, error) {
	conn, err := nft.Dial()
	if err != nil {
		return false, nil //nolint:nilerr // no nf_tables, nothing in it
	}
	defer conn.Close()
	for _, f := range model.Families {
		names, err := conn.Tables(tableOf(f).Family)
		if err != nil || slices.Contains(names, Name) || slices.Contains(names, keepName) {
			return err == nil, err
		}
	}
	return false, nil
}

// hasFamily says whether the kernel has sockets of a family.
func hasFamily(f model.Family) bool {
	fd, err := unix.Socket(netlinkFamily(f), unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return !errors.Is(err, unix.EAFNOSUPPORT)
	}
	return unix.Close(fd) == nil
}

func newBackend(cfg Config, budget *budget, t tableKernel, r routeKernel, k keepKernel) *Backend {
	cfg.Metrics.descriptors.Set(float64(budget.limit))
	b := &Backend{
		families: cfg.Families, tables: t, routes: r, keeper: k, budget: budget, release: func() error { return nil },
		proxy: newProxy(cfg, budget, cfg.Metrics),
	}
	budget.tell = b.wake
	return b
}

// Name is "userspace".
func (b *Backend) Name() string { return "userspace" }

// Close ends the proxy: connections that do not end within Config.Grace are
// reset. The kernel keeps the rules, which drop first packets until another
// Backend listens.
func (b *Backend) Close() error { return errors.Join(b.proxy.close(), b.release()) }

// Resync implements backend.Backend. Its first call opens the sockets.
func (b *Backend) Resync(ctx context.Context, want model.Desired) (backend.Report, error) {
	return b.sync(ctx, func() (backend.Report, error) { return b.resync(want) })
}

// Apply implements backend.Backend.
func (b *Backend) Apply(ctx context.Context, step backend.Delta) (backend.Report, error) {
	return b.sync(ctx, func() (backend.Report, error) { return b.change(step.Services) })
}

func (b *Backend) sync(ctx context.Context, program func() (backend.Report, error)) (backend.Report, error) {
	if err := ctx.Err(); err != nil {
		return backend.Report{}, err
	}
	report, err := program()
	if b.synced = err == nil; err != nil {
		return report, fmt.Errorf("sync userspace: %w", unsupported(err))
	}
	report.Objects = len(b.want)
	return report, nil
}

// unsupported finds out what the kernel lacks when it refused a rule.
func unsupported(err error) error {
	var refused *nft.Error
	switch {
	case !errors.As(err, &refused):
	case errors.Is(refused.Err, unix.EOPNOTSUPP):
		return &backend.UnsupportedError{Feature: "nf_tables with reject in prerouting", MinKernel: "5.9", Err: err}
	case errors.Is(refused.Err, unix.ENOENT):
		return &backend.UnsupportedError{Feature: "transparent proxying by nf_tables (CONFIG_NFT_TPROXY, CONFIG_NFT_SOCKET)", MinKernel: "4.19", Err: err}
	}
	return err
}

// change applies the difference that some Services make.
func (b *Backend) change(services []model.Change) (backend.Report, error) {
	touched := map[elementID]bool{}
	var added []*model.Service
	gone := map[model.Key]bool{}
	var outs, ins []elements.Map[setID]
	before := elements.Map[setID]{}
	for _, c := range services {
		old, next := c.Old, c.New
		outs, ins = append(outs, render(old, b.families)), append(ins, render(next, b.families))
		if old != nil {
			for i := range old.Frontends {
				gone[old.Frontends[i].Key] = true
			}
		}
		if next != nil {
			added = append(added, next)
		}
	}
	for _, es := range slices.Concat(outs, ins) {
		for id := range es {
			if value, wanted := b.want.Get(id); wanted {
				before[id] = value
			}
		}
	}
	// What goes from one Service to another is taken out before it is put in.
	for _, out := range outs {
		b.want.Remove(out, touched)
	}
	for _, in := range ins {
		b.want.Add(in, touched)
	}
	for _, svc := range added {
		for i := range svc.Frontends {
			delete(gone, svc.Frontends[i].Key)
		}
	}
	edits, report := difference(before, b.want, touched)
	// The proxy knows of a frontend before packets are led to it.
	b.proxy.put(added)
	if err := b.tables.commit(nil, edits); err != nil {
		return backend.Report{}, err
	}
	if len(gone) > 0 {
		b.proxy.drop(func(k model.Key) bool { return gone[k] }, b.proxy.cfg.ResetTCP)
	}
	for _, svc := range added {
		report.Problems = append(report.Problems, problems(svc)...)
	}
	report.Problems = append(report.Problems, b.limited(services)...)
	return report, nil
}

// limited are those of some Services that had connections refused lately.
func (b *Backend) limited(services []model.Change) []model.Problem {
	return slices.DeleteFunc(b.budget.problems(time.Now()), func(p model.Problem) bool {
		return !slices.ContainsFunc(services, func(c model.Change) bool { return c.Name == p.Service })
	})
}

// difference returns the edits from one state of some elements to another.
func difference(before elements.Map[setID], after refcount.Map[elementID, string], touched map[elementID]bool) ([]edit, backend.Report) {
	edits := refcount.Edits(touched, before, after.Get, elementID.Compare)
	var report backend.Report
	for _, e := range edits {
		if e.Had {
			report.Deleted++
		}
		if e.Has {
			report.Added++
		}
	}
	return edits, report
}

// resync reads the kernel and makes it match want, whatever it was.
func (b *Backend) resync(want model.Desired) (backend.Report, error) {
	if err := b.proxy.listen(b.families); err != nil {
		return backend.Report{}, err
	}
	found, broken, err := b.tables.read()
	if err != nil {
		return backend.Report{}, err
	}
	drift := 0
	if b.synced {
		drift = len(broken) + refcount.Differences(found, b.want.Values())
	}
	beside, err := b.keeper.keep()
	if err != nil {
		return backend.Report{}, err
	}
	if !reflect.DeepEqual(b.node, want.Node) || beside != b.beside {
		broken = b.families // the rules depend on it
	}
	next, touched := refcount.Map[elementID, string]{}, map[elementID]bool{}
	services := make([]*model.Service, 0, len(want.Services))
	next.Add(elements.Node(&want.Node, b.families, setLocalPods, setNodePortAddresses), touched)
	for _, svc := range want.Services {
		next.Add(render(svc, b.families), touched)
		services = append(services, svc)
	}
	for id := range found {
		touched[id] = true
	}
	edits, report := difference(found, next, touched)
	var rebuild []*program
	for _, f := range broken {
		rebuild = append(rebuild, &program{fam: f, node: &want.Node, at: b.proxy.at[f], beside: beside})
		// Elements that stay are written again, which is no change.
		for id, c := range next {
			if old, had := found[id]; id.Family == f && had && old == c.Value {
				edits = append(edits, edit{Key: id, Old: old, New: old, Had: true, Has: true})
			}
		}
	}
	b.proxy.put(services)
	missing, err := b.routes.ensure()
	if err != nil {
		return backend.Report{}, err
	}
	if b.synced {
		drift += missing
	}
	if err := b.tables.commit(rebuild, edits); err != nil {
		return backend.Report{}, err
	}
	keys := map[model.Key]bool{}
	for _, svc := range services {
		report.Problems = append(report.Problems, problems(svc)...)
		for i := range svc.Frontends {
			keys[svc.Frontends[i].Key] = true
		}
	}
	b.proxy.drop(func(k model.Key) bool { return !keys[k] }, b.proxy.cfg.ResetTCP)
	report.Problems = append(report.Problems, b.budget.problems(time.Now())...)
	report.Drift = drift
	b.node, b.beside, b.want = want.Node, beside, next
	return report, nil
}

// Yield lets another mode take over from a process that has ended: what the tables
// that it left capture of this node's own TCP is dropped ahead of connection tracking's
// taking note of it, and what was noted is forgotten. Otherwise the new mode's IPVS,
// which needs no rule of translation, would serve the repetition of a SYN by a note that
// says it is not translated, and the connection would end with the note. A Resync undoes
// it. UDP goes on as it was: whoever sends is told when a datagram is dropped on its way
// out.
func Yield(ctx context.Context) error {
	if present, err := Present(); err != nil || !present {
		return err
	}
	conn, err := nft.Dial()
	if err != nil {
		return err
	}
	defer conn.Close()
	t := newTables(conn, model.Families[:])
	if err := errors.Join(ctx.Err(), t.yield()); err != nil {
		return fmt.Errorf("yield: %w", err)
	}
	nft.Settle() // what was captured by the old rules is noted by now
	found, _, err := t.read()
	if err := errors.Join(err, (&keeper{conn: conn, families: model.Families[:]}).forget(found)); err != nil {
		return fmt.Errorf("yield: %w", err)
	}
	return nil
}

// Cleanup removes rules and routes. What this node itself dialled while no
// proxy listened, the kernel's connection tracking, where there is some, would
// go on leading nowhere: that is forgotten. It is so before, as another mode
// may serve it already and the next repetition would go out as it is, and after,
// for what was dialled meanwhile.
func (b *Backend) Cleanup(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	b.synced = false
	b.proxy.dropAll()
	found, _, err := b.tables.read()
	err = errors.Join(err, b.keeper.forget(found), b.tables.remove(), b.routes.remove(), b.keeper.remove(), b.keeper.forget(found))
	if err != nil {
		return fmt.Errorf("clean up userspace: %w", err)
	}
	return nil
}

// Watch implements backend.Watcher for the tables. It also notifies when
// connections are refused for want of file descriptors, and when that is over,
// so that the Services' problems are told.
func (b *Backend) Watch(ctx context.Context, notify func()) error {
	m, err := nft.NewMonitor(b.port)
	if err != nil {
		return err
	}
	defer m.Close()
	b.setNotify(notify)
	defer b.setNotify(nil)
	notify() // what happened before the monitor listened is unknown
	return m.Run(ctx, func(c *nft.Change) {
		if c.Table.Name == Name || c.Table.Name == "" {
			notify()
		}
	})
}

func (b *Backend) setNotify(f func()) {
	b.notifyMu.Lock()
	defer b.notifyMu.Unlock()
	b.notify = f
}

func (b *Backend) wake() {
	b.notifyMu.Lock()
	defer b.notifyMu.Unlock()
	if b.notify != nil {
		b.notify()
	}
}
