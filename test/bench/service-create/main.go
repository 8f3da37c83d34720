// SPDX-License-Identifier: Apache-2.0

// Command service-create measures what Causeway's webhook costs when Services
// are created: 32 workers create Services in turns in a namespace whose
// ClusterIPs and NodePorts come from pools, and in one that the webhook is not
// called for, in one API server that holds more and more of both.
//
// BENCH_SCALE (default 1) multiplies the number of Services: 1 is 10,000.
package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/envtest"
	"sigs.k8s.io/controller-runtime/pkg/log/zap"

	"github.com/causeway-lb/causeway/api/v1alpha1"
	"github.com/causeway-lb/causeway/controllers"
	"github.com/causeway-lb/causeway/internal/alloc/services"
	"github.com/causeway-lb/causeway/internal/lab/controlplane"
	"github.com/causeway-lb/causeway/internal/testkit/confine"
	"github.com/causeway-lb/causeway/test/bench/report"
	"github.com/causeway-lb/causeway/test/replica"
)

const (
	peerName = "kube-apiserver v1.37.2 alone"
	workers  = 32
	batch    = 500
	ours     = "ours"  // the namespace with pools
	stock    = "stock" // the namespace without
)

func main() {
	replica.Main()
	os.Exit(confine.Run(confined))
}

func confined() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "service-create:", err)
		return 1
	}
	return 0
}

func run(ctx context.Context) error {
	ctrl.SetLogger(zap.New(zap.WriteTo(os.Stderr)))
	total := 10000
	if text := os.Getenv("BENCH_SCALE"); text != "" {
		scale, err := strconv.ParseFloat(text, 64)
		if err != nil || scale <= 0 {
			return fmt.Errorf("BENCH_SCALE=%s: must be a number above 0", text)
		}
		total = max(4*batch, int(scale*float64(total)))
	}
	c, err := start(ctx)
	if err != nil {
		return err
	}
	defer c.stop()
	out := report.Report{Bench: "service-create"}
	for _, kind := range []corev1.ServiceType{corev1.ServiceTypeClusterIP, corev1.ServiceTypeNodePort} {
		n := total
		if kind == corev1.ServiceTypeNodePort {
			n = min(total, 4*batch) // there are 2,768 ports
		}
		if err := c.measure(ctx, &out, kind, n); err != nil {
			return err
		}
	}
	p50, p99, n, err := c.webhookSeconds()
	if err != nil {
		return err
	}
	out.Add(report.Line{
		Case: fmt.Sprintf("up to %d Services", total), Metric: "webhook (histogram bound)", Unit: "s",
		Ours: report.Figures{P50: p50, P99: p99, N: n},
	})
	return out.Write(os.Stdout, filepath.Join("build", "bench"))
}

// cluster is an API server with one controller.
type cluster struct {
	env        *envtest.Environment
	api        client.Client
	controller *replica.Process
	next       atomic.Int64
}

func (c *cluster) stop() {
	if c.controller != nil {
		c.controller.Kill()
	}
	if err := c.env.Stop(); err != nil {
		fmt.Fprintln(os.Stderr, "stop API server:", err)
	}
}

func start(ctx context.Context) (*cluster, error) {
	assets, err := controlplane.Assets(ctx, "etcd", "kube-apiserver")
	if err != nil {
		return nil, err
	}
	c := &cluster{env: &envtest.Environment{
		BinaryAssetsDirectory: assets, ControlPlaneStartTimeout: time.Minute, Scheme: controllers.NewScheme(),
		CRDDirectoryPaths: []string{filepath.Join("config", "crd", "bases")}, ErrorIfCRDPathMissing: true,
		WebhookInstallOptions: envtest.WebhookInstallOptions{Paths: []string{filepath.Join("config", "webhook", "manifests.yaml")}},
	}}
	c.env.ControlPlane.GetAPIServer().Configure().Set("service-cluster-ip-range", "10.96.0.0/12")
	config, err := c.env.Start()
	if err != nil {
		c.stop()
		return nil, err
	}
	config.QPS, config.Burst = 10000, 20000
	if c.api, err = client.New(config, client.Options{Scheme: controllers.NewScheme()}); err == nil {
		err = c.prepare(ctx)
	}
	if err != nil {
		c.stop()
		return nil, err
	}
	return c, nil
}

// prepare limits the Service webhook to one namespace, starts the controller and
// gives that namespace pools.
func (c *cluster) prepare(ctx context.Context) error {
	for _, name := range []string{v1alpha1.SystemNamespace, ours, stock} {
		ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"bench": name}}}
		if err := c.api.Create(ctx, ns); err != nil {
			return err
		}
	}
	selects := &metav1.LabelSelector{MatchLabels: map[string]string{"bench": ours}}
	var hooks admissionregistrationv1.MutatingWebhookConfigurationList
	if err := c.api.List(ctx, &hooks); err != nil {
		return err
	}
	for i := range hooks.Items {
		for j := range hooks.Items[i].Webhooks {
			hooks.Items[i].Webhooks[j].NamespaceSelector = selects
		}
		if err := c.api.Update(ctx, &hooks.Items[i]); err != nil {
			return err
		}
	}
	if err := c.startController(); err != nil {
		return err
	}
	pools := []client.Object{
		&v1alpha1.ClusterIPPool{ObjectMeta: metav1.ObjectMeta{Name: ours}, Spec: v1alpha1.ClusterIPPoolSpec{
			Ranges: []v1alpha1.AddressRange{"10.97.0.0/16"}, NamespaceSelector: selects,
		}},
		&v1alpha1.NodePortPool{ObjectMeta: metav1.ObjectMeta{Name: ours}, Spec: v1alpha1.NodePortPoolSpec{
			Ranges: []v1alpha1.PortRange{"30000-31999"}, NamespaceSelector: selects,
		}},
	}
	for _, pool := range pools {
		if err := until(ctx, func() error { return client.IgnoreAlreadyExists(c.api.Create(ctx, pool)) }); err != nil {
			return err
		}
	}
	return until(ctx, func() error { return c.create(ctx, ours, corev1.ServiceTypeClusterIP) })
}

func (c *cluster) startController() error {
	hooks := c.env.WebhookInstallOptions
	dir := hooks.LocalServingCertDir
	kubeconfig := filepath.Join(dir, "kubeconfig")
	if err := errors.Join(
		os.WriteFile(kubeconfig, c.env.KubeConfig, 0o600),
		os.WriteFile(filepath.Join(dir, "ca.crt"), hooks.LocalServingCAData, 0o600),
	); err != nil {
		return err
	}
	port, err := replica.FreePort()
	if err != nil {
		return err
	}
	log, err := os.Create(filepath.Join(dir, "controller.log"))
	if err != nil {
		return err
	}
	c.controller = &replica.Process{
		Kubeconfig: kubeconfig, Certs: dir, Port: hooks.LocalServingPort, Hold: services.DefaultPendingFor,
		Metrics: net.JoinHostPort("127.0.0.1", strconv.Itoa(port)), Log: log,
	}
	return c.controller.Start()
}

// until repeats f until it succeeds, for a minute at most.
func until(ctx context.Context, f func() error) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		err := f()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// create creates one Service; in the namespace with pools it fails unless the
// address is from there.
func (c *cluster) create(ctx context.Context, namespace string, kind corev1.ServiceType) error {
	svc := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "s" + strconv.FormatInt(c.next.Add(1), 10)},
		Spec: corev1.ServiceSpec{
			Type: kind, Selector: map[string]string{"app": "web"}, Ports: []corev1.ServicePort{{Port: 80}},
		},
	}
	if err := c.api.Create(ctx, svc); err != nil {
		return err
	}
	if namespace == ours && !strings.HasPrefix(svc.Spec.ClusterIP, "10.97.") {
		return fmt.Errorf("%s got %s, which is not from the pool", svc.Name, svc.Spec.ClusterIP)
	}
	return nil
}

// samples are figures of the batches of one side.
type samples struct{ p50, p99, rate []float64 }

// measure creates n Services in batches that alternate between the sides.
func (c *cluster) measure(ctx context.Context, out *report.Report, kind corev1.ServiceType, n int) error {
	sides := map[string]*samples{ours: {}, stock: {}}
	for done := 0; done < n; done += 2 * batch {
		order := []string{stock, ours}
		if done/batch%4 != 0 {
			slices.Reverse(order)
		}
		for _, side := range order {
			if err := c.batch(ctx, side, kind, sides[side]); err != nil {
				return err
			}
		}
	}
	name := fmt.Sprintf("%d %s, %d workers", n, kind, workers)
	add := func(metric, unit string, more bool, values func(*samples) []float64) {
		peer := report.Summarise(peerName, values(sides[stock]))
		out.Add(report.Line{
			Case: name, Metric: metric, Unit: unit, MoreIsBetter: more,
			Ours: report.Summarise("", values(sides[ours])), Peer: &peer,
		})
	}
	add("create_p50", "s", false, func(s *samples) []float64 { return s.p50 })
	add("create_p99", "s", false, func(s *samples) []float64 { return s.p99 })
	add("creates_per_s", "1/s", true, func(s *samples) []float64 { return s.rate })
	return nil
}

func (c *cluster) batch(ctx context.Context, side string, kind corev1.ServiceType, into *samples) error {
	var mu sync.Mutex
	var took []float64
	var errs []error
	var left atomic.Int64
	left.Store(batch)
	start := time.Now()
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for left.Add(-1) >= 0 && ctx.Err() == nil {
				began := time.Now()
				err := c.create(ctx, side, kind)
				mu.Lock()
				took = append(took, time.Since(began).Seconds())
				if err != nil {
					errs = append(errs, err)
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if len(errs) > 0 {
		return fmt.Errorf("%d creations failed, the first: %w", len(errs), errs[0])
	}
	f := report.Summarise("", took)
	into.p50, into.p99 = append(into.p50, f.P50), append(into.p99, f.P99)
	into.rate = append(into.rate, batch/time.Since(start).Seconds())
	return ctx.Err()
}

// webhookSeconds reads from the controller's metrics how long the webhook took
// for requests that it granted: the upper bounds of the histogram's buckets
// that hold the median and the 99th percentile.
func (c *cluster) webhookSeconds() (p50, p99 float64, n int, err error) {
	answer, err := http.Get("http://" + c.controller.Metrics + "/metrics")
	if err != nil {
		return 0, 0, 0, err
	}
	defer answer.Body.Close()
	type bucket struct{ bound, count float64 }
	var buckets []bucket
	for lines := bufio.NewScanner(answer.Body); lines.Scan(); {
		var bound string
		var count float64
		const format = `causeway_allocation_admission_seconds_bucket{answer="granted",le=%q} %g`
		if k, _ := fmt.Sscanf(lines.Text(), format, &bound, &count); k == 2 && bound != "+Inf" {
			b, err := strconv.ParseFloat(bound, 64)
			if err != nil {
				return 0, 0, 0, err
			}
			buckets = append(buckets, bucket{b, count})
		}
	}
	if len(buckets) == 0 {
		return 0, 0, 0, errors.New("the controller has no metric of its webhook")
	}
	all := buckets[len(buckets)-1].count
	at := func(q float64) float64 {
		for _, b := range buckets {
			if b.count >= q*all {
				return b.bound
			}
		}
		return buckets[len(buckets)-1].bound
	}
	return at(0.5), at(0.99), int(all), nil
}
