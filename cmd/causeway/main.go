// SPDX-License-Identifier: Apache-2.0

// Command causeway is the operator's shell; installed as kubectl-causeway it
// works as `kubectl causeway`.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/causeway-lb/causeway/internal/version"
)

func main() {
	os.Exit(run())
}

// exitError is an error whose message has been printed already.
type exitError int

func (e exitError) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := newCommand().ExecuteContext(ctx)
	if exit := exitError(0); errors.As(err, &exit) {
		return int(exit)
	}
	if err != nil && ctx.Err() != nil {
		fmt.Fprintln(os.Stderr, "causeway: interrupted")
		return 130
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "causeway:", err)
		return 1
	}
	return 0
}

func newCommand() *cobra.Command {
	name := "causeway"
	if strings.HasPrefix(filepath.Base(os.Args[0]), "kubectl-") {
		name = "kubectl causeway"
	}
	root := &cobra.Command{
		Use:           "causeway",
		Annotations:   map[string]string{cobra.CommandDisplayNameAnnotation: name},
		Short:         "Kubernetes Services on bare metal",
		Version:       version.String(),
		SilenceErrors: true, SilenceUsage: true,
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: true},
	}
	root.AddCommand(newExplainCommand(), newRotateGossipKeyCommand())
	return root
}
