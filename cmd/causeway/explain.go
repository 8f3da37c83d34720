// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/go-logr/logr"
	"github.com/spf13/cobra"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/causeway-lb/causeway/api/v1alpha1"
	"github.com/causeway-lb/causeway/internal/explain"
)

// Exit codes of explain, for scripts: 1 is an answer, 2 is none.
const (
	exitWrong  = exitError(1)
	exitFailed = exitError(2)
)

func newExplainCommand() *cobra.Command {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	overrides := &clientcmd.ConfigOverrides{}
	system := v1alpha1.SystemNamespace
	command := &cobra.Command{
		Use:   "explain [NAMESPACE/]SERVICE",
		Short: "Say why a Service does not work, and what to do",
		Long: `Follow a Service through the API (its addresses, the Pods behind it, its load
balancer address and who announces it, the agents) and say in plain sentences
what is wrong and what to do. It reads with your rights and changes nothing.

Exit status: 0 nothing wrong found, 1 something is wrong, 2 it could not look.`,
		Example: `  causeway explain shop/web
  kubectl causeway explain web -n shop`,
		Args: cobra.ExactArgs(1),
		RunE: func(command *cobra.Command, args []string) error {
			err := runExplain(command, clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, overrides), args[0], system)
			if err == nil || errors.Is(err, exitWrong) {
				return err
			}
			fmt.Fprintln(os.Stderr, "causeway:", err)
			return exitFailed
		},
	}
	flags := command.Flags()
	flags.StringVar(&rules.ExplicitPath, "kubeconfig", "", "file that says how to reach the API server (default: $KUBECONFIG, else ~/.kube/config)")
	flags.StringVar(&overrides.CurrentContext, "context", "", "context of that file to use")
	flags.StringVarP(&overrides.Context.Namespace, "namespace", "n", "", "namespace of a SERVICE that is given without one")
	flags.StringVar(&system, "system-namespace", system, "namespace in which Causeway runs")
	return command
}

func runExplain(command *cobra.Command, config clientcmd.ClientConfig, service, system string) error {
	access, err := clusterConfig(config)
	if err != nil {
		return err
	}
	namespace, name, ok := strings.Cut(service, "/")
	if !ok {
		name = service
		if namespace, _, err = config.Namespace(); err != nil {
			return err
		}
	}
	scheme, err := explain.NewScheme()
	if err != nil {
		return err
	}
	ctrllog.SetLogger(logr.Discard()) // the client's, which passes the API server's warnings on
	api, err := client.New(access, client.Options{Scheme: scheme})
	if err != nil {
		return err
	}
	facts, err := explain.Read(command.Context(), api, client.ObjectKey{Namespace: namespace, Name: name}, system)
	if err != nil {
		return err
	}
	report := explain.Explain(facts)
	if _, err := report.WriteTo(command.OutOrStdout()); err != nil {
		return err
	}
	if report.Wrong() > 0 {
		return exitWrong
	}
	return nil
}

// errNoCluster is instead of client-go's error, whose advice does not help here.
var errNoCluster = errors.New("no kubeconfig says how to reach the API server: set KUBECONFIG, or --kubeconfig")

// clusterConfig is how to reach the API server.
func clusterConfig(config clientcmd.ClientConfig) (*rest.Config, error) {
	c, err := config.ClientConfig()
	if clientcmd.IsEmptyConfig(err) {
		return nil, errNoCluster
	}
	return c, err
}
