// SPDX-License-Identifier: Apache-2.0

// Package e2e tests Causeway as it is installed, with real packets: a lab with
// a real API server, the controller and the agents from config/overlays/lab,
// and a client on the LAN.
//
// Assertions are about what a user of the network could see: who answers a
// request, from which address the server sees it, which node answers ARP, which
// MAC the client has learned, and what fails while something is being killed.
//
// One lab serves the suite. Tests run one after the other, each with Services
// of its own over the Pods of config/samples/go-http, and leave the cluster
// whole.
package e2e
