// SPDX-License-Identifier: Apache-2.0

// Command loadbalancer-allocate measures what it costs to give many Services an
// address of a /16.
//
// First the allocators alone, without an API server, against MetalLB's (built
// from its Go module): the CPU time of the process for N Services, one after
// the other. Then the controller with a real API server that holds 20,000
// Services when it starts:
//
//	controller     time that its reconciliations take beside their API calls, of
//	               all workers together
//	controller_cpu CPU time of the process, with everything: watches, calls,
//	               events
//	until_served   from the start until every Service has its address
//
// BENCH_SCALE (default 1) multiplies the number of Services.
package main

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/envtest"
	"sigs.k8s.io/controller-runtime/pkg/log/zap"
	"sigs.k8s.io/controller-runtime/pkg/metrics"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"
	"sigs.k8s.io/controller-runtime/pkg/webhook"

	"github.com/causeway-lb/causeway/api/v1alpha1"
	"github.com/causeway-lb/causeway/controllers"
	"github.com/causeway-lb/causeway/controllers/loadbalancer"
	"github.com/causeway-lb/causeway/internal/alloc"
	"github.com/causeway-lb/causeway/internal/lab/controlplane"
	"github.com/causeway-lb/causeway/internal/provisioner"
	"github.com/causeway-lb/causeway/internal/provisioner/pool"
	"github.com/causeway-lb/causeway/internal/testkit/confine"
	"github.com/causeway-lb/causeway/test/bench/report"
)

const (
	peerName  = "MetalLB v0.16.2 allocator"
	addresses = "198.18.0.0/16"
	many      = 20000
	creators  = 32
)

func main() {
	os.Exit(confine.Run(confined))
}

func confined() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "loadbalancer-allocate:", err)
		return 1
	}
	return 0
}

func run(ctx context.Context) error {
	ctrl.SetLogger(zap.New(zap.WriteTo(os.Stderr)))
	scale := 1.0
	if text := os.Getenv("BENCH_SCALE"); text != "" {
		var err error
		if scale, err = strconv.ParseFloat(text, 64); err != nil || scale <= 0 {
			return fmt.Errorf("BENCH_SCALE=%s: must be a number above 0", text)
		}
	}
	scaled := func(n int) int { return max(100, int(scale*float64(n))) }
	out := report.Report{Bench: "loadbalancer-allocate"}
	// The peer's time grows with the square: the largest is run once.
	for _, size := range []struct{ services, rounds int }{{2000, 3}, {5000, 3}, {many, 1}} {
		if err := compare(ctx, &out, scaled(size.services), size.rounds); err != nil {
			return err
		}
	}
	if err := serve(ctx, &out, scaled(many)); err != nil {
		return err
	}
	return out.Write(os.Stdout, filepath.Join("build", "bench"))
}

// compare runs both allocators in turns.
func compare(ctx context.Context, out *report.Report, services, rounds int) error {
	dir, err := os.MkdirTemp("", "loadbalancer-allocate-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	program := filepath.Join(dir, "metallb")
	build := exec.CommandContext(ctx, "go", "build", "-C", filepath.Join("test", "bench", "loadbalancer-allocate", "metallb"), "-o", program, ".")
	if text, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build MetalLB's allocator: %w: %s", err, text)
	}
	var mine, theirs []float64
	for range rounds {
		took, err := allocate(ctx, services)
		if err != nil {
			return err
		}
		mine = append(mine, took)
		text, err := exec.CommandContext(ctx, program, strconv.Itoa(services)).Output()
		if err != nil {
			return fmt.Errorf("run MetalLB's allocator: %w", err)
		}
		if took, err = strconv.ParseFloat(strings.TrimSpace(string(text)), 64); err != nil {
			return fmt.Errorf("read MetalLB's time: %w", err)
		}
		theirs = append(theirs, took)
	}
	peer := report.Summarise(peerName, theirs)
	out.Add(report.Line{Case: fmt.Sprintf("%d of a /16, allocator alone", services), Metric: "allocate_all", Unit: "s", Ours: report.Summarise("", mine), Peer: &peer})
	return nil
}

// records keeps records in memory, without an API server's time.
type records struct {
	version int
	all     map[netip.Addr]pool.Record
}

func (s *records) put(r pool.Record) (pool.Record, error) {
	s.version++
	r.Version = strconv.Itoa(s.version)
	s.all[r.Address] = r
	return r, nil
}

func (s *records) Create(_ context.Context, r pool.Record) (pool.Record, error) {
	if _, taken := s.all[r.Address]; taken {
		return pool.Record{}, pool.ErrTaken
	}
	r.UID = r.Address.String()
	return s.put(r)
}

func (s *records) Update(_ context.Context, r pool.Record) (pool.Record, error) { return s.put(r) }

func (s *records) Delete(_ context.Context, r pool.Record) error {
	delete(s.all, r.Address)
	return nil
}

func (s *records) Get(_ context.Context, a netip.Addr) (pool.Record, error) {
	r, ok := s.all[a]
	if !ok {
		return pool.Record{}, pool.ErrGone
	}
	return r, nil
}

// allocate gives Services addresses one after the other and returns the CPU
// seconds.
func allocate(ctx context.Context, services int) (float64, error) {
	index := pool.NewIndex()
	kept := &records{all: map[netip.Addr]pool.Record{}}
	p, err := pool.New(pool.Config{Index: index, Records: kept, Ports: func(alloc.Owner) []provisioner.Port { return nil }})
	if err != nil {
		return 0, err
	}
	lan, err := pool.FromPool(newPool())
	if err != nil {
		return 0, err
	}
	index.SetPool(lan)
	start := cpuSeconds()
	for i := range services {
		svc := newService(i)
		svc.Spec.IPFamilies = []corev1.IPFamily{corev1.IPv4Protocol}
		req, err := provisioner.ParseRequest(svc, nil)
		if err == nil {
			err = p.Capabilities().Check(p.Class(), req)
		}
		if err != nil {
			return 0, err
		}
		got, err := p.Allocate(ctx, req)
		if err != nil || len(got.Addresses) != 1 || got.Unmet != nil {
			return 0, fmt.Errorf("allocate for Service %d: %+v, %w", i, got, err)
		}
	}
	took := cpuSeconds() - start
	if len(kept.all) != services {
		return 0, fmt.Errorf("%d addresses for %d Services", len(kept.all), services)
	}
	return took, nil
}

// cpuSeconds is the CPU time that this process has used.
func cpuSeconds() float64 {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		panic(err) // it cannot fail for oneself
	}
	return float64(u.Utime.Nano()+u.Stime.Nano()) / 1e9
}

func newPool() *v1alpha1.LoadBalancerPool {
	return &v1alpha1.LoadBalancerPool{
		ObjectMeta: metav1.ObjectMeta{Name: "lan"},
		Spec:       v1alpha1.LoadBalancerPoolSpec{Addresses: []v1alpha1.AddressRange{addresses}},
	}
}

// newService has no NodePorts, of which there are fewer.
func newService(i int) *corev1.Service {
	none := false
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: fmt.Sprintf("web-%d", i), UID: ""},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeLoadBalancer, AllocateLoadBalancerNodePorts: &none,
			Selector: map[string]string{"app": "web"},
			Ports:    []corev1.ServicePort{{Name: "http", Protocol: corev1.ProtocolTCP, Port: 80}},
		},
	}
}

// serve measures the controller with a real API server.
func serve(ctx context.Context, out *report.Report, services int) error {
	assets, err := controlplane.Assets(ctx, "etcd", "kube-apiserver")
	if err != nil {
		return err
	}
	env := &envtest.Environment{
		BinaryAssetsDirectory: assets, ControlPlaneStartTimeout: time.Minute, Scheme: controllers.NewScheme(),
		CRDDirectoryPaths: []string{filepath.Join("config", "crd", "bases")}, ErrorIfCRDPathMissing: true,
	}
	env.ControlPlane.GetAPIServer().Configure().Set("service-cluster-ip-range", "10.96.0.0/12")
	config, err := env.Start()
	if err == nil {
		err = measure(ctx, out, config, services)
	}
	if stopErr := env.Stop(); stopErr != nil {
		fmt.Fprintln(os.Stderr, "stop API server:", stopErr)
	}
	return err
}

func measure(ctx context.Context, out *report.Report, config *rest.Config, services int) error {
	config.QPS = -1 // no limit of the client's own: it would count as the controller's time
	api, err := client.New(config, client.Options{Scheme: controllers.NewScheme()})
	if err != nil {
		return err
	}
	if err := prepare(ctx, api, services); err != nil {
		return err
	}
	calls := &calls{}
	mgr, err := ctrl.NewManager(config, ctrl.Options{
		NewClient: func(config *rest.Config, options client.Options) (client.Client, error) {
			inner, err := client.New(config, options)
			return &timedClient{inner, calls}, err
		},
		Scheme: controllers.NewScheme(), Cache: controllers.CacheOptions(),
		Metrics: metricsserver.Options{BindAddress: "0"}, WebhookServer: webhook.NewServer(webhook.Options{Port: -1}),
	})
	if err != nil {
		return err
	}
	if err := controllers.SetupWithManager(mgr, controllers.Options{Features: controllers.Features{LoadBalancer: true}, LoadBalancer: loadbalancer.Options{Default: true}}); err != nil {
		return err
	}
	ctx, stop := context.WithCancel(ctx)
	var running sync.WaitGroup
	defer running.Wait()
	defer stop()
	failed := make(chan error, 1)
	start, cpu := time.Now(), cpuSeconds()
	running.Go(func() { failed <- mgr.Start(ctx) })
	if err := wait(ctx, mgr.GetClient(), services, failed); err != nil {
		return err
	}
	elapsed, used := time.Since(start).Seconds(), cpuSeconds()-cpu
	reconciling, count, err := reconciled()
	if err != nil {
		return err
	}
	if err := unique(ctx, api, services); err != nil {
		return err
	}
	where := fmt.Sprintf("%d Services, real API server, %d reconciliations, %d calls", services, count, calls.count.Load())
	for _, line := range []struct {
		metric string
		value  float64
	}{
		{"controller", reconciling - time.Duration(calls.took.Load()).Seconds()},
		{"controller_cpu", used},
		{"until_served", elapsed},
	} {
		out.Add(report.Line{Case: where, Metric: line.metric, Unit: "s", Ours: report.Summarise("", []float64{line.value})})
	}
	return nil
}

// prepare makes the pool and the Services.
func prepare(ctx context.Context, api client.Client, services int) error {
	if err := api.Create(ctx, newPool()); err != nil {
		return err
	}
	var next atomic.Int64
	group, ctx := errgroup.WithContext(ctx)
	for range creators {
		group.Go(func() error {
			for i := int(next.Add(1)) - 1; i < services; i = int(next.Add(1)) - 1 {
				if err := api.Create(ctx, newService(i)); err != nil {
					return fmt.Errorf("create Service %d: %w", i, err)
				}
			}
			return nil
		})
	}
	return group.Wait()
}

// wait returns when the cache shows every Service with an address.
func wait(ctx context.Context, cache client.Reader, services int, failed <-chan error) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-failed:
			return fmt.Errorf("controller ended: %w", err)
		case <-time.After(500 * time.Millisecond):
		}
		list := &v1alpha1.LoadBalancerPoolList{}
		if err := cache.List(ctx, list); err != nil {
			continue // the cache is not filled yet
		}
		if len(list.Items) == 0 || list.Items[0].Status.IPv4 == nil || list.Items[0].Status.IPv4.Assigned < int64(services) {
			continue
		}
		all := &corev1.ServiceList{}
		if err := cache.List(ctx, all, client.UnsafeDisableDeepCopy); err != nil {
			return err
		}
		served := 0
		for _, svc := range all.Items {
			if len(svc.Status.LoadBalancer.Ingress) > 0 {
				served++
			}
		}
		if served == services {
			return nil
		}
	}
}

// unique looks for an address that two Services have.
func unique(ctx context.Context, api client.Client, services int) error {
	all := &corev1.ServiceList{}
	if err := api.List(ctx, all); err != nil {
		return err
	}
	given := map[string]string{}
	for _, svc := range all.Items {
		for _, in := range svc.Status.LoadBalancer.Ingress {
			if other, twice := given[in.IP]; twice {
				return fmt.Errorf("%s is given to Services %s and %s", in.IP, svc.Name, other)
			}
			given[in.IP] = svc.Name
		}
	}
	if len(given) != services {
		return fmt.Errorf("%d addresses for %d Services", len(given), services)
	}
	return nil
}

// calls sums up the time of the API calls that reconciliations wait for.
type calls struct {
	took  atomic.Int64 // nanoseconds
	count atomic.Int64
}

func (c *calls) time(call func() error) error {
	start := time.Now()
	err := call()
	c.took.Add(int64(time.Since(start)))
	c.count.Add(1)
	return err
}

// timedClient times what the load balancer's reconciler writes; it reads from
// the cache. A pool's status is another reconciler's.
type timedClient struct {
	client.Client
	calls *calls
}

func (c *timedClient) Create(ctx context.Context, obj client.Object, opts ...client.CreateOption) error {
	return c.calls.time(func() error { return c.Client.Create(ctx, obj, opts...) })
}

func (c *timedClient) Patch(ctx context.Context, obj client.Object, patch client.Patch, opts ...client.PatchOption) error {
	if _, other := obj.(*v1alpha1.LoadBalancerPool); other {
		return c.Client.Patch(ctx, obj, patch, opts...)
	}
	return c.calls.time(func() error { return c.Client.Patch(ctx, obj, patch, opts...) })
}

func (c *timedClient) Status() client.SubResourceWriter {
	return &timedStatus{c.Client.Status(), c.calls}
}

type timedStatus struct {
	client.SubResourceWriter
	calls *calls
}

func (s *timedStatus) Patch(ctx context.Context, obj client.Object, patch client.Patch, opts ...client.SubResourcePatchOption) error {
	if _, other := obj.(*v1alpha1.LoadBalancerPool); other {
		return s.SubResourceWriter.Patch(ctx, obj, patch, opts...)
	}
	return s.calls.time(func() error { return s.SubResourceWriter.Patch(ctx, obj, patch, opts...) })
}

// reconciled is how long the Services' reconciliations took, and how many there
// were.
func reconciled() (seconds float64, count uint64, err error) {
	families, err := metrics.Registry.Gather()
	if err != nil {
		return 0, 0, err
	}
	for _, family := range families {
		if family.GetName() != "controller_runtime_reconcile_time_seconds" {
			continue
		}
		for _, m := range family.GetMetric() {
			for _, label := range m.GetLabel() {
				if label.GetName() == "controller" && label.GetValue() == "loadbalancer" {
					return m.GetHistogram().GetSampleSum(), m.GetHistogram().GetSampleCount(), nil
				}
			}
		}
	}
	return 0, 0, fmt.Errorf("the controller has no metric of its reconciliations")
}
