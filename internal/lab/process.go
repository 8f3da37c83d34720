// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/causeway-lb/causeway/internal/lab/kubelet"
)

// KillContainer sends SIGKILL to a container's first process, and thereby ends
// the container. Its kubelet starts it again.
func (l *Lab) KillContainer(pod *corev1.Pod, container string) error {
	node := l.Node(pod.Spec.NodeName)
	if node == nil {
		return fmt.Errorf("kill %s/%s: it is on no node", pod.Namespace, pod.Name)
	}
	pid, err := node.hostPID(pod, container)
	if err != nil {
		return fmt.Errorf("kill %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	return nil
}

// ContainerStatus is what the kernel says of a container's process, by field
// (proc_pid_status(5)).
func (l *Lab) ContainerStatus(pod *corev1.Pod, container string) (map[string]string, error) {
	node := l.Node(pod.Spec.NodeName)
	if node == nil {
		return nil, fmt.Errorf("look at %s/%s: no node %q in the lab", pod.Namespace, pod.Name, pod.Spec.NodeName)
	}
	pid, err := node.hostPID(pod, container)
	if err != nil {
		return nil, fmt.Errorf("look at %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return nil, fmt.Errorf("look at %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	status := map[string]string{}
	for line := range strings.Lines(string(data)) {
		field, value, _ := strings.Cut(line, ":")
		status[field] = strings.TrimSpace(value)
	}
	return status, nil
}

// hostPID translates the process id that the node's kubelet has written to the
// supervisor's PID namespace: the child of the node's process 1 that has that
// number there (NSpid in proc_pid_status(5)).
func (n *Node) hostPID(pod *corev1.Pod, container string) (int, error) {
	runtime := filepath.Join(n.lab.Setup.State, runtimeDir, n.Name())
	data, err := os.ReadFile(kubelet.PIDPath(runtime, pod.Namespace, pod.Name, container))
	if err != nil {
		return 0, fmt.Errorf("find container %s: %w", container, err)
	}
	n.mu.Lock()
	process := n.process
	n.mu.Unlock()
	if process == nil {
		return 0, fmt.Errorf("%s is off", n.Name())
	}
	var candidates []string
	// Children belong to the thread that made them.
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", process.PID))
	if err != nil {
		return 0, err
	}
	for _, task := range tasks {
		if children, err := os.ReadFile(task); err == nil {
			candidates = append(candidates, strings.Fields(string(children))...)
		}
	}
	for _, candidate := range candidates {
		status, err := os.ReadFile("/proc/" + candidate + "/status")
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(status)) {
			fields := strings.Fields(line)
			if len(fields) > 2 && fields[0] == "NSpid:" && fields[2] == string(data) {
				return strconv.Atoi(candidate)
			}
		}
	}
	return 0, fmt.Errorf("container %s: process %s of %s has ended", container, data, n.Name())
}

// Hold keeps the containers of a Pod that end from being started again, until
// Release. What runs goes on.
func (l *Lab) Hold(ctx context.Context, pod *corev1.Pod) error {
	return l.annotate(ctx, pod, `"true"`)
}

// Release ends Hold.
func (l *Lab) Release(ctx context.Context, pod *corev1.Pod) error {
	return l.annotate(ctx, pod, "null")
}

func (l *Lab) annotate(ctx context.Context, pod *corev1.Pod, value string) error {
	patch := fmt.Appendf(nil, `{"metadata":{"annotations":{%q:%s}}}`, kubelet.HoldAnnotation, value)
	_, err := l.Kubernetes.CoreV1().Pods(pod.Namespace).Patch(ctx, pod.Name, types.MergePatchType, patch, metav1.PatchOptions{})
	if err != nil {
		return fmt.Errorf("annotate Pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	return nil
}
