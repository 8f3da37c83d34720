// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/causeway-lb/causeway/internal/conntrack"
	"github.com/causeway-lb/causeway/internal/proxy/kubeproxy"
	"github.com/causeway-lb/causeway/internal/proxy/modes"
)

func cleanupCommand(f *flags) *cobra.Command {
	var kubeProxy, dryRun bool
	var drain time.Duration
	cmd := &cobra.Command{
		Use:   "cleanup",
		Short: "Remove from the kernel everything that an agent created, or what kube-proxy left",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if kubeProxy {
				return cleanupKubeProxy(cmd.Context(), cmd.OutOrStdout(), modes.Kinds(f.modes), dryRun, drain)
			}
			return cleanup(cmd.Context(), f)
		},
	}
	fs := cmd.Flags()
	fs.BoolVar(&kubeProxy, "kube-proxy", false, "remove what kube-proxy left instead, and nothing of Causeway's: refused while kube-proxy runs, or while no rules of Causeway forward")
	fs.BoolVar(&dryRun, "dry-run", false, "with --kube-proxy: only print what would be removed")
	fs.DurationVar(&drain, "drain", 15*time.Minute, "with --kube-proxy: how long connections of its mode ipvs may take to end before they are closed")
	return cmd
}

// cleanup removes what any mode created.
func cleanup(ctx context.Context, f *flags) error {
	b, err := modes.New(modes.Config{Mode: modes.Auto, Kinds: modes.Kinds(f.modes)})
	if err != nil {
		return err
	}
	defer b.Close()
	return errors.Join(b.Cleanup(ctx), conntrack.Cleanup())
}

// cleanupKubeProxy removes what kube-proxy left, and prints it to out.
func cleanupKubeProxy(ctx context.Context, out io.Writer, kinds map[modes.Mode]modes.Kind, dryRun bool, drain time.Duration) error {
	found, err := kubeproxy.Find(ctx)
	if err != nil {
		return err
	}
	for _, line := range found.Lines() {
		fmt.Fprintln(out, line)
	}
	if found.Empty() {
		fmt.Fprintln(out, "nothing of kube-proxy's to remove")
		return nil
	}
	if dryRun {
		return nil
	}
	if how := kubeproxy.Running(ctx); how != "" {
		return fmt.Errorf("kube-proxy runs on this node (%s) and would create its rules again: stop it first; its rules stay until this command removes them", how)
	}
	programmed, err := modes.Programmed(kinds)
	if err != nil {
		return err
	}
	if !programmed {
		return errors.New("no rules of Causeway are on this node, so without kube-proxy's nothing would forward to Services: start the agent first")
	}
	last := -1
	err = found.Remove(ctx, kubeproxy.Config{Drain: drain, Waiting: func(connections int) {
		if connections != last {
			last = connections
			fmt.Fprintf(out, "waiting for %d connections to end\n", connections)
		}
	}})
	if err != nil {
		return err
	}
	fmt.Fprintln(out, "removed")
	return nil
}
