// SPDX-License-Identifier: Apache-2.0

package kubelet

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	"k8s.io/utils/ptr"
)

// status puts together what the Pod's status should say now.
func (w *worker) status() corev1.PodStatus {
	w.mu.Lock()
	defer w.mu.Unlock()
	status := corev1.PodStatus{StartTime: &w.start}
	for _, address := range w.k.config.Addresses {
		status.HostIPs = append(status.HostIPs, corev1.HostIP{IP: address.String()})
	}
	status.HostIP = status.HostIPs[0].IP
	for _, address := range w.podIPs() {
		status.PodIPs = append(status.PodIPs, corev1.PodIP{IP: address.String()})
	}
	if len(status.PodIPs) > 0 {
		status.PodIP = status.PodIPs[0].IP
	}
	for _, c := range w.initial {
		status.InitContainerStatuses = append(status.InitContainerStatuses, c.status(w.waiting))
	}
	for _, c := range w.containers {
		status.ContainerStatuses = append(status.ContainerStatuses, c.status(w.waiting))
	}
	for _, c := range w.ephemeral {
		status.EphemeralContainerStatuses = append(status.EphemeralContainerStatuses, c.status(w.waiting))
	}
	status.Phase = phase(w.pod, status)
	if w.evicted != "" {
		status.Phase, status.Reason, status.Message = corev1.PodFailed, "Evicted", w.evicted
	}
	status.Conditions = podConditions(w.pod, status, w.networked)
	return status
}

// podIPs needs w.mu.
func (w *worker) podIPs() []netip.Addr {
	switch {
	case w.network != nil:
		return w.network.addresses
	case w.pod.Spec.HostNetwork && w.networked:
		return w.k.config.Addresses
	}
	return nil
}

// phase sums the containers' states up. A Pod that has ended stays ended.
func phase(pod *corev1.Pod, status corev1.PodStatus) corev1.PodPhase {
	var running, waiting, succeeded, failed int
	for _, c := range status.ContainerStatuses {
		switch {
		case c.State.Running != nil:
			running++
		case c.State.Terminated != nil && c.State.Terminated.ExitCode == 0:
			succeeded++
		case c.State.Terminated != nil:
			failed++
		case c.LastTerminationState.Terminated != nil:
			running++ // between two runs
		default:
			waiting++
		}
	}
	for _, c := range status.InitContainerStatuses {
		if ended := c.State.Terminated; ended != nil && ended.ExitCode != 0 && !isSidecar(pod, c.Name) && pod.Spec.RestartPolicy == corev1.RestartPolicyNever {
			return corev1.PodFailed
		}
	}
	restarts := pod.Spec.RestartPolicy == corev1.RestartPolicyAlways && pod.DeletionTimestamp == nil
	switch {
	case waiting > 0:
		return corev1.PodPending
	case running > 0 || restarts:
		return corev1.PodRunning
	case failed > 0 && pod.Spec.RestartPolicy == corev1.RestartPolicyOnFailure && pod.DeletionTimestamp == nil:
		return corev1.PodRunning
	case failed > 0:
		return corev1.PodFailed
	}
	return corev1.PodSucceeded
}

// isSidecar reports whether an init container of a Pod is restartable (KEP-753).
func isSidecar(pod *corev1.Pod, name string) bool {
	return slices.ContainsFunc(pod.Spec.InitContainers, func(c corev1.Container) bool { return c.Name == name && sidecar(&c) })
}

// podConditions derives the kubelet's conditions; PodScheduled and others'
// conditions are not among them.
func podConditions(pod *corev1.Pod, status corev1.PodStatus, networked bool) []corev1.PodCondition {
	initialized := true
	ready := status.Phase == corev1.PodRunning
	for _, c := range status.InitContainerStatuses {
		if isSidecar(pod, c.Name) {
			initialized = initialized && ptr.Deref(c.Started, false)
			ready = ready && c.Ready
			continue
		}
		initialized = initialized && c.State.Terminated != nil && c.State.Terminated.ExitCode == 0
	}
	for _, c := range status.ContainerStatuses {
		ready = ready && c.Ready
	}
	gates := true
	for _, gate := range pod.Spec.ReadinessGates {
		gates = gates && conditionStatus(pod.Status.Conditions, gate.ConditionType) == corev1.ConditionTrue
	}
	unready := ""
	if !ready {
		unready = "ContainersNotReady"
	} else if !gates {
		unready = "ReadinessGatesNotReady"
	}
	ended := status.Phase == corev1.PodSucceeded || status.Phase == corev1.PodFailed
	return []corev1.PodCondition{
		condition(pod, corev1.PodReadyToStartContainers, networked && !ended, ""),
		condition(pod, corev1.PodInitialized, initialized, "ContainersNotInitialized"),
		condition(pod, corev1.ContainersReady, ready, "ContainersNotReady"),
		condition(pod, corev1.PodReady, ready && gates, unready),
	}
}

func conditionStatus(conditions []corev1.PodCondition, kind corev1.PodConditionType) corev1.ConditionStatus {
	for _, c := range conditions {
		if c.Type == kind {
			return c.Status
		}
	}
	return corev1.ConditionUnknown
}

// condition keeps the time of the last transition of an unchanged one.
func condition(pod *corev1.Pod, kind corev1.PodConditionType, holds bool, otherwise string) corev1.PodCondition {
	c := corev1.PodCondition{Type: kind, Status: corev1.ConditionTrue, LastTransitionTime: metav1.Now()}
	if !holds {
		c.Status, c.Reason = corev1.ConditionFalse, otherwise
	}
	for _, old := range pod.Status.Conditions {
		if old.Type == kind && old.Status == c.Status {
			c.LastTransitionTime = old.LastTransitionTime
		}
	}
	return c
}

// statusPatch returns a strategic merge patch from the Pod's status to the
// wanted one, nil when they are equal. It removes what is gone: the addresses
// of an earlier life of the node would otherwise stay beside the new ones.
func statusPatch(pod *corev1.Pod, want corev1.PodStatus) ([]byte, error) {
	if statusEqual(pod.Status, want) {
		return nil, nil
	}
	now := pod.Status.DeepCopy()
	now.Phase, now.StartTime = want.Phase, want.StartTime
	if want.Reason != "" {
		now.Reason, now.Message = want.Reason, want.Message
	}
	now.HostIP, now.HostIPs, now.PodIP, now.PodIPs = want.HostIP, want.HostIPs, want.PodIP, want.PodIPs
	now.InitContainerStatuses, now.ContainerStatuses, now.EphemeralContainerStatuses = want.InitContainerStatuses, want.ContainerStatuses, want.EphemeralContainerStatuses
	for _, c := range want.Conditions {
		now.Conditions = slices.DeleteFunc(now.Conditions, func(old corev1.PodCondition) bool { return old.Type == c.Type })
		now.Conditions = append(now.Conditions, c)
	}
	// With its UID in the patch, it never meets a successor of the same name.
	before, err := json.Marshal(corev1.Pod{Status: pod.Status})
	if err != nil {
		return nil, fmt.Errorf("encode status: %w", err)
	}
	after, err := json.Marshal(corev1.Pod{ObjectMeta: metav1.ObjectMeta{UID: pod.UID}, Status: *now})
	if err != nil {
		return nil, fmt.Errorf("encode status: %w", err)
	}
	patch, err := strategicpatch.CreateTwoWayMergePatch(before, after, corev1.Pod{})
	if err != nil {
		return nil, fmt.Errorf("make patch of status: %w", err)
	}
	return patch, nil
}

// statusEqual compares what a kubelet writes.
func statusEqual(got, want corev1.PodStatus) bool {
	for _, c := range want.Conditions {
		found := false
		for _, old := range got.Conditions {
			found = found || old.Type == c.Type && old.Status == c.Status && old.Reason == c.Reason
		}
		if !found {
			return false
		}
	}
	return got.Phase == want.Phase && got.HostIP == want.HostIP &&
		equality.Semantic.DeepEqual(got.PodIPs, want.PodIPs) &&
		equality.Semantic.DeepEqual(coarse(got.EphemeralContainerStatuses), coarse(want.EphemeralContainerStatuses)) &&
		equality.Semantic.DeepEqual(coarse(got.InitContainerStatuses), coarse(want.InitContainerStatuses)) &&
		equality.Semantic.DeepEqual(coarse(got.ContainerStatuses), coarse(want.ContainerStatuses))
}

// coarse cuts times to the seconds that the API keeps.
func coarse(statuses []corev1.ContainerStatus) []corev1.ContainerStatus {
	out := make([]corev1.ContainerStatus, len(statuses))
	for i := range statuses {
		statuses[i].DeepCopyInto(&out[i])
		for _, state := range []*corev1.ContainerState{&out[i].State, &out[i].LastTerminationState} {
			if state.Running != nil {
				state.Running.StartedAt = state.Running.StartedAt.Rfc3339Copy()
			}
			if state.Terminated != nil {
				state.Terminated.StartedAt = state.Terminated.StartedAt.Rfc3339Copy()
				state.Terminated.FinishedAt = state.Terminated.FinishedAt.Rfc3339Copy()
			}
		}
	}
	return out
}
