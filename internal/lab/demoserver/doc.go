// SPDX-License-Identifier: Apache-2.0

// Package demoserver is the HTTP server of the demonstration: it tells who
// asked and who answers, which is what one wants to know of a load balancer.
package demoserver
