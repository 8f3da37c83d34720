// SPDX-License-Identifier: Apache-2.0

// Package endpointslice drives Causeway's slices and those of
// k8s.io/endpointslice, the library behind kube-controller-manager, through the
// same random histories of a Service and its Pods, and compares the results.
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
// host name, reference and hints. It is a separate module because the product must
// not depend on the library.
//
// The flag -histories is the number of histories: 600 in `make test`, 50,000 in
// `make soak`.
package endpointslice
