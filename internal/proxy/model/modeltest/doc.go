// SPDX-License-Identifier: Apache-2.0

// Package modeltest makes random clusters for tests: Services of every shape,
// broken and conflicting ones among them, and random changes to them. The
// same seed gives the same world.
package modeltest
