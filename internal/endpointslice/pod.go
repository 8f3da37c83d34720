// SPDX-License-Identifier: Apache-2.0

package endpointslice

import (
	"net/netip"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// Selects reports whether a Service's selector matches a Pod's labels. A nil or
// empty selector matches nothing: such a Service's endpoints are made by hand.
func Selects(selector, labels map[string]string) bool {
	if len(selector) == 0 {
		return false
	}
	for key, value := range selector {
		if got, ok := labels[key]; !ok || got != value {
			return false
		}
	}
	return true
}

// Published reports whether a Pod belongs into its Services' slices: it has an address
// and its containers have not all ended for good. Terminating Pods are published, with
// conditions that show it (KEP-1672).
func Published(pod *corev1.Pod) bool {
	switch pod.Status.Phase {
	case corev1.PodSucceeded, corev1.PodFailed:
		return false
	}
	return pod.Status.PodIP != "" || len(pod.Status.PodIPs) > 0
}

// Ready reports whether the Pod's Ready condition is true.
func Ready(pod *corev1.Pod) bool {
	condition := readyCondition(pod)
	return condition != nil && condition.Status == corev1.ConditionTrue
}

// readyCondition returns the Pod's Ready condition, nil if it has none.
func readyCondition(pod *corev1.Pod) *corev1.PodCondition {
	for i := range pod.Status.Conditions {
		if pod.Status.Conditions[i].Type == corev1.PodReady {
			return &pod.Status.Conditions[i]
		}
	}
	return nil
}

// readySince returns when the Pod's Ready condition last changed, zero if never.
func readySince(pod *corev1.Pod) time.Time {
	if condition := readyCondition(pod); condition != nil {
		return condition.LastTransitionTime.Time
	}
	return time.Time{}
}

// hostname returns the name under which a headless Service publishes the Pod in
// DNS: its spec.hostname if its subdomain names the Service, else "".
func hostname(pod *corev1.Pod, service *corev1.Service) string {
	if pod.Spec.Subdomain != service.Name || pod.Namespace != service.Namespace {
		return ""
	}
	return pod.Spec.Hostname
}

// findPort returns the port number at which the Pod serves the ServicePort. A
// named target port is looked up, with its protocol, in the containers and then
// in the sidecars (init containers that restart always, KEP-753). False: the
// Pod has no such port.
func findPort(pod *corev1.Pod, port *corev1.ServicePort) (int32, bool) {
	if port.TargetPort.Type == intstr.Int {
		return port.TargetPort.IntVal, true
	}
	name := port.TargetPort.StrVal
	for i := range pod.Spec.Containers {
		if number, ok := namedPort(&pod.Spec.Containers[i], name, port.Protocol); ok {
			return number, true
		}
	}
	for i := range pod.Spec.InitContainers {
		container := &pod.Spec.InitContainers[i]
		if !isSidecar(container) {
			continue
		}
		if number, ok := namedPort(container, name, port.Protocol); ok {
			return number, true
		}
	}
	return 0, false
}

func isSidecar(container *corev1.Container) bool {
	return container.RestartPolicy != nil && *container.RestartPolicy == corev1.ContainerRestartPolicyAlways
}

func namedPort(container *corev1.Container, name string, protocol corev1.Protocol) (int32, bool) {
	for i := range container.Ports {
		if port := &container.Ports[i]; port.Name == name && port.Protocol == protocol {
			return port.ContainerPort, true
		}
	}
	return 0, false
}

// canonical returns the text of addr, and text itself (no allocation) if that
// is it already.
func canonical(text string, addr netip.Addr) string {
	var buffer [64]byte
	if written := addr.AppendTo(buffer[:0]); string(written) != text {
		return string(written)
	}
	return text
}
