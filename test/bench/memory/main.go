// SPDX-License-Identifier: Apache-2.0

// Command memory measures what the programs take at most in a large cluster: the
// figures of docs/sizing.md. Services of 5 Pods each are on a real API server; the
// programs are what users run, with the GOMEMLIMIT of config/.
//
//	controller, from nothing   it makes all slices and Endpoints objects
//	controller, again          it starts when all is there
//	agent                      it starts, and programs an empty kernel (nftables)
//
// rss_mb is the most resident memory until the program has come to rest; rest_mb
// is what it has then.
//
// BENCH_SIZES (default 10000) are numbers of Services.
package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/causeway-lb/causeway/api/v1alpha1"
	"github.com/causeway-lb/causeway/test/bench/proxybench"
	"github.com/causeway-lb/causeway/test/bench/report"
)

func main() { os.Exit(proxybench.Main(bench)) }

func bench(ctx context.Context) error {
	sizes, err := proxybench.Numbers("BENCH_SIZES", "10000")
	if err != nil {
		return err
	}
	for _, args := range [][]string{{"link", "set", "lo", "up"}, {"address", "add", proxybench.NodeAddress + "/32", "dev", "lo"}} {
		if out, err := exec.CommandContext(ctx, "ip", args...).CombinedOutput(); err != nil {
			return fmt.Errorf("ip %v: %w: %s", args, err, out)
		}
	}
	result := &report.Report{Bench: "memory"}
	for _, n := range sizes {
		if err := benchSize(ctx, result, n); err != nil {
			return fmt.Errorf("%dx%d: %w", n, proxybench.EndpointsEach, err)
		}
	}
	return result.Write(os.Stdout, "build/bench")
}

func benchSize(ctx context.Context, result *report.Report, n int) error {
	proxybench.Progress("%dx%d: API server with the Pods of %d Services", n, proxybench.EndpointsEach, n)
	c, err := proxybench.StartClusterOfPods(ctx, n)
	if err != nil {
		return err
	}
	defer c.Stop()
	system := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: v1alpha1.SystemNamespace}}
	if _, err := c.Kube.CoreV1().Namespaces().Create(ctx, system, metav1.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
		return err
	}
	dir, err := os.MkdirTemp("", "memory-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	agent, _, err := proxybench.Pair(ctx, c, dir, "nftables")
	if err != nil {
		return err
	}
	controller := &proxybench.Contender{Name: "causeway controller", Path: filepath.Join(dir, "controller"), Args: []string{
		"--kubeconfig=" + c.Kubeconfig, "--kube-api-qps=2000", "--endpoint-slices=take-over",
		"--webhook-port=0", "--metrics-address=0", "--health-address=127.0.0.1:8081",
	}}
	if out, err := exec.CommandContext(ctx, "go", "build", "-o", controller.Path, "./cmd/controller").CombinedOutput(); err != nil {
		return fmt.Errorf("build controller: %w: %s", err, out)
	}
	size := fmt.Sprintf("%dx%d ", n, proxybench.EndpointsEach)
	for _, step := range []struct {
		name, manifest string
		who            *proxybench.Contender
		done           func(context.Context) error
	}{
		{"controller, from nothing", "config/controller/controller.yaml", controller, c.WaitListed},
		{"controller, again", "config/controller/controller.yaml", controller, func(context.Context) error { return nil }},
		{"agent", "config/agent/agent.yaml", agent, func(ctx context.Context) error { _, _, err := agent.FirstSync(ctx); return err }},
	} {
		proxybench.Progress("%s%s", size, step.name)
		if err := limit(step.manifest); err != nil {
			return err
		}
		p, err := step.who.Start(ctx)
		if err != nil {
			return err
		}
		err = step.done(ctx)
		var rest float64
		if err == nil {
			rest, err = p.Rest(ctx)
		}
		p.End()
		if err != nil {
			return fmt.Errorf("%s: %w\n%s", step.name, err, p.Tail())
		}
		result.Add(report.Line{Case: size + step.name, Metric: "rss_mb", Unit: "MB", Ours: report.Summarise("", []float64{p.Peak()})})
		result.Add(report.Line{Case: size + step.name, Metric: "rest_mb", Unit: "MB", Ours: report.Summarise("", []float64{rest})})
	}
	return nil
}

// limit sets GOMEMLIMIT to what a manifest says.
func limit(manifest string) error {
	text, err := os.ReadFile(manifest)
	if err != nil {
		return err
	}
	_, after, ok := strings.Cut(string(text), "- name: GOMEMLIMIT\n          value: ")
	value, _, _ := strings.Cut(after, "\n")
	if !ok || value == "" {
		return fmt.Errorf("%s has no GOMEMLIMIT", manifest)
	}
	return os.Setenv("GOMEMLIMIT", value)
}
