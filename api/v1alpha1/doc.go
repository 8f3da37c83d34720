// SPDX-License-Identifier: Apache-2.0

// Package v1alpha1 holds Causeway's API: the pools that an administrator
// writes and the address records that the controller and the agents keep.
//
// Everything here is cluster-scoped. Validation that needs one object alone is
// CEL in the CRD; validation that needs others (overlap) is an admission
// webhook; what only time can tell (an address in use elsewhere on the LAN) is
// a condition.
//
// +kubebuilder:object:generate=true
// +groupName=causeway.dev
package v1alpha1
