// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/events"

	"github.com/causeway-lb/causeway/internal/conntrack"
	"github.com/causeway-lb/causeway/internal/healthcheck"
	"github.com/causeway-lb/causeway/internal/httpserver"
	"github.com/causeway-lb/causeway/internal/proxy/backend"
	"github.com/causeway-lb/causeway/internal/proxy/model"
	"github.com/causeway-lb/causeway/internal/proxy/syncer"
)

// Config of an Agent.
type Config struct {
	// Node is what the flags say of this node. The Node object adds its addresses
	// and zone, and its PodCIDRs if neither these nor PodInterfaces are set.
	Node model.Node
	// REST is how to reach the API server.
	REST *rest.Config
	// Backend programs the kernel. The Agent does not close it.
	Backend backend.Backend
	// HealthAddress serves /healthz, /livez and /readyz; "" switches them off.
	// MetricsAddress serves /metrics and /proxyMode without authorization, so it should
	// be a loopback address; SecureMetricsAddress serves the same over TLS to clients
	// that the API server authorizes to get /metrics. There /healthz has names, too.
	HealthAddress, MetricsAddress, SecureMetricsAddress string
	// MetricsCertFile and MetricsKeyFile are the certificate of
	// SecureMetricsAddress; "": one that the agent makes.
	MetricsCertFile, MetricsKeyFile string
	// ProcSys is where the node's /proc/sys can be written; "" is there.
	ProcSys string
	// Resync is how often the kernel is read back without a reason.
	Resync time.Duration

	// AnnounceOnly is set where another program forwards, such as kube-proxy: the agent
	// programs no Service, opens no health check ports and ends no flows. Backend
	// reports whether the other program is up to date.
	AnnounceOnly bool

	// ResetTCP ends TCP connections whose endpoint is gone and resets their clients.
	ResetTCP bool

	// Parts run alongside the proxy, for example the announcer. LoadBalancer objects
	// are watched if one of them reads those.
	Parts []Part
}

// Part runs in the agent alongside the proxy.
type Part struct {
	Name string
	// NoLoadBalancers is true for a Part that reads no LoadBalancer objects.
	NoLoadBalancers bool
	// Run serves until ctx ends. It starts when the Store is being filled; its
	// error ends the agent.
	Run func(ctx context.Context, env Env) error
}

// Env is what the agent offers to its Parts.
type Env struct {
	NodeName string
	// Store has the API's objects; see Listed for when it is complete.
	Store *Store
	// Kube is a client with the agent's rights, Causeway one for causeway.dev.
	Kube     kubernetes.Interface
	Causeway rest.Interface
	// Syncer reports whether the kernel matches (Status, Watch).
	Syncer *syncer.Syncer
	// SetDeadNodes sets the nodes that the proxy takes for dead before the API does.
	SetDeadNodes func(names []string)
	Recorder     events.EventRecorder
	Registry     prometheus.Registerer
}

// whenProgrammed calls f once the kernel has been programmed, and then at the interval,
// until ctx ends.
func (e *Env) whenProgrammed(ctx context.Context, every time.Duration, f func()) {
	changed := e.Syncer.Watch()
	for !e.Syncer.Status().Started {
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
	}
	for {
		f()
		select {
		case <-ctx.Done():
			return
		case <-time.After(every):
		}
	}
}

func (c *Config) loadBalancers() bool {
	return slices.ContainsFunc(c.Parts, func(p Part) bool { return !p.NoLoadBalancers })
}

// Validate returns an error that names what is missing.
func (c *Config) Validate() error {
	var errs []error
	if c.Node.Name == "" {
		errs = append(errs, errors.New("the node's name is not known: set --node-name or the environment variable NODE_NAME"))
	}
	if c.REST == nil || c.Backend == nil {
		errs = append(errs, errors.New("agent needs a REST config and a Backend"))
	}
	return errors.Join(errs...)
}

// Agent is the agent process.
type Agent struct {
	cfg       Config
	clients   *clients
	store     *Store
	syncer    *syncer.Syncer
	checks    *healthcheck.Services
	flows     *conntrack.Cleaner
	registry  *prometheus.Registry
	recorder  events.EventRecorder
	problems  *problemEvents
	watchdog  *watchdog
	kubeProxy *kubeProxyMetrics

	mode atomic.Value // string: the proxy mode that programmed the kernel

	mu   sync.Mutex
	dead []string
	node model.Node
}

// New returns the Agent of a valid config. It starts nothing.
func New(cfg Config) (*Agent, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cl, err := newClients(cfg.REST)
	if err != nil {
		return nil, err
	}
	a := &Agent{cfg: cfg, clients: cl, store: NewStore(), registry: prometheus.NewRegistry()}
	a.store.self = cfg.Node.Name
	a.checks = healthcheck.NewServices(func() bool { h := a.health(); return h.Started && h.InSync && !h.Late }, cfg.Node.NodePortAddresses...)
	metrics := syncer.NewMetrics(cfg.Backend.Name())
	a.registry.MustRegister(metrics.Collectors()...)
	a.kubeProxy = newKubeProxyMetrics()
	if !cfg.AnnounceOnly { // else kube-proxy has them
		a.registry.MustRegister(a.kubeProxy.collectors()...)
		a.registry.MustRegister(metrics.KubeProxy(cfg.Backend.Name)...)
	}
	a.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	a.flows = newCleaner(cfg.ResetTCP, a.registry)
	a.node = cfg.modelNode(nil, nil)
	sync := syncer.Config{
		Backend: cfg.Backend, Source: a.store, Resync: cfg.Resync, Node: a.node, Metrics: metrics,
		Applied: a.applied, Drifted: a.drifted,
		Problems: func(name serviceName, ps []model.Problem) { a.problems.report(name, ps) },
	}
	if cfg.AnnounceOnly {
		sync.Source, sync.MaxBackoff = noServices{}, 2*time.Second
	}
	a.syncer, err = syncer.New(sync)
	if err != nil {
		return nil, err
	}
	a.watchdog = newWatchdog(a.syncer.Status)
	return a, nil
}

// noServices is the syncer's Source in mode AnnounceOnly.
type noServices struct{}

func (noServices) Names() []serviceName                        { return nil }
func (noServices) Input(serviceName) (in model.Input, ok bool) { return in, false }

// Run serves until ctx ends, and returns when everything that it started has stopped.
// The kernel continues to forward. It may be called once.
func (a *Agent) Run(ctx context.Context) error {
	broadcaster := events.NewBroadcaster(&events.EventSinkImpl{Interface: a.clients.kube.EventsV1()})
	defer broadcaster.Shutdown()
	if err := broadcaster.StartRecordingToSinkWithContext(ctx); err != nil {
		return fmt.Errorf("start event recorder: %w", err)
	}
	a.recorder = newRecorder(broadcaster)
	a.problems = newProblemEvents(a.store, a.recorder)
	a.store.Listen(a.changed)
	defer a.checks.Close()

	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { a.clients.watch(ctx, a.store, a.cfg.loadBalancers()); return nil })
	g.Go(func() error { return a.proxy(ctx) })
	if !a.cfg.AnnounceOnly {
		g.Go(func() error { return a.flows.Run(ctx) })
	}
	g.Go(func() error { a.watchdog.run(ctx); return nil })
	g.Go(func() error {
		h := healthcheck.Handler(a.health, healthcheck.Config{Count: a.kubeProxy.answered})
		return serveHTTP(ctx, endpoint{what: "health", address: a.cfg.HealthAddress}, h)
	})
	g.Go(func() error {
		return serveHTTP(ctx, endpoint{what: "metrics", address: a.cfg.MetricsAddress}, a.metricsHandler(false))
	})
	g.Go(func() error {
		h := httpserver.Authorized(a.clients.kube, "/metrics", a.metricsHandler(true))
		return serveHTTP(ctx, endpoint{
			what: "secure metrics", address: a.cfg.SecureMetricsAddress,
			tls: true, certFile: a.cfg.MetricsCertFile, keyFile: a.cfg.MetricsKeyFile,
		}, h)
	})
	for _, p := range a.cfg.Parts {
		g.Go(func() error {
			if err := p.Run(ctx, a.env()); err != nil && ctx.Err() == nil {
				return fmt.Errorf("run %s: %w", p.Name, err)
			}
			return nil
		})
	}
	return g.Wait()
}

func (a *Agent) env() Env {
	return Env{
		NodeName: a.cfg.Node.Name, Store: a.store, Kube: a.clients.kube, Causeway: a.clients.causeway,
		Syncer: a.syncer, SetDeadNodes: a.setDeadNodes, Recorder: a.recorder, Registry: a.registry,
	}
}

// proxy runs the syncer once everything that it programs is known. Until then the
// kernel keeps the rules of an earlier agent.
func (a *Agent) proxy(ctx context.Context) error {
	log := logr.FromContextOrDiscard(ctx)
	if err := a.store.WaitListed(ctx, KindService, KindEndpointSlice, KindNode); err != nil {
		return nil // ended before
	}
	a.refreshNode()
	if a.cfg.AnnounceOnly {
		return a.syncer.Run(ctx)
	}
	if node := a.modelNode(); len(node.PodCIDRs) == 0 && len(node.PodInterfaces) == 0 {
		log.Info("Pods of this node cannot be told from others, so their connections to endpoints elsewhere are masqueraded: " +
			"give the Node spec.podCIDRs, or set --pod-cidrs or --pod-interfaces")
	}
	if a.cfg.Node.LocalhostNodePorts {
		if err := routeLocalnet(a.cfg.ProcSys); err != nil {
			log.Error(err, "NodePorts will not answer on 127.0.0.1: set net.ipv4.conf.all.route_localnet=1 on the node, or drop --localhost-node-ports")
		}
	}
	return a.syncer.Run(ctx)
}

// routeLocalnet lets translated packets from 127.0.0.1 leave the node. In a container
// the file may be read-only; the node's own setting counts then.
func routeLocalnet(proc string) error {
	file := filepath.Join(cmp.Or(proc, "/proc/sys"), "net/ipv4/conf/all/route_localnet")
	if now, err := os.ReadFile(file); err == nil && strings.TrimSpace(string(now)) == "1" {
		return nil
	}
	return os.WriteFile(file, []byte("1"), 0o644)
}

func (a *Agent) modelNode() model.Node {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.node
}

// changed passes Store events to the syncer.
func (a *Agent) changed(e Event) {
	switch e.Kind {
	case KindService, KindEndpointSlice:
		if !a.cfg.AnnounceOnly {
			a.kubeProxy.changed(e.Kind)
			a.syncer.Notify(e.Name, e.Trigger)
		}
	case KindNode:
		if e.Name.Name == a.cfg.Node.Name {
			a.refreshNode()
		}
	}
}

func (a *Agent) setDeadNodes(names []string) {
	a.mu.Lock()
	a.dead = names
	a.mu.Unlock()
	a.refreshNode()
}

// refreshNode passes the node to the syncer if it differs in what matters; most updates
// of Node objects do not.
func (a *Agent) refreshNode() {
	a.mu.Lock()
	defer a.mu.Unlock()
	next := a.cfg.modelNode(a.store.Node(a.cfg.Node.Name), a.dead)
	if reflect.DeepEqual(next, a.node) {
		return
	}
	a.node = next
	a.syncer.SetNode(next)
}

// applied reacts to what the kernel does from now on.
func (a *Agent) applied(done syncer.Applied) {
	a.flows.SetNode(done.Node)
	a.mode.Store(a.cfg.Backend.Name())
	a.flows.Changed(done.Changes)
	if done.Full {
		// The first sync needs many times the memory of later ones.
		debug.FreeOSMemory()
	}
	for _, c := range done.Changes {
		a.healthCheck(c)
	}
}

func (a *Agent) healthCheck(c model.Change) {
	var port uint16
	ready := 0
	if c.New != nil {
		port, ready = c.New.HealthCheckPort, c.New.LocalReady
	}
	if c.Old == nil && port == 0 {
		return
	}
	if err := a.checks.Set(context.Background(), c.Name, port, ready); err != nil {
		a.problems.warn(c.Name, "HealthCheckNodePort", err.Error()+": free the port on this node")
	}
}

func (a *Agent) drifted(r backend.Report) {
	env := a.env()
	env.warnNode("RulesRepaired", "Another program changed %d objects of the %s rules on this node; they are repaired", r.Drift, a.cfg.Backend.Name())
}

// health combines the state of the kernel and of the Node object.
func (a *Agent) health() healthcheck.Health {
	s := a.syncer.Status()
	var rejected []string
	for _, name := range s.Rejected {
		rejected = append(rejected, name.String())
	}
	late, _ := s.Late(time.Now())
	return healthcheck.Health{
		Started: s.Started, InSync: s.InSync, Late: late, Behind: s.Behind, Stuck: a.watchdog.stuck(),
		Refused: rejected, Err: s.Err, LastUpdated: s.LastSync,
		NodeEligible: eligible(a.store.Node(a.cfg.Node.Name)),
	}
}
