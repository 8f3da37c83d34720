// SPDX-License-Identifier: Apache-2.0

// Package healthcheck answers load balancers and kubelets over HTTP.
//
//	/healthz            this node forwards what it should and may get traffic
//	/livez              the process works; says nothing of the node
//	/readyz             the kernel matches Desired since the start
//	:healthCheckNodePort  the node has ready endpoints of one Service
//
// Formats and status codes are those of kube-proxy, with what the kernel's
// state is in addition.
package healthcheck
