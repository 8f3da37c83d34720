// SPDX-License-Identifier: Apache-2.0

// Command agent programs one node's kernel with Services and announces
// LoadBalancer addresses.
//
//	agent            serve until SIGTERM; forwarding stays in the kernel after
//	agent cleanup    remove from the kernel everything that an agent made
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/go-logr/logr"
	"github.com/spf13/cobra"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/causeway-lb/causeway/internal/agent"
	"github.com/causeway-lb/causeway/internal/conntrack"
	"github.com/causeway-lb/causeway/internal/proxy/modes"
	"github.com/causeway-lb/causeway/internal/version"
)

func main() { os.Exit(run()) }

func run() int {
	if os.Getenv("GOGC") == "" {
		// Most of the heap is a copy of the API's objects, which hardly changes:
		// memory is worth more than the little collecting that this adds.
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
		Short:         "Programs this node's kernel with Services and announces LoadBalancer addresses",
		Args:          cobra.NoArgs,
		Version:       version.String(),
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE:          func(cmd *cobra.Command, _ []string) error { return serve(cmd.Context(), f) },
	}
	f.register(cmd)
	cmd.AddCommand(&cobra.Command{
		Use:   "cleanup",
		Short: "Removes from the kernel everything that an agent made",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cleanup(cmd.Context(), f) },
	})
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
	a, err := agent.New(cfg)
	if err != nil {
		return err
	}
	log.Info("Starting agent", "version", version.String(), "node", cfg.NodeName, "backend", b.Name())
	if err := a.Run(ctx); err != nil {
		return err
	}
	log.Info("Agent stopped, forwarding stays as it is")
	return nil
}

// cleanup removes what any mode made.
func cleanup(ctx context.Context, f *flags) error {
	b, err := modes.New(modes.Config{Mode: modes.Auto, Kinds: modes.Kinds(f.modes)})
	if err != nil {
		return err
	}
	defer b.Close()
	return errors.Join(b.Cleanup(ctx), conntrack.Cleanup())
}

// restConfig is the kubeconfig's, or that of the Pod that this runs in.
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
