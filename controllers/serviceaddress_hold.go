// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"time"

	networkingv1 "k8s.io/api/networking/v1"
	toolscache "k8s.io/client-go/tools/cache"

	"github.com/causeway-lb/causeway/api/v1alpha1"
	"github.com/causeway-lb/causeway/internal/alloc"
)

// Annotations of the IPAddress objects that keep a resting address from the API
// server's own allocator.
const (
	holdSince   = "causeway.dev/released-at"
	holdUntil   = "causeway.dev/rests-until"
	holdService = "causeway.dev/released-by"
)

// readHold returns what an IPAddress of ours says; false for others.
func readHold(ip *networkingv1.IPAddress) (owner alloc.Owner, since, until time.Time, ok bool) {
	if ip.Labels[networkingv1.LabelManagedBy] != v1alpha1.ManagedBy {
		return owner, since, until, false
	}
	since, err1 := time.Parse(time.RFC3339, ip.Annotations[holdSince])
	until, err2 := time.Parse(time.RFC3339, ip.Annotations[holdUntil])
	namespace, name, err3 := toolscache.SplitMetaNamespaceKey(ip.Annotations[holdService])
	return alloc.Owner{Namespace: namespace, Name: name}, since, until, err1 == nil && err2 == nil && err3 == nil
}
