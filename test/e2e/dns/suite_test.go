// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-lb/causeway/internal/lab"
	"github.com/causeway-lb/causeway/internal/lab/apt"
	"github.com/causeway-lb/causeway/internal/lab/kubelet"
	"github.com/causeway-lb/causeway/internal/lab/network"
	"github.com/causeway-lb/causeway/test/labtest"
)

// The lab, in short; see prepare.
var (
	suite   = &labtest.Suite{Name: "dns", Preparation: 3 * time.Minute, Test: 3 * time.Minute, Patience: 20 * time.Second, Change: addImages}
	cluster *lab.Lab
	api     client.Client
	// resolver is the network namespace of a Pod, which asks the questions.
	resolver *network.Namespace

	need     = suite.Need
	create   = suite.Create
	frontend = labtest.Frontend
)

func TestMain(m *testing.M) {
	suite.Prepare = prepare
	suite.Main(m)
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
	if !apt.CanInstall() {
		return "", fmt.Errorf("%s is missing: sudo apt-get install --no-install-recommends %s", pattern, debian)
	}
	if err := apt.Install(ctx, os.Stderr, debian); err != nil {
		return "", err
	}
	if path := find(); path != "" {
		return path, nil
	}
	return "", fmt.Errorf("package %s has no %s", debian, pattern)
}

// prepare installs Causeway, the pool, and cluster DNS.
func prepare(ctx context.Context) error {
	cluster, api = suite.Cluster, suite.API
	if err := cluster.Install(ctx); err != nil {
		return err
	}
	err := suite.Sample(ctx, func(ctx context.Context) error {
		_, err := cluster.Kubectl(ctx, nil, "apply", "-f", filepath.Join(cluster.Setup.Source, "config", "samples", "go-http", "pool.yaml"))
		return err
	})
	if err != nil {
		return err
	}
	if err := cluster.Apply(ctx, "config/samples/coredns"); err != nil {
		return err
	}
	if err := cluster.WaitDeployment(ctx, "kube-system", "coredns"); err != nil {
		return err
	}
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
