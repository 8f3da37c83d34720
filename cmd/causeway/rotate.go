// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-lb/causeway/api/v1alpha1"
)

// rotateCheck is how often the Secret is read with --wait.
const rotateCheck = 5 * time.Second

func newRotateGossipKeyCommand() *cobra.Command {
	cluster := newClusterFlags()
	follow := false
	command := &cobra.Command{
		Use:   "rotate-gossip-key",
		Short: "Have the agents use another gossip key",
		Long: `Ask the controller for another key of the agents' gossip, for example after a
node was compromised or was removed from the cluster. No address moves meanwhile:
every agent has the new key before one uses it. The new key is in use about five
minutes later, and the old one is no longer accepted another five minutes after
that.

The others do not hear an agent that cannot reach the API server for that long,
until it can. You need permission to get and patch the Secret
` + v1alpha1.GossipSecret + `.`,
		Example: `  causeway rotate-gossip-key --wait`,
		Args:    cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error {
			access, err := clusterConfig(cluster.config())
			if err != nil {
				return err
			}
			c, err := client.New(access, client.Options{})
			if err != nil {
				return fmt.Errorf("make client: %w", err)
			}
			return rotateGossipKey(command.Context(), c, cluster.system, follow, command.OutOrStdout())
		},
	}
	cluster.register(command)
	command.Flags().BoolVar(&follow, "wait", false, "wait until the old key is no longer accepted")
	return command
}

// rotateGossipKey asks for another key and, with follow, waits until the old one is
// retired.
func rotateGossipKey(ctx context.Context, c client.Client, namespace string, follow bool, out io.Writer) error {
	secret := &corev1.Secret{}
	name := client.ObjectKey{Namespace: namespace, Name: v1alpha1.GossipSecret}
	if err := c.Get(ctx, name, secret); err != nil {
		return fmt.Errorf("get the gossip key: %w", err)
	}
	old := string(secret.Data[v1alpha1.GossipKey])
	before := secret.DeepCopy()
	if secret.Annotations == nil {
		secret.Annotations = map[string]string{}
	}
	secret.Annotations[v1alpha1.RotateGossipKeyAnnotation] = time.Now().UTC().Format(time.RFC3339)
	if err := c.Patch(ctx, secret, client.MergeFrom(before)); err != nil {
		return fmt.Errorf("ask for another gossip key: %w", err)
	}
	fmt.Fprintln(out, "Asked the controller for another key.")
	if !follow {
		return nil
	}
	printed := ""
	return wait.PollUntilContextCancel(ctx, rotateCheck, true, func(ctx context.Context) (bool, error) {
		if err := c.Get(ctx, name, secret); err != nil {
			return false, nil // the API server cannot be reached at the moment
		}
		state := rotation(secret, old)
		if state != printed {
			fmt.Fprintln(out, state)
			printed = state
		}
		return state == rotationDone, nil
	})
}

const rotationDone = "The old key is no longer accepted."

// rotation returns the progress of a change from the key old.
func rotation(secret *corev1.Secret, old string) string {
	_, asked := secret.Annotations[v1alpha1.RotateGossipKeyAnnotation]
	current, other := string(secret.Data[v1alpha1.GossipKey]), string(secret.Data[v1alpha1.GossipPreviousKey])
	switch {
	case asked && current == old:
		return "Waiting for the controller; it finishes a change in progress first."
	case current == old:
		return "The agents get the new key, which is used from " + secret.Annotations[v1alpha1.GossipKeyNextAnnotation] + "."
	case other == old:
		return "The new key is in use. The old one is accepted until " + secret.Annotations[v1alpha1.GossipKeyRetireAnnotation] + "."
	}
	return rotationDone
}
