// SPDX-License-Identifier: Apache-2.0

// Package endpoints keeps the EndpointSlices of Services with a selector
// (SliceReconciler), their legacy Endpoints objects (LegacyReconciler), and the
// slices that mirror the Endpoints objects which users write (MirrorReconciler).
//
//	informers ──source──> endpointslice.Index ──View──> Compute ──Plan──> sliceWriter
//
// What the slices should be internal/endpointslice decides; who keeps them,
// Causeway or kube-controller-manager, ownership.
package endpoints
