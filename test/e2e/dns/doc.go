// SPDX-License-Identifier: Apache-2.0

// Package dns tests what users build on EndpointSlices, with real packets in a lab
// of its own:
//
//   - cluster DNS (CoreDNS, reading Causeway's slices), section by section against the
//     Kubernetes DNS specification, version 1.1.0, queried from a Pod;
//   - the classic examples, from plain manifests: HTTP servers, and a page that PHP
//     renders behind nginx;
//   - a Deployment that is scaled and one that rolls while clients send requests;
//   - slices that change hands between Causeway and a real kube-controller-manager.
//
// CoreDNS is built from test/images/coredns. nginx and php-fpm are Debian's;
// they are installed with apt if this runs as root, and run only in Pods.
package dns
