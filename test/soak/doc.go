// SPDX-License-Identifier: Apache-2.0

// Package soak holds tests that do much for long, with processes killed
// meanwhile, and then look for what should not be there.
//
// Each runs shortly in "make test" and at full length with "make soak", which
// sets SOAK_OPERATIONS. The controllers are processes of their own, made from
// this test's binary, so that they can be killed with SIGKILL.
package soak
