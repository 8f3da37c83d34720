// SPDX-License-Identifier: Apache-2.0

// Package endpoints manages the EndpointSlices of Services with a selector
// (SliceReconciler), their legacy Endpoints objects (LegacyReconciler), and the
// slices that mirror the Endpoints objects which users write (MirrorReconciler).
//
//	informers ──source──> endpointslice.Index ──View──> Compute ──Plan──> sliceWriter
//
// internal/endpointslice decides what the slices should be; ownership, whether Causeway or
// kube-controller-manager manages them.
package endpoints
