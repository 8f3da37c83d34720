// SPDX-License-Identifier: Apache-2.0

// Package certs gives the controller's admission webhooks a serving
// certificate without any other software: no cert-manager, no manual Secret.
//
// Every replica runs a Keeper. All keep the same Secret:
//
//	           ┌── create or renew (optimistic lock) ──┐
//	Keeper ────┤                                       ├── Secret {ca.crt, ca.key, tls.crt, tls.key}
//	           └── read every Interval ────────────────┘
//	   │
//	   ├─> GetCertificate: what the webhook server presents
//	   └─> caBundle of the webhook configurations: what the API server trusts
//
// Invariants: a certificate is served only after it is in the Secret, so all
// replicas present one that the same CA has signed; a new CA is trusted
// beside the old one (ca.crt holds both) for as long as the old one is valid.
//
// Non-goals: certificates for anybody else, revocation.
package certs
