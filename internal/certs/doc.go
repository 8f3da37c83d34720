// SPDX-License-Identifier: Apache-2.0

// Package certs provides the controller's admission webhooks with a serving
// certificate without other software: no cert-manager, no manual Secret.
//
// Every replica runs a Keeper. All of them maintain the same Secret:
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
// alongside the old one (ca.crt holds both) for as long as the old one is valid.
//
// Non-goals: certificates for other servers, revocation.
package certs
