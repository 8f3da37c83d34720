// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"golang.org/x/sys/unix"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/causeway-lb/causeway/internal/lab"
	"github.com/causeway-lb/causeway/internal/lab/kubelet"
	"github.com/causeway-lb/causeway/internal/lab/network"
	"github.com/causeway-lb/causeway/internal/lab/reexec"
)

// cluster is nil when no lab can be had; need then skips the test.
var (
	cluster *lab.Lab
	api     client.Client
	whyNone string

	// resolver is the network namespace of a Pod, which asks the questions.
	resolver *network.Namespace
)

func TestMain(m *testing.M) {
	reexec.Init()
	flag.Parse()
	ctrllog.SetLogger(logr.Discard()) // the API server's warnings about Endpoints
	os.Exit(suite(m))
}

func suite(m *testing.M) int {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, os.Interrupt)
	defer stop()
	setup, err := lab.Inside()
	switch {
	case err != nil:
		return report(err)
	case setup != nil:
		return inside(ctx, *setup, m)
	case testing.Short():
		whyNone = "-short"
	default:
		if err := lab.Possible(); err != nil {
			if os.Getenv("REQUIRE_KERNEL") == "1" {
				return report(err)
			}
			whyNone = err.Error()
		}
	}
	if whyNone != "" {
		return m.Run() // each test is skipped
	}
	return outside(ctx)
}

func report(err error) int {
	fmt.Fprintln(os.Stderr, "e2e/dns:", err)
	return 1
}

// outside prepares a lab and runs this program again in it.
func outside(ctx context.Context) int {
	name := fmt.Sprintf("dns-%d", os.Getpid())
	setup, err := lab.Prepare(ctx, name)
	if err == nil {
		err = errors.Join(lab.InstallMissing(ctx, os.Stderr, true), addImages(ctx, &setup))
	}
	if err != nil {
		return report(err)
	}
	code, err := lab.Enter(ctx, setup, os.Args)
	if err != nil {
		return report(err)
	}
	if code != 0 {
		fmt.Fprintln(os.Stderr, "e2e/dns: logs are in", lab.StateDir(name))
		return code
	}
	return reportIf(os.RemoveAll(lab.StateDir(name)))
}

func reportIf(err error) int {
	if err != nil {
		return report(err)
	}
	return 0
}

// inside starts the cluster and runs the tests.
func inside(ctx context.Context, setup lab.Setup, m *testing.M) int {
	l, err := lab.Start(ctx, setup, nil)
	if err != nil {
		return report(err)
	}
	defer l.Close()
	if err := prepare(ctx, l); err != nil {
		return report(err)
	}
	return m.Run()
}

// addImages tells the lab what to run for the images of the samples.
func addImages(ctx context.Context, setup *lab.Setup) error {
	binary := filepath.Join(setup.Source, "build", "lab", "coredns")
	build := exec.CommandContext(ctx, "go", "build", "-C", filepath.Join(setup.Source, "test", "images", "coredns"),
		"-trimpath", "-ldflags=-s -w", "-o", binary, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-trimpath")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build CoreDNS: %w\n%s", err, out)
	}
	nginx, err := program(ctx, "/usr/sbin/nginx", "nginx-light")
	if err != nil {
		return err
	}
	php, err := program(ctx, "/usr/sbin/php-fpm[0-9]*", "php-fpm")
	if err != nil {
		return err
	}
	setup.Images["coredns"] = kubelet.Image{Files: map[string]string{"/coredns": binary}, Entrypoint: []string{"/coredns"}}
	setup.Images["nginx"] = kubelet.Image{Entrypoint: []string{nginx}}
	setup.Images["php"] = kubelet.Image{Entrypoint: []string{php}}
	return nil
}

// program finds a program of the host by pattern, and installs its Debian
// package when it is missing. The package's service is not started.
func program(ctx context.Context, pattern, debian string) (string, error) {
	find := func() string {
		if found, _ := filepath.Glob(pattern); len(found) > 0 {
			return found[len(found)-1]
		}
		return ""
	}
	if path := find(); path != "" {
		return path, nil
	}
	if _, err := exec.LookPath("apt-get"); err != nil || os.Geteuid() != 0 {
		return "", fmt.Errorf("%s is missing: sudo apt-get install --no-install-recommends %s", pattern, debian)
	}
	const policy = "/usr/sbin/policy-rc.d" // what asks whether services may start
	if _, err := os.Stat(policy); os.IsNotExist(err) {
		if err := os.WriteFile(policy, []byte("#!/bin/sh\nexit 101\n"), 0o755); err != nil {
			return "", err
		}
		defer os.Remove(policy)
	}
	install := exec.CommandContext(ctx, "apt-get", "-o", "DPkg::Lock::Timeout=300", "install", "-y", "-q", "--no-install-recommends", debian)
	install.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
	if out, err := install.CombinedOutput(); err != nil {
		return "", fmt.Errorf("apt-get install %s: %w\n%s", debian, err, out)
	}
	if path := find(); path != "" {
		return path, nil
	}
	return "", fmt.Errorf("package %s has no %s", debian, pattern)
}

// prepare installs Causeway, the pool, and cluster DNS.
func prepare(ctx context.Context, l *lab.Lab) error {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	if err := l.Install(ctx); err != nil {
		return err
	}
	if err := l.Wait(ctx, "the webhooks", func(ctx context.Context) (bool, string, error) {
		_, err := l.Kubectl(ctx, nil, "apply", "-f", filepath.Join(l.Setup.Source, "config", "samples", "go-http", "pool.yaml"))
		return err == nil, "", err
	}); err != nil {
		return err
	}
	if err := l.Apply(ctx, "config/samples/coredns"); err != nil {
		return err
	}
	if err := l.WaitDeployment(ctx, "kube-system", "coredns"); err != nil {
		return err
	}
	var err error
	if api, err = client.New(l.REST, client.Options{Scheme: clientgoscheme.Scheme}); err != nil {
		return err
	}
	cluster = l
	return startResolver(ctx)
}

// startResolver runs a Pod to ask from.
func startResolver(ctx context.Context) error {
	pod := server("resolver", "resolver", nil)
	if err := api.Create(ctx, pod); err != nil {
		return err
	}
	return cluster.Wait(ctx, "a Pod to ask from", func(ctx context.Context) (bool, string, error) {
		err := api.Get(ctx, client.ObjectKeyFromObject(pod), pod)
		if err != nil || pod.Status.PodIP == "" {
			return false, string(pod.Status.Phase), err
		}
		resolver, err = cluster.Node(pod.Spec.NodeName).Pod(pod)
		return err == nil, "", err
	})
}

// need skips a test where no lab can be had. Under REQUIRE_KERNEL=1 the suite
// has failed before it comes to that.
func need(t *testing.T) context.Context {
	t.Helper()
	if cluster == nil {
		t.Skip("no lab here: " + whyNone)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// eventually retries until check gives no error.
func eventually(t *testing.T, ctx context.Context, within time.Duration, what string, check func() error) {
	t.Helper()
	deadline := time.Now().Add(within)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) || ctx.Err() != nil {
			t.Fatalf("%s: not within %s: %v", what, within, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// create makes objects, and deletes them with the test.
func create(t *testing.T, ctx context.Context, objects ...client.Object) {
	t.Helper()
	for _, object := range objects {
		if err := api.Create(ctx, object); err != nil {
			t.Fatalf("create %T %s: %v", object, object.GetName(), err)
		}
		t.Cleanup(func() {
			err := api.Delete(context.Background(), object, client.PropagationPolicy("Background"))
			if client.IgnoreNotFound(err) != nil {
				t.Errorf("delete %T %s: %v", object, object.GetName(), err)
			}
		})
	}
}

// frontend returns address:port, in the form that dialers take.
func frontend(address netip.Addr, port int32) string {
	return netip.AddrPortFrom(address, uint16(port)).String()
}
