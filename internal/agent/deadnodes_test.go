// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/go-logr/logr/testr"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/utils/ptr"

	"github.com/causeway-lb/causeway/internal/announce/members"
	"github.com/causeway-lb/causeway/internal/proxy/model"
	"github.com/causeway-lb/causeway/internal/testkit"
	"github.com/causeway-lb/causeway/internal/testkit/nstest"
)

// What membership says of a node decides whether the kernel sends connections to
// its endpoints, unless the agent was told to keep them (--keep-dead-nodes).
func TestEndpointsOnDeadNodes(t *testing.T) {
	nstest.Require(t, "ip", "nft")
	cfg := apiServer(t)
	// A host that is no node of a cluster routes nowhere else.
	nstest.Run(t, "ip", "route", "replace", "default", "dev", "lo")
	kube := kubernetes.NewForConfigOrDie(cfg)
	for _, name := range []string{"node-1", "node-2"} {
		_, err := kube.CoreV1().Nodes().Create(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
		must(t, err)
	}
	_, err := kube.CoreV1().Services("default").Create(t.Context(), &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "web"},
		Spec:       corev1.ServiceSpec{ClusterIP: "10.96.0.80", Ports: []corev1.ServicePort{{Port: 80}}},
	}, metav1.CreateOptions{})
	must(t, err)
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Name: "web-1", Labels: map[string]string{discoveryv1.LabelServiceName: "web"}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Port: ptr.To[int32](8080)}},
	}
	for i, node := range []string{"node-1", "node-2"} {
		address := fmt.Sprintf("10.244.%d.5", i+1)
		pod(t, node, address)
		slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{Addresses: []string{address}, NodeName: &node})
	}
	_, err = kube.DiscoveryV1().EndpointSlices("default").Create(t.Context(), slice, metav1.CreateOptions{})
	must(t, err)

	for _, tc := range []struct {
		name string
		keep bool
	}{{"left out", false}, {"kept", true}} {
		t.Run(tc.name, func(t *testing.T) {
			views := make(chan map[string]members.Member)
			told := Part{Name: "membership", NoLoadBalancers: true, Run: func(ctx context.Context, env Env) error {
				a := &announcer{cfg: AnnouncerConfig{KeepDeadNodes: tc.keep}, env: env, status: newAnnounceStatus(env)}
				for {
					select {
					case view := <-views:
						a.membership(view)
					case <-ctx.Done():
						return nil
					}
				}
			}}
			runAgent(t, Config{Node: model.Node{Name: "node-1"}, REST: cfg, Backend: newNftables(t), Parts: []Part{told}})
			testkit.Eventually(t, 20*time.Second, "served by both", servedBy(2))
			views <- map[string]members.Member{"node-2": {State: members.Unreachable}}
			if tc.keep {
				time.Sleep(500 * time.Millisecond) // far longer than a sync
				if err := servedBy(2)(); err != nil {
					t.Error(err)
				}
				return
			}
			testkit.Eventually(t, 10*time.Second, "served by the other alone", servedBy(1))
			views <- map[string]members.Member{"node-2": {State: members.Alive}}
			testkit.Eventually(t, 10*time.Second, "served by both again", servedBy(2))
		})
	}
}

// servedBy asks the Service until chance has had time enough to pick each of its
// endpoints, and compares how many different ones have answered.
func servedBy(want int) func() error {
	return func() error {
		seen := map[string]bool{}
		for range 40 {
			got, err := ask("10.96.0.80:80")
			if err != nil {
				return err
			}
			seen[got] = true
		}
		if len(seen) != want {
			return fmt.Errorf("%d endpoints answer, want %d", len(seen), want)
		}
		return nil
	}
}

// runAgent runs an agent until the test ends.
func runAgent(t *testing.T, cfg Config) {
	t.Helper()
	a, err := New(cfg)
	must(t, err)
	ctx, cancel := context.WithCancel(logr.NewContext(t.Context(), testr.New(t)))
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("agent: %v", err)
		}
		if err := cfg.Backend.Close(); err != nil {
			t.Errorf("close backend: %v", err)
		}
	})
}
