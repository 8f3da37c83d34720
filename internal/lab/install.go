// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"fmt"
	"path/filepath"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// SystemNamespace is where config/default puts Causeway.
const SystemNamespace = "causeway-system"

// Apply applies a kustomization of the source tree, as a user would.
func (l *Lab) Apply(ctx context.Context, dir string) error {
	_, err := l.Kubectl(ctx, nil, "apply", "-k", filepath.Join(l.Setup.Source, dir))
	return err
}

// Install installs Causeway from config/overlays/lab and waits until the
// controller and an agent on every node are ready.
func (l *Lab) Install(ctx context.Context) error {
	if err := l.Apply(ctx, "config/overlays/lab"); err != nil {
		return fmt.Errorf("install Causeway: %w", err)
	}
	return l.WaitInstalled(ctx)
}

// WaitInstalled waits until the controller and an agent on every node are
// ready, and run: what the API server says of a container that ended while the
// API server was down, it says until the kubelet has reached it again.
func (l *Lab) WaitInstalled(ctx context.Context) error {
	if err := l.WaitDaemonSet(ctx, SystemNamespace, "causeway-agent", len(l.nodes)); err != nil {
		return err
	}
	if err := l.WaitDeployment(ctx, SystemNamespace, "causeway-controller"); err != nil {
		return err
	}
	return l.Wait(ctx, "the containers of "+SystemNamespace, func(ctx context.Context) (bool, string, error) {
		pods, err := l.Kubernetes.CoreV1().Pods(SystemNamespace).List(ctx, metav1.ListOptions{})
		if err != nil {
			return false, "", err
		}
		for i := range pods.Items {
			for _, c := range pods.Items[i].Spec.Containers {
				if _, err := l.ContainerStatus(&pods.Items[i], c.Name); err != nil {
					return false, "", err
				}
			}
		}
		return true, "", nil
	})
}

// WaitDeployment waits until every replica of a Deployment is ready, and none of
// a former template is left.
func (l *Lab) WaitDeployment(ctx context.Context, namespace, name string) error {
	return l.Wait(ctx, "Deployment "+namespace+"/"+name, func(ctx context.Context) (bool, string, error) {
		d, err := l.Kubernetes.AppsV1().Deployments(namespace).Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return false, "", err
		}
		return deploymentReady(d), fmt.Sprintf("%d of %d ready", d.Status.ReadyReplicas, *d.Spec.Replicas), nil
	})
}

// deploymentReady tells whether all replicas are of the present template, and
// ready; while one of the former is left, it may be among those that are ready.
func deploymentReady(d *appsv1.Deployment) bool {
	want, s := *d.Spec.Replicas, &d.Status
	return s.ObservedGeneration >= d.Generation && s.Replicas == want && s.UpdatedReplicas == want && s.ReadyReplicas == want
}

// WaitDaemonSet waits until a DaemonSet is ready on this many nodes.
func (l *Lab) WaitDaemonSet(ctx context.Context, namespace, name string, nodes int) error {
	return l.Wait(ctx, "DaemonSet "+namespace+"/"+name, func(ctx context.Context) (bool, string, error) {
		d, err := l.Kubernetes.AppsV1().DaemonSets(namespace).Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return false, "", err
		}
		return int(d.Status.NumberReady) >= nodes, fmt.Sprintf("%d of %d ready", d.Status.NumberReady, nodes), nil
	})
}

// Wait polls until ready says so. The error of a wait in vain says how far it
// came and what the Pods say that aren't ready.
func (l *Lab) Wait(ctx context.Context, what string, ready func(context.Context) (ok bool, state string, err error)) error {
	state := "nothing known"
	for {
		ok, now, err := ready(ctx)
		switch {
		case err == nil && ok:
			return nil
		case err != nil && ctx.Err() == nil:
			state = err.Error()
		case err == nil:
			state = now
		}
		select {
		case err := <-l.failed:
			return err
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w: %s%s", what, ctx.Err(), state, l.unready())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// unready describes the Pods that aren't ready, for error messages.
func (l *Lab) unready() string {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	pods, err := l.Kubernetes.CoreV1().Pods(corev1.NamespaceAll).List(ctx, metav1.ListOptions{})
	if err != nil {
		return ""
	}
	text := ""
	for i := range pods.Items {
		pod := &pods.Items[i]
		if ready(pod) || pod.Status.Phase == corev1.PodSucceeded {
			continue
		}
		text += fmt.Sprintf("\n  Pod %s/%s on %s: %s", pod.Namespace, pod.Name, or(pod.Spec.NodeName, "no node"), pod.Status.Phase)
		for _, c := range pod.Status.Conditions {
			if c.Type == corev1.PodScheduled && c.Status == corev1.ConditionFalse {
				text += ": " + c.Message
			}
		}
		for _, c := range pod.Status.ContainerStatuses {
			if c.State.Waiting != nil {
				text += fmt.Sprintf(": %s %s", c.State.Waiting.Reason, c.State.Waiting.Message)
			}
			text += fmt.Sprintf(" (%d restarts)", c.RestartCount)
			text += indent(l.PodLog(pod, c.Name, 4))
		}
	}
	return text
}

func ready(pod *corev1.Pod) bool {
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}
