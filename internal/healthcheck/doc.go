// SPDX-License-Identifier: Apache-2.0

// Package healthcheck answers load balancers and kubelets over HTTP.
//
//	/healthz              this node forwards what it should and may get traffic
//	/livez                the process makes progress, even if the kernel rejects changes
//	/readyz               the kernel has matched Desired since the start
//	:healthCheckNodePort  the node has ready endpoints of one Service
//
// Formats and status codes are those of kube-proxy, plus the kernel's state.
// kube-proxy has no /readyz.
package healthcheck
