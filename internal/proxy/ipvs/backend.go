// SPDX-License-Identifier: Apache-2.0

package ipvs

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/causeway-lb/causeway/internal/netlink/ipvs"
	"github.com/causeway-lb/causeway/internal/netlink/nft"
	"github.com/causeway-lb/causeway/internal/proxy/backend"
	"github.com/causeway-lb/causeway/internal/proxy/elements"
	"github.com/causeway-lb/causeway/internal/proxy/model"
)

// Config of a Backend.
type Config struct {
	// Families to program; empty means both.
	Families []model.Family
	// Scheduler distributes connections where a Service names none; "" is "wrr".
	Scheduler string
	// DrainTimeout bounds how long a removed endpoint keeps its connections; 0
	// is 15 minutes.
	DrainTimeout time.Duration
	// DrainInterval is how often they are counted; 0 is 5 seconds.
	DrainInterval time.Duration
	// ProcSys is where the node's /proc/sys can be written; "" is there.
	ProcSys string
	// RouteTable is the number of the routing table to use; 0 is
	// DefaultRouteTable. Nobody else may use it.
	RouteTable int
}

// Validate says what is wrong.
func (c Config) Validate() error {
	if c.Scheduler != "" && !slices.Contains(Schedulers(), c.Scheduler) {
		return fmt.Errorf("unknown IPVS scheduler %q: choose from %v", c.Scheduler, Schedulers())
	}
	if c.DrainTimeout < 0 || c.DrainInterval < 0 || c.RouteTable < 0 {
		return errors.New("drain times and the routing table must not be negative")
	}
	return nil
}

func (c Config) withDefaults() Config {
	if len(c.Families) == 0 {
		c.Families = model.Families[:]
	}
	if c.Scheduler == "" {
		c.Scheduler = "wrr"
	}
	if c.DrainTimeout == 0 {
		c.DrainTimeout = 15 * time.Minute
	}
	if c.DrainInterval == 0 {
		c.DrainInterval = 5 * time.Second
	}
	if c.RouteTable == 0 {
		c.RouteTable = DefaultRouteTable
	}
	return c
}

// Schedulers are the names that a Service or the agent may choose from.
func Schedulers() []string { return slices.Clone(model.Schedulers) }

// What the Backend needs of the kernel; tests put faults in between.
type (
	serverKernel interface {
		Do([]ipvs.Change) []error
		Read() ([]ipvs.VirtualServer, error)
		ReadReals(ipvs.Key) ([]ipvs.RealServer, error)
	}
	tableKernel interface {
		read() (state, error)
		commit(*model.Node, []nft.Table, []edit) error
		retire() error
		remove() error
	}
	routeKernel interface {
		read() (routed, own map[netip.Addr]bool, err error)
		own() (map[netip.Addr]bool, error)
		listed() (map[netip.Addr]bool, error)
		add(netip.Addr) error
		delete(netip.Addr) error
		remove() error
	}
	firewallKernel interface {
		open(context.Context) error
		close(context.Context) error
	}
)

// Backend programs IPVS. It implements backend.Backend and backend.Watcher.
type Backend struct {
	cfg      Config
	servers  serverKernel
	tables   tableKernel
	routes   routeKernel
	firewall firewallKernel
	render   *renderer
	prepare  func() error // sets what IPVS has as sysctls
	release  func() error
	// connected says whether connections to destinations that have active ones may
	// still be used.
	connected func(map[destination]bool) (bool, error)
	// untrack hands flows by UDP over to another mode.
	untrack func(endpoints map[netip.AddrPort]bool) error
	now     func() time.Time
	port    uint32

	// mu guards the rest: draining goes on between two calls.
	mu sync.Mutex
	// synced reports whether have describes the kernel, node the node of its rules.
	synced bool
	node   model.Node
	want   wanted
	have   kernel
	// probed says that the kernel has Config.Scheduler.
	probed bool
	// lacking are schedulers that this kernel turned out not to have.
	lacking  map[string]bool
	draining map[ipvs.Key]map[netip.AddrPort]time.Time
	timer    *time.Timer
	closed   bool
}

// kernel is what the kernel has, as far as it is known.
type kernel struct {
	servers  map[ipvs.Key]*present
	elements map[elementID]string
	routes   map[netip.Addr]bool
	// own are the addresses of the node's interfaces, which get no route.
	own map[netip.Addr]bool
}

// present is a virtual server in the kernel.
type present struct {
	ipvs.Settings
	reals map[netip.AddrPort]uint32 // weights
}

var (
	_ backend.Backend = (*Backend)(nil)
	_ backend.Watcher = (*Backend)(nil)
)

// New opens a Backend in the network namespace of the calling thread. It loads
// the kernel's module if need be and changes nothing else yet. A kernel without
// IPVS gives an UnsupportedError.
func New(cfg Config) (*Backend, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg = cfg.withDefaults()
	servers, err := ipvs.Dial()
	if errors.Is(err, ipvs.ErrUnsupported) {
		return nil, &backend.UnsupportedError{Feature: "IPVS (CONFIG_IP_VS)", Err: err}
	}
	if err != nil {
		return nil, err
	}
	conn, err := nft.Dial()
	if err != nil {
		servers.Close()
		return nil, err
	}
	routes, err := newRoutes(cfg.Families, cfg.RouteTable)
	if err != nil {
		return nil, errors.Join(err, servers.Close(), conn.Close())
	}
	b := newBackend(cfg, servers, newTables(conn, cfg.Families), routes, &firewall{families: cfg.Families})
	b.port, b.connected = conn.Port(), connectedTo
	b.prepare = func() error { return ensureSettings(cfg.ProcSys) }
	b.untrack = untrackUDP
	b.release = func() error {
		routes.close()
		return errors.Join(servers.Close(), conn.Close())
	}
	return b, nil
}

func newBackend(cfg Config, s serverKernel, t tableKernel, r routeKernel, f firewallKernel) *Backend {
	return &Backend{
		cfg: cfg, servers: s, tables: t, routes: r, firewall: f,
		now: time.Now, prepare: func() error { return nil }, release: func() error { return nil },
		connected: func(map[destination]bool) (bool, error) { return true, nil },
		untrack:   func(map[netip.AddrPort]bool) error { return nil },
		render:    &renderer{scheduler: cfg.Scheduler, families: cfg.Families, marks: newMarks()},
		lacking:   map[string]bool{},
		draining:  map[ipvs.Key]map[netip.AddrPort]time.Time{},
	}
}

// Name is "ipvs".
func (b *Backend) Name() string { return "ipvs" }

// Close ends draining, closes the sockets and leaves the kernel as it is. What
// still drains is taken up by the next Backend's first Resync.
func (b *Backend) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	if b.timer != nil {
		b.timer.Stop()
	}
	return b.release()
}

// Resync implements backend.Backend. A Service's scheduler that the kernel does not
// have is replaced by Config.Scheduler, and the Service gets a Problem.
func (b *Backend) Resync(ctx context.Context, want model.Desired) (backend.Report, error) {
	return b.sync(ctx, maps.Values(want.Services), func() (backend.Report, error) {
		report, err := b.resync(ctx, want)
		if err == nil {
			b.node = want.Node
		}
		return report, err
	})
}

// Apply implements backend.Backend.
func (b *Backend) Apply(ctx context.Context, step backend.Delta) (backend.Report, error) {
	services := func(yield func(*model.Service) bool) {
		for _, c := range step.Services {
			if c.New != nil && !yield(c.New) {
				return
			}
		}
	}
	return b.sync(ctx, services, func() (backend.Report, error) {
		if !b.synced { // draining has failed, or been cut short
			return backend.Report{}, &backend.RejectedError{Err: errors.New("the kernel may not be as it was left")}
		}
		t := newTouched()
		for _, c := range step.Services {
			b.want.remove(b.render.render(c.Old), t)
		}
		for _, c := range step.Services {
			b.want.add(b.render.render(c.New), t)
		}
		return b.apply(t, &rebuilding{node: &b.node})
	})
}

// sync has the kernel programmed, and reports the problems of services.
func (b *Backend) sync(ctx context.Context, services iter.Seq[*model.Service], program func() (backend.Report, error)) (backend.Report, error) {
	if err := ctx.Err(); err != nil {
		return backend.Report{}, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	report, err := program()
	if b.synced = err == nil; err != nil {
		return report, fmt.Errorf("sync ipvs: %w", err)
	}
	for svc := range services {
		report.Problems = append(report.Problems, b.problems(svc)...)
	}
	return report, nil
}

// Reasons of the Problems of Services.
const (
	// SchedulerUnsupported is a scheduler that the kernel lacks.
	SchedulerUnsupported = "SchedulerUnsupported"
	// AffinityTimeoutUnsupported is affinity behind a mark.
	AffinityTimeoutUnsupported = "AffinityTimeoutUnsupported"
)

// problems are what the mode cannot do of a Service.
func (b *Backend) problems(svc *model.Service) []model.Problem {
	var ps []model.Problem
	if b.lacking[svc.Scheduler] {
		ps = append(ps, model.Problem{Service: svc.Name, Reason: SchedulerUnsupported, Message: fmt.Sprintf(
			"the kernel of this node lacks the IPVS scheduler %[1]s and uses %[2]s: load the module ip_vs_%[1]s there and restart the agent, or choose another one",
			svc.Scheduler, b.available(svc.Scheduler))})
	}
	if where := hashedAffinity(svc); where != "" {
		ps = append(ps, model.Problem{Service: svc.Name, Reason: AffinityTimeoutUnsupported, Message: fmt.Sprintf(
			"%s: proxy mode ipvs keeps a client with its endpoint by a hash of the client's address there, without the time-out of sessionAffinityConfig; "+
				"use mode nftables or iptables if the time-out matters", where)})
	}
	return ps
}

// hashedAffinity names the first frontend whose affinity has no time-out.
func hashedAffinity(svc *model.Service) string {
	for i := range svc.Frontends {
		f := &svc.Frontends[i]
		switch {
		case f.Inside.Affinity+f.Outside.Affinity == 0:
		case f.Kind == model.NodePort:
			return fmt.Sprintf("NodePort %d/%s", f.Port, f.Protocol)
		case f.Inside.Affinity > 0 && !f.Outside.Equal(f.Inside):
			return fmt.Sprintf("%s/%s from this node and its Pods", netip.AddrPortFrom(f.Addr, f.Port), f.Protocol)
		}
	}
	return ""
}

// resync reads the kernel and makes it match want, whatever it was.
func (b *Backend) resync(ctx context.Context, want model.Desired) (backend.Report, error) {
	if err := errors.Join(b.prepare(), b.probe()); err != nil {
		return backend.Report{}, err
	}
	node := want.Node
	before := b.have
	found, err := b.read()
	if err != nil {
		return backend.Report{}, err
	}
	b.restoreMarks(found)
	b.render.byInterface, b.render.loopback = len(node.PodInterfaces) > 0, node.LocalhostNodePorts
	b.render.masqueradeAll = node.MasqueradeAll
	b.want = newWanted()
	t := newTouched()
	t.full = true
	for _, svc := range want.Services {
		b.want.add(b.render.render(svc), t)
	}
	b.want.add(rendered{elements: elements.Node(&node, b.cfg.Families, setLocalPods, setNodePortAddresses)}, t)
	b.load(found)
	if !reflect.DeepEqual(b.node, want.Node) {
		found.rebuild = tablesFor(b.cfg.Families) // the rules depend on it
	}
	drift := 0
	if b.synced {
		drift = b.have.differences(before)
		for _, table := range found.rebuild {
			if reflect.DeepEqual(b.node, want.Node) || table == arpTable {
				drift++
			}
		}
	}
	for key := range b.have.servers {
		t.servers[key] = true
	}
	for id := range b.have.elements {
		t.elements[id] = true
	}
	report, err := b.apply(t, b.rebuild(&node, found.rebuild))
	report.Drift = drift
	if err != nil {
		return report, err
	}
	// The firewall is somebody else's: its coming and going is no drift of ours.
	if err := b.firewall.open(ctx); err != nil {
		return report, fmt.Errorf("let Services pass the firewall: %w", err)
	}
	return report, nil
}

// probe finds out once whether the kernel has the scheduler that all Services
// fall back on.
func (b *Backend) probe() error {
	if b.probed {
		return nil
	}
	key := ipvs.Key{Mark: uint32(markProbe)}
	settings := ipvs.Settings{Scheduler: b.cfg.Scheduler, Tag: true}
	errs := b.servers.Do([]ipvs.Change{{Op: ipvs.AddServer, Server: key, Settings: settings}, {Op: ipvs.DeleteServer, Server: key}})
	if errors.Is(errs[0], unix.ENOENT) {
		return &backend.UnsupportedError{Feature: fmt.Sprintf("IPVS scheduler %[1]s (module ip_vs_%[1]s)", b.cfg.Scheduler), Err: errs[0]}
	}
	if errors.Is(errs[0], unix.EEXIST) {
		errs[0] = nil // left by a probe that was cut short
	}
	err := errors.Join(errs...)
	b.probed = err == nil
	return err
}

// rebuild prepares to build tables anew: their elements are then not there.
func (b *Backend) rebuild(node *model.Node, tables []nft.Table) *rebuilding {
	r := &rebuilding{node: node, tables: tables, was: map[elementID]string{}}
	for id, value := range b.have.elements {
		if slices.Contains(tables, tableOf(id.Family)) {
			r.was[id] = value
			delete(b.have.elements, id)
		}
	}
	return r
}

// restoreMarks takes over the marks that an earlier process gave, also those of
// virtual servers that only drain, before any is given anew.
func (b *Backend) restoreMarks(found found) {
	for id, value := range found.elements {
		if a := actionOf(value); id.Set <= setNodePortsOutside && a.byMark() {
			b.render.marks.restore(id, a&markIndex)
		}
	}
	for i := range found.servers {
		if a := action(found.servers[i].Mark); a.byMark() {
			b.render.marks.reserve(a & markIndex)
		}
	}
}

// Cleanup removes everything: what leads to IPVS first.
func (b *Backend) Cleanup(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.synced = false
	found, err := b.read()
	if err != nil {
		return fmt.Errorf("clean up ipvs: %w", err)
	}
	b.want = newWanted()
	b.load(found)
	var changes []ipvs.Change
	for key := range b.have.servers {
		changes = append(changes, ipvs.Change{Op: ipvs.DeleteServer, Server: key})
	}
	errs := []error{b.routes.remove(), b.tables.remove(), b.firewall.close(ctx)}
	errs = append(errs, ignoreAbsent(b.servers.Do(changes))...)
	clear(b.draining)
	b.have = kernel{}
	b.render.marks = newMarks()
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("clean up ipvs: %w", err)
	}
	return nil
}

// Watch implements backend.Watcher for the tables. Virtual servers and routes
// have no notifications that would tell others' changes from our own; they are
// compared when the tables are, when the node gets or loses an address, and on
// the timer.
func (b *Backend) Watch(ctx context.Context, notify func()) error {
	m, err := nft.NewMonitor(b.port)
	if err != nil {
		return err
	}
	defer m.Close()
	var watch sync.WaitGroup
	defer watch.Wait()
	watching, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	addresses := make(chan netlink.AddrUpdate)
	if err := netlink.AddrSubscribe(addresses, watching.Done()); err != nil {
		return fmt.Errorf("watch addresses: %w", err)
	}
	watch.Go(func() {
		for u := range addresses { // until the socket is closed, or fails
			if watching.Err() == nil && b.concerns(u) {
				notify()
			}
		}
		cancel(errors.New("watch addresses: the kernel told more than was read"))
	})
	notify() // what happened before the monitor listened is unknown
	err = m.Run(watching, func(c *nft.Change) {
		if strings.HasPrefix(c.Table.Name, Name) || c.Table.Name == "" {
			notify()
		}
	})
	if err == nil && ctx.Err() == nil {
		err = context.Cause(watching)
	}
	return err
}

// concerns says whether the news about an address changes anything: with an
// address go the routes that have it as their source, and a Service's address
// that is the node's own is treated differently. Those of links come and go
// with every Pod, and others are told of again and again.
func (b *Backend) concerns(u netlink.AddrUpdate) bool {
	a, ok := netip.AddrFromSlice(u.LinkAddress.IP)
	if !ok || a.Unmap().IsLinkLocalUnicast() {
		return false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.have.own[a.Unmap()] != u.NewAddr
}
