// SPDX-License-Identifier: Apache-2.0

// Package pki creates the lab's certificates: one CA, and short-lived certificates
// for servers and clients, as kubeadm would write them.
//
// Identities are those of Kubernetes: the common name is the user, organizations are
// the groups. Keys are ECDSA P-256; this package writes nothing to disk.
package pki
