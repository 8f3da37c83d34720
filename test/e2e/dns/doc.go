// SPDX-License-Identifier: Apache-2.0

// Package dns tests what users build on EndpointSlices, with real packets in a
// lab of its own: cluster DNS (CoreDNS, reading our slices) point by point
// against the Kubernetes DNS specification, version 1.1.0, asked from a Pod; the
// classic examples, from plain manifests: HTTP servers, and a page that nginx
// has rendered by PHP; a Deployment that is scaled and one that rolls while
// clients keep asking; and slices that change hands between Causeway and a real
// kube-controller-manager.
//
// CoreDNS is built from test/images/coredns. nginx and php-fpm are Debian's;
// they are installed with apt when this runs as root, and run in Pods only.
package dns
