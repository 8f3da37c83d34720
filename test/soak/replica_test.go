// SPDX-License-Identifier: Apache-2.0

package soak

import (
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
	"testing"
	"time"

	"k8s.io/client-go/tools/clientcmd"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/log/zap"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"
	"sigs.k8s.io/controller-runtime/pkg/webhook"

	"github.com/causeway-lb/causeway/api/v1alpha1"
	"github.com/causeway-lb/causeway/controllers"
)

// Environment of a replica process.
const (
	envKubeconfig = "SOAK_REPLICA_KUBECONFIG"
	envPort       = "SOAK_REPLICA_PORT"
	envCerts      = "SOAK_REPLICA_CERTS"
)

// hold is how long a grant is kept in these tests: long beside a request, short
// beside a test.
const hold = 5 * time.Second

func TestMain(m *testing.M) {
	if os.Getenv(envKubeconfig) == "" {
		os.Exit(m.Run())
	}
	if err := runReplica(); err != nil {
		fmt.Fprintln(os.Stderr, "replica:", err)
		os.Exit(1)
	}
}

// runReplica is the controller as a process, with the test's certificates.
func runReplica() error {
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
	certs := os.Getenv(envCerts)
	mgr, err := ctrl.NewManager(config, ctrl.Options{
		Scheme:                  controllers.NewScheme(),
		Metrics:                 metricsserver.Options{BindAddress: "0"},
		WebhookServer:           webhook.NewServer(webhook.Options{Host: "127.0.0.1", Port: port, CertDir: certs}),
		LeaderElection:          true,
		LeaderElectionID:        "causeway-controller",
		LeaderElectionNamespace: v1alpha1.SystemNamespace,
	})
	if err != nil {
		return err
	}
	err = controllers.SetupWithManager(mgr, controllers.Options{
		Features: controllers.Features{Allocation: true},
		Allocation: controllers.AllocationOptions{Hold: hold, Peers: controllers.Peers{
			Address: net.JoinHostPort("127.0.0.1", strconv.Itoa(port)), ServerName: "127.0.0.1",
			CA: func(context.Context) ([]byte, error) { return os.ReadFile(filepath.Join(certs, "ca.crt")) },
		}},
	})
	if err != nil {
		return err
	}
	return mgr.Start(ctx)
}

// process is a replica that can be killed and started again.
type process struct {
	kubeconfig, certs string
	port              int
	log               io.Writer

	mu  sync.Mutex
	cmd *exec.Cmd
}

func (p *process) address() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(p.port)) }

func (p *process) start() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cmd = exec.Command(os.Args[0])
	p.cmd.Env = append(os.Environ(), envKubeconfig+"="+p.kubeconfig, envPort+"="+strconv.Itoa(p.port), envCerts+"="+p.certs)
	p.cmd.Stdout, p.cmd.Stderr = p.log, p.log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return p.cmd.Start()
}

// kill ends the process at once and waits until it is gone.
func (p *process) kill() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd == nil {
		return
	}
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait() // "signal: killed" is what was asked for
	p.cmd = nil
}

// front stands for the Service in front of the replicas: it gives each
// connection to the next one that takes it.
type front struct {
	listener net.Listener
	replicas []*process
	next     atomic.Uint32
}

func (f *front) serve() {
	for {
		conn, err := f.listener.Accept()
		if err != nil {
			return // closed
		}
		go f.pass(conn)
	}
}

func (f *front) pass(conn net.Conn) {
	defer conn.Close()
	for range f.replicas {
		r := f.replicas[int(f.next.Add(1))%len(f.replicas)]
		back, err := net.DialTimeout("tcp", r.address(), time.Second)
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
