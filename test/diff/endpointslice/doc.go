// SPDX-License-Identifier: Apache-2.0

// Package endpointslice drives Causeway's slices and those of
// k8s.io/endpointslice, the library behind kube-controller-manager, through the
// same random histories of a Service and its Pods, and compares what comes out.
//
//	history: Pods come, get addresses, become ready, end; the Service changes
//	                      |
//	      +---------------+---------------+
//	 endpointslice.Compute         upstream Reconciler
//	      |                               |
//	 slices in memory              slices in memory
//	      +------- same endpoints? -------+
//	               no more writes?
//
// The two lay endpoints out differently, so what is compared is the union over
// the slices: for each endpoint its addresses, ports, conditions, Node, zone,
// host name, reference and hints. It is a module of its own because the product
// must not depend on the library.
//
// The number of histories is the flag -histories: `make test` drives 600, `make
// soak` 50,000.
package endpointslice
