// SPDX-License-Identifier: Apache-2.0

// Package e2e tests Causeway as it is installed, with real packets: a lab with
// a real API server, the controller and the agents from config/overlays/lab,
// and a client on the LAN.
//
// Assertions are about what a user of the network can see: which Pod answers a
// request, from which address the server sees it, which node answers ARP, which
// MAC address the client has learned, and what fails while processes are killed.
//
// The suite uses one lab. Tests run one after the other, each with Services of its
// own for the Pods of config/samples/go-http, and restore the cluster.
package e2e
