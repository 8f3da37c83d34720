// SPDX-License-Identifier: Apache-2.0

// Package suite is the [sig-network] part of Kubernetes' own end-to-end
// tests, from their module, for the lab.
package suite
