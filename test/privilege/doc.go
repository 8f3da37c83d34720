// SPDX-License-Identifier: Apache-2.0

// Package privilege compares the permissions that RBAC in config/ grants with the
// requests that were made.
//
// Grants reads the manifests and returns every permission of a ServiceAccount: one
// verb on one resource, possibly of one name. Requests reads the API server's audit
// log and returns the requests of a ServiceAccount. RBAC only ever allows, so a
// permission that is the only one to allow some request of the log is needed;
// Unneeded returns the others.
//
// Two things are not requests and have tests of their own: "update" of a finalizers
// subresource, which the admission plugin OwnerReferencesPermissionEnforcement
// requires, and what the ValidatingAdmissionPolicies deny.
package privilege
