// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"testing"

	"github.com/spf13/cobra"
	"k8s.io/client-go/tools/clientcmd"
)

// Who has not said which cluster is told how to, whatever client-go advises.
func TestNoKubeconfig(t *testing.T) {
	t.Setenv("KUBERNETES_SERVICE_HOST", "") // not in a Pod either
	config := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(&clientcmd.ClientConfigLoadingRules{}, &clientcmd.ConfigOverrides{})
	if _, err := clusterConfig(config); !errors.Is(err, errNoCluster) {
		t.Error(err)
	}
	for _, service := range []string{"web", "shop/web"} {
		if err := runExplain(&cobra.Command{}, config, service, "system"); !errors.Is(err, errNoCluster) {
			t.Errorf("explain %s: %v", service, err)
		}
	}
}
