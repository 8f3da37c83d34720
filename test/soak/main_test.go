// SPDX-License-Identifier: Apache-2.0

package soak

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/envtest"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/causeway-lb/causeway/api/v1alpha1"
	"github.com/causeway-lb/causeway/controllers"
	"github.com/causeway-lb/causeway/internal/lab/controlplane"
	"github.com/causeway-lb/causeway/internal/testkit/confine"
	"github.com/causeway-lb/causeway/test/replica"
)

func TestMain(m *testing.M) {
	replica.Main()
	ctrllog.SetLogger(logr.Discard()) // envtest's
	os.Exit(confine.Run(m.Run))
}

const (
	shortKills = 2
	longKills  = 5
)

// size is how much to do, and how often to kill meanwhile: what SOAK_OPERATIONS
// says, else short.
func size(t *testing.T, short int) (operations, kills int) {
	t.Helper()
	text := os.Getenv("SOAK_OPERATIONS")
	if text == "" {
		return short, shortKills
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("SOAK_OPERATIONS=%s: must be a number above 0", text)
	}
	return n, longKills
}

// stage is an API server with two controllers, which are processes of their own.
type stage struct {
	t        *testing.T
	env      *envtest.Environment
	api      client.WithWatch
	replicas []*replica.Process
	left     atomic.Int64 // operations to do
}

// newStage starts the API server, which calls the webhooks of these manifests.
func newStage(t *testing.T, serviceRange string, webhooks ...string) *stage {
	t.Helper()
	assets, err := controlplane.Assets(t.Context(), "etcd", "kube-apiserver")
	if err != nil {
		t.Fatal(err)
	}
	s := &stage{t: t, env: &envtest.Environment{
		BinaryAssetsDirectory: assets, ControlPlaneStartTimeout: time.Minute, Scheme: controllers.NewScheme(),
		CRDDirectoryPaths: []string{filepath.Join("..", "..", "config", "crd", "bases")}, ErrorIfCRDPathMissing: true,
		WebhookInstallOptions: envtest.WebhookInstallOptions{Paths: webhooks},
	}}
	s.env.ControlPlane.GetAPIServer().Configure().Set("service-cluster-ip-range", serviceRange)
	rest, err := s.env.Start()
	t.Cleanup(func() {
		if err := s.env.Stop(); err != nil {
			t.Errorf("stop API server: %v", err)
		}
	})
	s.must(err)
	rest.QPS = -1
	s.api, err = client.NewWithWatch(rest, client.Options{Scheme: controllers.NewScheme()})
	s.must(err)
	s.must(s.api.Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: v1alpha1.SystemNamespace}}))
	return s
}

// startReplicas starts two controllers that do what like does.
func (s *stage) startReplicas(like *replica.Process) {
	dir := s.t.TempDir()
	kubeconfig := filepath.Join(dir, "kubeconfig")
	s.must(os.WriteFile(kubeconfig, s.env.KubeConfig, 0o600))
	hooks := s.env.WebhookInstallOptions
	s.must(os.WriteFile(filepath.Join(hooks.LocalServingCertDir, "ca.crt"), hooks.LocalServingCAData, 0o600))
	log, err := os.Create(filepath.Join(dir, "replicas.log"))
	s.must(err)
	s.t.Cleanup(func() {
		if s.t.Failed() {
			text, _ := os.ReadFile(log.Name())
			s.t.Logf("the replicas said:\n%s", text[max(0, len(text)-20000):])
		}
	})
	for range 2 {
		port, err := replica.FreePort()
		s.must(err)
		metrics, err := replica.FreePort()
		s.must(err)
		p := &replica.Process{
			Kubeconfig: kubeconfig, Certs: hooks.LocalServingCertDir, Port: port, Metrics: fmt.Sprintf("127.0.0.1:%d", metrics), Log: log,
			Feature: like.Feature, Lease: like.Lease, Hold: like.Hold,
		}
		s.must(p.Start())
		s.t.Cleanup(p.Kill)
		s.replicas = append(s.replicas, p)
	}
}

// front has the API server find the webhooks of whichever replica lives.
func (s *stage) front() {
	hooks := s.env.WebhookInstallOptions
	listener, err := net.Listen("tcp", net.JoinHostPort(hooks.LocalServingHost, strconv.Itoa(hooks.LocalServingPort)))
	s.must(err)
	s.t.Cleanup(func() { _ = listener.Close() })
	go (&replica.Front{Listener: listener, Replicas: s.replicas}).Serve()
}

// killing calls kill as often as said, evenly spread over the operations, until
// all are done.
func (s *stage) killing(operations, kills int, kill func(n int)) {
	for n := 1; n <= kills; n++ {
		until := int64(operations) * int64(kills+1-n) / int64(kills+1)
		for s.left.Load() > until && s.t.Context().Err() == nil {
			time.Sleep(20 * time.Millisecond)
		}
		kill(n)
	}
}

func (s *stage) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}
