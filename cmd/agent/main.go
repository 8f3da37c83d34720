// SPDX-License-Identifier: Apache-2.0

// Command agent programs one node's kernel with Services and announces
// LoadBalancer addresses.
//
//	agent            serve until SIGTERM; the kernel continues to forward
//	agent cleanup    remove from the kernel everything that an agent created or, with
//	                 --kube-proxy, what kube-proxy left
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/go-logr/logr"
	"github.com/spf13/cobra"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/causeway-lb/causeway/internal/agent"
	"github.com/causeway-lb/causeway/internal/proxy/kubeproxy"
	"github.com/causeway-lb/causeway/internal/proxy/modes"
	"github.com/causeway-lb/causeway/internal/version"
)

func main() { os.Exit(run()) }

func run() int {
	if os.Getenv("GOGC") == "" {
		// Most of the heap is a copy of the API's objects, which hardly changes, so that
		// more frequent collections cost little and save memory.
		debug.SetGCPercent(40)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := command().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "agent:", err)
		return 1
	}
	return 0
}

func command() *cobra.Command {
	f := &flags{}
	cmd := &cobra.Command{
		Use:           "agent",
		Short:         "Program this node's kernel with Services and announce LoadBalancer addresses",
		Args:          cobra.NoArgs,
		Version:       version.String(),
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE:          func(cmd *cobra.Command, _ []string) error { return serve(cmd.Context(), f) },
	}
	f.register(cmd)
	cmd.AddCommand(cleanupCommand(f))
	return cmd
}

func serve(ctx context.Context, f *flags) error {
	log := f.logger()
	klog.SetLogger(log)
	ctrllog.SetLogger(log)
	ctx = logr.NewContext(ctx, log)
	cfg, err := f.config()
	if err != nil {
		return err
	}
	if cfg.REST, err = restConfig(f.kubeconfig); err != nil {
		return err
	}
	reporter := agent.NewModeReporter(log)
	b, err := modes.New(modes.Config{
		Mode: f.chosenMode, Kinds: modes.Kinds(f.modes), FellBack: reporter.FellBack, Chosen: reporter.Chosen,
	})
	if err != nil {
		return err
	}
	defer b.Close()
	cfg.Backend = b
	cfg.Parts = append(cfg.Parts, reporter.Part())
	if !cfg.AnnounceOnly {
		cfg.Parts = append(cfg.Parts, agent.KubeProxyLeftovers(kubeproxy.Present, 10*time.Minute))
	}
	a, err := agent.New(cfg)
	if err != nil {
		return err
	}
	log.Info("Starting agent", "version", version.String(), "node", cfg.Node.Name, "backend", b.Name())
	if err := a.Run(ctx); err != nil {
		return err
	}
	log.Info("Agent stopped; the kernel continues to forward")
	return nil
}

// restConfig returns the config of the kubeconfig, or of the Pod's ServiceAccount.
func restConfig(kubeconfig string) (*rest.Config, error) {
	load := rest.InClusterConfig
	if kubeconfig != "" {
		load = func() (*rest.Config, error) { return clientcmd.BuildConfigFromFlags("", kubeconfig) }
	}
	cfg, err := load()
	if err != nil {
		return nil, fmt.Errorf("reach the API server (give --kubeconfig outside a Pod): %w", err)
	}
	cfg.UserAgent = "causeway-agent/" + version.String()
	cfg.QPS, cfg.Burst = 50, 100
	return cfg, nil
}
