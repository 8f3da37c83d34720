// SPDX-License-Identifier: Apache-2.0

// Package categorize compares which endpoints the model chooses with what
// kube-proxy's own exported function chooses (k8s.io/kubernetes/pkg/proxy,
// CategorizeEndpoints), on random Services and endpoints. It is a separate module,
// because the product must not depend on kube-proxy.
//
// There is no known difference. What kube-proxy decides elsewhere (source
// ranges, masquerading, conflicts) is not compared here; the flow matrix covers it.
package categorize
