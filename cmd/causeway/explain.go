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
	"github.com/causeway-lb/causeway/internal/cli"
	"github.com/causeway-lb/causeway/internal/explain"
)

// Exit codes of explain, for scripts: 1 if something is wrong, 2 without an answer.
const (
	exitWrong  = cli.ExitError(1)
	exitFailed = cli.ExitError(2)
)

func newExplainCommand() *cobra.Command {
	cluster := newClusterFlags()
	command := &cobra.Command{
		Use:   "explain [NAMESPACE/]SERVICE",
		Short: "Explain why a Service does not work, and what to do",
		Long: `Follow a Service through the API (its addresses, the Pods behind it, its load
balancer address and its announcer, the agents) and explain in plain sentences
what is wrong and what to do. It reads with your permissions and changes nothing.

Exit status: 0 nothing wrong found, 1 something is wrong, 2 the check failed.`,
		Example: `  causeway explain shop/web
  kubectl causeway explain web -n shop`,
		Args: cobra.ExactArgs(1),
		RunE: func(command *cobra.Command, args []string) error {
			err := runExplain(command, cluster.config(), args[0], cluster.system)
			if err == nil || errors.Is(err, exitWrong) {
				return err
			}
			fmt.Fprintln(os.Stderr, "causeway:", err)
			return exitFailed
		},
	}
	cluster.register(command)
	command.Flags().StringVarP(&cluster.overrides.Context.Namespace, "namespace", "n", "", "namespace of a SERVICE that is given without one")
	return command
}

// clusterFlags select a cluster, and the namespace of Causeway in it.
type clusterFlags struct {
	rules     *clientcmd.ClientConfigLoadingRules
	overrides clientcmd.ConfigOverrides
	system    string
}

func newClusterFlags() *clusterFlags {
	return &clusterFlags{rules: clientcmd.NewDefaultClientConfigLoadingRules()}
}

func (f *clusterFlags) register(command *cobra.Command) {
	flags := command.Flags()
	flags.StringVar(&f.rules.ExplicitPath, "kubeconfig", "", "kubeconfig file (default: $KUBECONFIG, else ~/.kube/config)")
	flags.StringVar(&f.overrides.CurrentContext, "context", "", "context of the kubeconfig to use")
	flags.StringVar(&f.system, "system-namespace", v1alpha1.SystemNamespace, "namespace in which Causeway runs")
}

func (f *clusterFlags) config() clientcmd.ClientConfig {
	return clientcmd.NewNonInteractiveDeferredLoadingClientConfig(f.rules, &f.overrides)
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

// errNoCluster replaces client-go's error, whose advice does not help here.
var errNoCluster = errors.New("no kubeconfig describes the API server: set KUBECONFIG, or --kubeconfig")

// clusterConfig returns the config of a client.
func clusterConfig(config clientcmd.ClientConfig) (*rest.Config, error) {
	c, err := config.ClientConfig()
	if clientcmd.IsEmptyConfig(err) {
		return nil, errNoCluster
	}
	return c, err
}
