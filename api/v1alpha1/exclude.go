// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import "strconv"

// excludeLabel is core/v1's LabelNodeExcludeBalancers.
const excludeLabel = "node.kubernetes.io/exclude-from-external-load-balancers"

// ExcludedByLabel tells whether a node's labels keep it out of external load
// balancers. As Kubernetes 1.37 has it, the value is a bool as strconv.ParseBool
// reads it ("false", "0", "F" include the node), and any other value excludes, as
// the empty one that kubeadm sets.
func ExcludedByLabel(labels map[string]string) bool {
	value, ok := labels[excludeLabel]
	if !ok {
		return false
	}
	excluded, err := strconv.ParseBool(value)
	return err != nil || excluded
}
