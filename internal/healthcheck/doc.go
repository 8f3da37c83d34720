// SPDX-License-Identifier: Apache-2.0

// Package healthcheck answers load balancers and kubelets over HTTP.
//
//	/healthz            this node forwards what it should and may get traffic
//	/livez              the process gets on with its work, even if the kernel refuses it
//	/readyz             the kernel matches Desired since the start
//	:healthCheckNodePort  the node has ready endpoints of one Service
//
// Formats and status codes are those of kube-proxy, with what the kernel's
// state is in addition. /readyz is not kube-proxy's.
package healthcheck
