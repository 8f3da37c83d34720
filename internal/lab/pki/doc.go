// SPDX-License-Identifier: Apache-2.0

// Package pki makes the lab's certificates: one authority, and short-lived
// certificates for servers and clients, as kubeadm would write them.
//
// Identities are Kubernetes's: the common name is the user, organizations are
// the groups. Keys are ECDSA P-256; nothing is written to disk here.
package pki
