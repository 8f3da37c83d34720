// SPDX-License-Identifier: Apache-2.0

// Command causeway is the operator's shell; installed as kubectl-causeway it
// works as `kubectl causeway`.
package main

import (
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/causeway-lb/causeway/internal/cli"
	"github.com/causeway-lb/causeway/internal/version"
)

func main() {
	os.Exit(cli.Run(newCommand()))
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
