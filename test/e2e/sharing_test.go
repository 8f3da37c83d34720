// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-lb/causeway/api/v1alpha1"
	"github.com/causeway-lb/causeway/internal/lab"
	"github.com/causeway-lb/causeway/internal/testkit"
)

// Two Services of policy Local share an address though their Pods are on
// different nodes: one of these announces it, and forwards what is for the
// other.
func TestSharedAddressWithPolicyLocal(t *testing.T) {
	ctx := need(t)
	shared := func(app string, port int32) change {
		return func(s *corev1.Service) {
			local(s)
			s.Spec.AllocateLoadBalancerNodePorts = ptr.To(false)
			s.Annotations = map[string]string{v1alpha1.SharingKeyAnnotation: "shared"}
			s.Spec.Selector = map[string]string{"app": app}
			s.Spec.Ports[0].Port = port
		}
	}
	pods := map[string]*corev1.Pod{
		"shared-a": pinned(t, ctx, "shared-a", "node-1"),
		"shared-b": pinned(t, ctx, "shared-b", "node-3"),
	}
	first := ready(t, ctx, create(t, ctx, "shared-a", shared("shared-a", 8001)))
	second := ready(t, ctx, create(t, ctx, "shared-b", shared("shared-b", 8002)))
	if !slices.Equal(first, second) {
		t.Fatalf("given %v and %v, want the same", first, second)
	}
	for _, name := range []string{"shared-a", "shared-b"} {
		s := &corev1.Service{}
		if err := api.Get(ctx, client.ObjectKey{Namespace: "default", Name: name}, s); err != nil || s.Spec.Ports[0].NodePort != 0 {
			t.Errorf("%s has NodePort %d, wanted none; %v", name, s.Spec.Ports[0].NodePort, err)
		}
	}
	node := announcer(t, ctx, first[0])
	nodeIP := node.Addresses()[0].String()
	for name, port := range map[string]int32{"shared-a": 8001, "shared-b": 8002} {
		results := answering(t, ctx, lab.Client, frontend(first[0], port), []string{name})
		want := "192.0.2.100" // the client's
		if pods[name].Spec.NodeName != node.Name() {
			want = nodeIP
		}
		if sources := results.Sources(); len(sources) != 1 || sources[want] == 0 {
			t.Errorf("%s, announced by %s: the Pod on %s sees %v, want %s", name, node.Name(), pods[name].Spec.NodeName, sources, want)
		}
	}
	if name := node.Name(); name != "node-1" && name != "node-3" {
		t.Errorf("announced by %s, which has no endpoint of either", name)
	}
}

// pinned makes a server with an app label of its name on a node, and waits until
// it is ready.
func pinned(t *testing.T, ctx context.Context, name, node string) *corev1.Pod {
	t.Helper()
	container := servers[all()[0]].Spec.Containers[0]
	container.VolumeMounts = nil // the API server makes them
	container.Lifecycle = nil    // it ends at once
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default", Labels: map[string]string{"app": name}},
		Spec:       corev1.PodSpec{NodeName: node, TerminationGracePeriodSeconds: ptr.To[int64](1), Containers: []corev1.Container{container}},
	}
	if err := api.Create(ctx, pod); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := client.IgnoreNotFound(api.Delete(context.Background(), pod)); err != nil {
			t.Error(err)
		}
	})
	testkit.Eventually(t, 20*time.Second, name+" ready", func() error {
		if err := api.Get(ctx, client.ObjectKeyFromObject(pod), pod); err != nil {
			return err
		}
		if !slices.ContainsFunc(pod.Status.Conditions, func(c corev1.PodCondition) bool {
			return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
		}) {
			return errors.New(string(pod.Status.Phase))
		}
		return nil
	})
	return pod
}
