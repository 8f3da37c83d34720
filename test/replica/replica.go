// SPDX-License-Identifier: Apache-2.0

package replica

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"k8s.io/client-go/tools/clientcmd"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/log/zap"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"
	"sigs.k8s.io/controller-runtime/pkg/webhook"

	"github.com/causeway-lb/causeway/api/v1alpha1"
	"github.com/causeway-lb/causeway/controllers"
	"github.com/causeway-lb/causeway/controllers/clusterip"
	"github.com/causeway-lb/causeway/controllers/loadbalancer"
	"github.com/causeway-lb/causeway/internal/allocator"
)

// Environment of a replica process.
const (
	envKubeconfig = "REPLICA_KUBECONFIG"
	envPort       = "REPLICA_PORT"
	envCerts      = "REPLICA_CERTS"
	envHold       = "REPLICA_HOLD"
	envMetrics    = "REPLICA_METRICS"
	envFeature    = "REPLICA_FEATURE"
	envLease      = "REPLICA_LEASE"
)

// Main runs the controller and does not return, when the process was started by
// Process.Start; otherwise it does nothing. Programs that start replicas call it
// first.
func Main() {
	if os.Getenv(envKubeconfig) == "" {
		return
	}
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "replica:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// run is the controller, with one feature alone.
func run() error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	ctrl.SetLogger(zap.New())
	config, err := clientcmd.BuildConfigFromFlags("", os.Getenv(envKubeconfig))
	if err != nil {
		return err
	}
	config.QPS, config.Burst = 1000, 2000
	port, err := strconv.Atoi(os.Getenv(envPort))
	if err != nil {
		return err
	}
	hold, err := time.ParseDuration(os.Getenv(envHold))
	if err != nil {
		return err
	}
	lease, err := time.ParseDuration(os.Getenv(envLease))
	if err != nil {
		return err
	}
	renew, retry := lease*2/3, lease/8
	certs := os.Getenv(envCerts)
	mgr, err := ctrl.NewManager(config, ctrl.Options{
		Scheme:                  controllers.NewScheme(),
		Metrics:                 metricsserver.Options{BindAddress: os.Getenv(envMetrics)},
		WebhookServer:           webhook.NewServer(webhook.Options{Host: "127.0.0.1", Port: port, CertDir: certs}),
		LeaderElection:          true,
		LeaderElectionID:        "causeway-controller",
		LeaderElectionNamespace: v1alpha1.SystemNamespace,
		LeaseDuration:           &lease, RenewDeadline: &renew, RetryPeriod: &retry,
	})
	if err != nil {
		return err
	}
	feature := Feature(os.Getenv(envFeature))
	err = controllers.SetupWithManager(mgr, controllers.Options{
		Features:     controllers.Features{Allocation: feature == Allocation, LoadBalancer: feature == LoadBalancer},
		LoadBalancer: loadbalancer.Options{Default: true},
		Allocation: clusterip.Options{PendingFor: hold, Peers: allocator.Peers{
			Address: net.JoinHostPort("127.0.0.1", strconv.Itoa(port)), ServerName: "127.0.0.1",
			CA: func(context.Context) ([]byte, error) { return os.ReadFile(filepath.Join(certs, "ca.crt")) },
		}},
	})
	if err != nil {
		return err
	}
	return mgr.Start(ctx)
}

// Feature is what a replica does.
type Feature string

// The features.
const (
	Allocation   Feature = "allocation" // ClusterIPs and NodePorts
	LoadBalancer Feature = "load balancer"
)

// defaultLease is controller-runtime's.
const defaultLease = 15 * time.Second

// Process is a replica that can be killed and started again.
type Process struct {
	// Kubeconfig is a file that says how to reach the API server.
	Kubeconfig string
	// Certs is a directory with tls.crt, tls.key and ca.crt for 127.0.0.1.
	Certs string
	// Port is where the webhooks are served, on 127.0.0.1.
	Port int
	// Feature is what it does; empty means Allocation.
	Feature Feature
	// Lease is how long a dead leader keeps the others waiting; 0 means 15 s.
	Lease time.Duration
	// Hold is AllocationOptions.Hold.
	Hold time.Duration
	// Metrics is the address of /metrics; "0" for none.
	Metrics string
	// Log takes what the process says.
	Log io.Writer

	mu  sync.Mutex
	cmd *exec.Cmd
}

// Address is host:port of the webhooks.
func (p *Process) Address() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(p.Port)) }

// Start starts this program again as a replica, which dies with it.
func (p *Process) Start() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cmd = exec.Command(os.Args[0])
	p.cmd.Env = append(os.Environ(), envKubeconfig+"="+p.Kubeconfig, envPort+"="+strconv.Itoa(p.Port),
		envCerts+"="+p.Certs, envHold+"="+p.Hold.String(), envMetrics+"="+p.Metrics,
		envFeature+"="+string(cmp.Or(p.Feature, Allocation)), envLease+"="+cmp.Or(p.Lease, defaultLease).String())
	p.cmd.Stdout, p.cmd.Stderr = p.Log, p.Log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return p.cmd.Start()
}

// Kill ends the process with SIGKILL and waits until it is gone.
func (p *Process) Kill() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd == nil {
		return
	}
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait() // "signal: killed" is what was asked for
	p.cmd = nil
}

// Front stands for the Service in front of the replicas: it gives each
// connection to the next one that takes it.
type Front struct {
	Listener net.Listener
	Replicas []*Process
	next     atomic.Uint32
}

// Serve passes connections on until the listener is closed.
func (f *Front) Serve() {
	for {
		conn, err := f.Listener.Accept()
		if err != nil {
			return // closed
		}
		go f.pass(conn)
	}
}

func (f *Front) pass(conn net.Conn) {
	defer conn.Close()
	for range f.Replicas {
		r := f.Replicas[int(f.next.Add(1))%len(f.Replicas)]
		back, err := net.DialTimeout("tcp", r.Address(), time.Second)
		if err != nil {
			continue
		}
		defer back.Close()
		done := make(chan struct{}, 2)
		for _, pair := range [][2]net.Conn{{conn, back}, {back, conn}} {
			go func() {
				_, _ = io.Copy(pair[0], pair[1]) // ends when either side does
				done <- struct{}{}
			}()
		}
		<-done
		return
	}
}

// FreePort returns a port of 127.0.0.1 that nobody listens on.
func FreePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	return l.Addr().(*net.TCPAddr).Port, l.Close()
}
