// SPDX-License-Identifier: Apache-2.0

// Package demoserver is the HTTP server of the demonstration: each response contains
// the client's address and the server's, which is what a load balancer's user wants to
// see.
package demoserver
