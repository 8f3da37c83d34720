// SPDX-License-Identifier: Apache-2.0

// Package privilege compares what RBAC of config/ grants with what was asked for.
//
// Grants reads the manifests and returns every single right of a
// ServiceAccount: one verb on one resource, perhaps of one name. Requests reads
// the API server's audit log and returns what a ServiceAccount did. RBAC only
// ever allows, so a right that some request of the log relies on alone cannot be
// taken away without that request being refused; Unneeded returns the others.
//
// Two things are not requests and are looked at by tests of their own:
// "update" of a finalizers subresource, which the admission plugin
// OwnerReferencesPermissionEnforcement asks for, and what the
// ValidatingAdmissionPolicies refuse.
package privilege
