// SPDX-License-Identifier: Apache-2.0

// Package modeltest generates random clusters for tests: Services of every shape,
// including invalid and conflicting ones, and random changes to them. The same seed
// generates the same cluster.
package modeltest
