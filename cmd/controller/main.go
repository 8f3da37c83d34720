// SPDX-License-Identifier: Apache-2.0

// Command controller runs Causeway's reconcilers and admission webhooks.
package main

import (
	"cmp"
	"crypto/tls"
	"flag"
	"fmt"
	"net"
	"os"
	"strconv"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/klog/v2"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	crlog "sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/log/zap"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/causeway-lb/causeway/api/v1alpha1"
	"github.com/causeway-lb/causeway/controllers"
	"github.com/causeway-lb/causeway/controllers/loadbalancer"
	"github.com/causeway-lb/causeway/internal/certs"
	"github.com/causeway-lb/causeway/internal/provisioner/haproxy"
	"github.com/causeway-lb/causeway/internal/version"
)

func main() { os.Exit(run()) }

// flags are the command line. --kubeconfig is controller-runtime's own.
type flags struct {
	metricsAddress, healthAddress string
	webhookPort                   int
	webhookClientCA               string
	leaderElect                   bool
	leaseDuration                 time.Duration
	qps                           float64
	renderHAProxy                 string
	options                       controllers.Options
	zap                           zap.Options
}

func (f *flags) register(fs *flag.FlagSet) {
	fs.StringVar(&f.metricsAddress, "metrics-address", ":8080", "address of /metrics: at a loopback address over HTTP without authorization, else over HTTPS for clients that the API server authorizes to get /metrics; 0 switches it off")
	fs.StringVar(&f.healthAddress, "health-address", ":8081", "address of /healthz and /readyz; 0 switches them off")
	fs.StringVar(&f.webhookClientCA, "webhook-client-ca", "", "file of certificate authorities, as PEM: only the API server with a client certificate of one of them, and other replicas, may call the webhooks; the API server needs that certificate in the kubeconfig of its --admission-control-config-file")
	fs.IntVar(&f.webhookPort, "webhook-port", 9443, "port of the admission webhooks; 0 switches them off")
	fs.BoolVar(&f.leaderElect, "leader-elect", false, "let only one of several replicas write (webhooks are served by all)")
	fs.DurationVar(&f.leaseDuration, "leader-lease-duration", 8*time.Second, "how long the other replicas wait for a dead leader; a leader that cannot reach the API server for two thirds of it restarts")
	fs.Float64Var(&f.qps, "kube-api-qps", 200, "requests a second to the API server, on average; twice as many in a burst")
	fs.BoolVar(&f.options.LoadBalancer.Default, "default-load-balancer", true, "serve Services of type LoadBalancer that have no loadBalancerClass")
	fs.StringVar(&f.options.LoadBalancer.External, "external-load-balancers", "", "file that describes load balancers outside the cluster, by class")
	fs.StringVar(&f.options.LoadBalancer.Forwarder, "forwarder", loadbalancer.ForwarderCauseway, "what forwards packets to LoadBalancer addresses on the nodes: causeway, or kube-proxy, which with policy Local drops those without a local endpoint")
	fs.BoolVar(&f.options.LoadBalancer.IgnoreExcludeLabel, "ignore-exclude-label", false, "have --external-load-balancers send to nodes with the label node.kubernetes.io/exclude-from-external-load-balancers too")
	fs.BoolVar(&f.options.LoadBalancer.MetalLBAnnotations, "metallb-annotations", false, "honour the annotations address-pool, loadBalancerIPs and allow-shared-ip of metallb.io and metallb.universe.tf where a Service does not have Causeway's own")
	fs.StringVar(&f.renderHAProxy, "render-haproxy", "", "print the haproxy.cfg for this class of --external-load-balancers, and exit")
	fs.BoolVar(&f.options.Features.LoadBalancer, "load-balancer", true, "assign LoadBalancer addresses from pools")
	fs.BoolVar(&f.options.Features.Allocation, "allocation", true, "allocate ClusterIPs and NodePorts from pools")
	fs.StringVar(&f.options.Allocation.NodePortRange, "service-node-port-range", "30000-32767", "the API server's flag of that name")
	fs.BoolVar(&f.options.Features.Endpoints, "endpoints", true, "manage EndpointSlices and Endpoints")
	fs.StringVar((*string)(&f.options.EndpointSlices), "endpoint-slices", "auto", "where kube-controller-manager could manage EndpointSlices too: auto (stand by if it does), take-over or hand-back")
	fs.BoolVar(&f.options.EndpointSlicesOwnName, "endpoint-slices-own-name", false, "label EndpointSlices endpointslice.kubernetes.io/managed-by=endpointslice-controller.causeway.dev, by which earlier versions recognise theirs: set it before such a version is installed")
	f.zap.BindFlags(fs)
	_ = fs.Set("zap-time-encoding", "rfc3339nano")
}

func parseFlags() flags {
	var f flags
	f.register(flag.CommandLine)
	flag.Parse()
	f.options.SystemNamespace = cmp.Or(os.Getenv("POD_NAMESPACE"), v1alpha1.SystemNamespace)
	if ip := os.Getenv("POD_IP"); ip != "" {
		f.options.Allocation.Peers.Address = net.JoinHostPort(ip, strconv.Itoa(f.webhookPort))
	}
	return f
}

func run() int {
	f := parseFlags()
	if f.renderHAProxy != "" {
		return renderHAProxy(f)
	}
	log := zap.New(zap.UseFlagOptions(&f.zap))
	ctrl.SetLogger(log)
	klog.SetLogger(log)
	log.Info("Starting controller", "version", version.String())
	if err := serve(f, log); err != nil {
		log.Error(err, "Controller stopped")
		return 1
	}
	log.Info("Controller stopped")
	return 0
}

// renderHAProxy prints a haproxy.cfg.
func renderHAProxy(f flags) int {
	text, err := os.ReadFile(f.options.LoadBalancer.External)
	if err == nil {
		var config string
		if config, err = haproxy.RenderFile(text, f.renderHAProxy); err == nil {
			_, err = fmt.Print(config)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// serve runs until SIGTERM or SIGINT.
func serve(f flags, log logr.Logger) error {
	ctx := logr.NewContext(ctrl.SetupSignalHandler(), log)
	config, err := ctrl.GetConfig()
	if err != nil {
		return fmt.Errorf("find the API server: %w: run in a Pod, or set --kubeconfig", err)
	}
	config.QPS, config.Burst = float32(f.qps), int(2*f.qps)
	// Each warning once: every write of v1 Endpoints returns that they are deprecated.
	config.WarningHandlerWithContext = crlog.NewKubeAPIWarningLogger(crlog.KubeAPIWarningLoggerOptions{Deduplicate: true})
	config.DisableCompression = true // the network is near, the processor is not idle
	keeper, err := newKeeper(config, f)
	if err != nil {
		return err
	}
	f.options.Allocation.Peers.Certificate = func() (*tls.Certificate, error) { return keeper.GetCertificate(nil) }
	mgr, err := newManager(config, f, log, keeper)
	if err != nil {
		return err
	}
	if f.certified() {
		if err := mgr.Add(keeper); err != nil {
			return fmt.Errorf("add certificate keeper: %w", err)
		}
	}
	if err := controllers.SetupWithManager(mgr, f.options); err != nil {
		return err
	}
	if err := addServers(mgr, f, keeper); err != nil {
		return err
	}
	return mgr.Start(ctx)
}

// newKeeper returns the keeper of the webhooks' certificate. It has a client of its own
// because the manager does not exist yet.
func newKeeper(config *rest.Config, f flags) (*certs.Keeper, error) {
	direct, err := client.New(config, client.Options{Scheme: controllers.NewScheme()})
	if err != nil {
		return nil, fmt.Errorf("make client: %w", err)
	}
	namespace := f.options.SystemNamespace
	host := "webhook-service." + namespace + ".svc"
	mutating, validating := "causeway", "causeway"
	if !f.options.Features.Allocation {
		mutating = "" // its only webhook is not served
	}
	if f.webhookPort == 0 {
		mutating, validating = "", ""
	}
	return certs.NewKeeper(certs.Config{
		Client:           direct,
		Secret:           client.ObjectKey{Namespace: namespace, Name: v1alpha1.WebhookSecret},
		DNSNames:         []string{host, host + ".cluster.local"},
		MutatingConfig:   mutating,
		ValidatingConfig: validating,
	})
}

func newManager(config *rest.Config, f flags, log logr.Logger, keeper *certs.Keeper) (ctrl.Manager, error) {
	renew := f.leaseDuration * 2 / 3
	retry := f.leaseDuration / 8
	hooks := newHooks(f.webhookPort, keeper)
	if f.webhookClientCA != "" {
		if err := requireClients(hooks.config, f.webhookClientCA, keeper); err != nil {
			return nil, err
		}
	}
	mgr, err := ctrl.NewManager(config, ctrl.Options{
		Scheme:                        controllers.NewScheme(),
		Logger:                        log,
		Metrics:                       metricsserver.Options{BindAddress: "0"}, // addServers' own
		HealthProbeBindAddress:        "0",                                     // likewise
		WebhookServer:                 hooks,
		LeaderElection:                f.leaderElect,
		LeaderElectionID:              "causeway-controller",
		LeaderElectionNamespace:       f.options.SystemNamespace,
		LeaderElectionReleaseOnCancel: true,
		LeaseDuration:                 &f.leaseDuration,
		RenewDeadline:                 &renew,
		RetryPeriod:                   &retry,
		// Secrets are read one by one: a cache would need permission to list and watch
		// all of them.
		Cache:  controllers.CacheOptions(),
		Client: client.Options{Cache: &client.CacheOptions{DisableFor: []client.Object{&corev1.Secret{}}}},
	})
	if err != nil {
		return nil, fmt.Errorf("make manager: %w", err)
	}
	return mgr, nil
}
