// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"context"
	"errors"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	toolscache "k8s.io/client-go/tools/cache"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// CacheOptions returns what the manager's cache must be made with (the Cache
// field of manager.Options). It keeps of each Pod and Node only what a
// controller reads, about a tenth, and of no object its managed fields.
//
// Objects in the cache are therefore not whole: a controller that writes a Pod
// or a Node must use a patch, never an update.
func CacheOptions() cache.Options {
	return cache.Options{
		DefaultTransform: cache.TransformStripManagedFields(),
		NewInformer:      newInformer,
		ByObject: map[client.Object]cache.ByObject{
			&corev1.Pod{}:  {Transform: stripPod},
			&corev1.Node{}: {Transform: stripNode},
		},
	}
}

// reconnect is the pause before an API server that cannot be reached is asked again.
var reconnect = wait.Backoff{Duration: 200 * time.Millisecond, Factor: 2, Jitter: 1, Cap: 2 * time.Second, Steps: 10}

// newInformer returns an informer that finds an API server within seconds of its return.
// By itself an informer pauses for up to a minute after an outage, and for as long again if
// its watch has expired meanwhile, while nothing happens to new Services. Controllers are few.
func newInformer(lw toolscache.ListerWatcher, object runtime.Object, resync time.Duration, indexers toolscache.Indexers) toolscache.SharedIndexInformer {
	api := toolscache.ToListerWatcherWithContext(lw)
	return toolscache.NewSharedIndexInformer(&toolscache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			return reach(ctx, func() (runtime.Object, error) { return api.ListWithContext(ctx, o) })
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			return reach(ctx, func() (watch.Interface, error) { return api.WatchWithContext(ctx, o) })
		},
	}, object, resync, indexers)
}

// reach asks until the API server answers, if only by an error, or ctx ends.
func reach[T any](ctx context.Context, ask func() (T, error)) (T, error) {
	backoff := reconnect
	for failures := 0; ; failures++ {
		answer, err := ask()
		var status apierrors.APIStatus
		if err == nil || errors.As(err, &status) {
			return answer, err
		}
		if failures == 0 {
			ctrl.Log.WithName("cache").Info("The API server cannot be reached, will try again", "reason", err.Error())
		}
		select {
		case <-time.After(backoff.Step()):
		case <-ctx.Done():
			return answer, err
		}
	}
}

// stripPod keeps of a Pod its identity, labels, Node, addresses, named ports,
// host name, phase, and readiness.
func stripPod(object any) (any, error) {
	pod, ok := object.(*corev1.Pod)
	if !ok {
		return object, nil
	}
	stripped := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Name: pod.Name, Namespace: pod.Namespace, UID: pod.UID, ResourceVersion: pod.ResourceVersion,
			Labels: pod.Labels, CreationTimestamp: pod.CreationTimestamp, DeletionTimestamp: pod.DeletionTimestamp,
		},
		Spec: corev1.PodSpec{
			NodeName: pod.Spec.NodeName, Hostname: pod.Spec.Hostname, Subdomain: pod.Spec.Subdomain,
			HostNetwork: pod.Spec.HostNetwork,
			Containers:  namedPorts(pod.Spec.Containers), InitContainers: namedPorts(pod.Spec.InitContainers),
		},
		Status: corev1.PodStatus{Phase: pod.Status.Phase, PodIP: pod.Status.PodIP, PodIPs: pod.Status.PodIPs},
	}
	for _, condition := range pod.Status.Conditions {
		if condition.Type == corev1.PodReady {
			stripped.Status.Conditions = []corev1.PodCondition{{
				Type: condition.Type, Status: condition.Status, LastTransitionTime: condition.LastTransitionTime,
			}}
		}
	}
	return stripped, nil
}

// namedPorts keeps the containers that have named ports, with these only.
func namedPorts(containers []corev1.Container) []corev1.Container {
	var kept []corev1.Container
	for i := range containers {
		var ports []corev1.ContainerPort
		for _, port := range containers[i].Ports {
			if port.Name != "" {
				ports = append(ports, corev1.ContainerPort{
					Name: port.Name, ContainerPort: port.ContainerPort, Protocol: port.Protocol,
				})
			}
		}
		if len(ports) > 0 {
			kept = append(kept, corev1.Container{
				Name: containers[i].Name, Ports: ports, RestartPolicy: containers[i].RestartPolicy,
			})
		}
	}
	return kept
}

// stripNode drops of a Node what is large and read by no controller: its images
// and volumes.
func stripNode(object any) (any, error) {
	node, ok := object.(*corev1.Node)
	if !ok {
		return object, nil
	}
	node.ManagedFields = nil
	node.Status.Images = nil
	node.Status.VolumesInUse = nil
	node.Status.VolumesAttached = nil
	return node, nil
}
