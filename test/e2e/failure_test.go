// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-lb/causeway/internal/lab"
	"github.com/causeway-lb/causeway/internal/lab/traffic"
	"github.com/causeway-lb/causeway/internal/testkit"
	"github.com/causeway-lb/causeway/test/labtest"
)

// load is traffic on everything that a Service offers: LoadBalancer address
// and NodePort from the LAN, ClusterIP from a node, and open connections.
type load struct {
	generators map[string]*traffic.Generator
	held       *traffic.Holder
}

func startLoad(t *testing.T, ctx context.Context, service *corev1.Service, address netip.Addr) *load {
	t.Helper()
	l := &load{generators: map[string]*traffic.Generator{}}
	type target struct{ from, address string }
	targets := map[string]target{
		"LoadBalancer": {lab.Client, frontend(address, 80)},
		"NodePort":     {lab.Client, frontend(netip.MustParseAddr("192.0.2.12"), service.Spec.Ports[0].NodePort)},
		"ClusterIP":    {"node-1", frontend(netip.MustParseAddr(service.Spec.ClusterIP), 80)},
	}
	// What a test before this one did to nodes and Pods is known everywhere, or this
	// one would find fault with it.
	for _, to := range targets {
		answering(t, ctx, to.from, to.address, all())
	}
	for name, to := range targets {
		l.generators[name] = traffic.Generate(ctx, traffic.Config{
			From: cluster.Machine(to.from), Address: to.address, Interval: 25 * time.Millisecond, Timeout: patience,
		})
	}
	var err error
	if l.held, err = traffic.Hold(ctx, cluster.Machine(lab.Client), frontend(address, 80), 12); err != nil {
		t.Fatal(err)
	}
	return l
}

// more waits for 80 requests of each kind, which take two seconds.
func (l *load) more(t *testing.T, ctx context.Context) {
	t.Helper()
	labtest.More(t, ctx, 80, slices.Collect(maps.Values(l.generators))...)
}

// stop ends the traffic; nothing of it may have failed.
func (l *load) stop(t *testing.T, ctx context.Context) {
	t.Helper()
	for _, err := range l.held.Check(ctx, patience) {
		t.Errorf("open connection: %v", err)
	}
	l.held.Close()
	for name, generator := range l.generators {
		results := generator.Stop()
		if len(results) < 40 {
			t.Errorf("%s: only %d requests were sent", name, len(results))
		}
		nothingLost(t, name, results)
	}
}

func kill(t *testing.T, pods []corev1.Pod) {
	t.Helper()
	for i := range pods {
		if err := cluster.KillContainer(&pods[i], pods[i].Spec.Containers[0].Name); err != nil {
			t.Error(err)
		}
	}
}

// down waits until the API server knows that no container of these Pods runs.
func down(t *testing.T, ctx context.Context, pods []corev1.Pod) {
	t.Helper()
	for i := range pods {
		testkit.Eventually(t, patience, "end of "+pods[i].Name, func() error {
			now := corev1.Pod{}
			if err := api.Get(ctx, client.ObjectKeyFromObject(&pods[i]), &now); err != nil {
				return err
			}
			for _, c := range now.Status.ContainerStatuses {
				if c.State.Running != nil {
					return fmt.Errorf("container %s runs", c.Name)
				}
			}
			return nil
		})
	}
}

// SIGKILL of every controller and every agent at once loses no request and no
// connection, and while they are down the kernel goes on forwarding.
func TestKilledProcessesLoseNothing(t *testing.T) {
	ctx := need(t)
	service := create(t, ctx, "killed-processes")
	address := ready(t, ctx, service)[0]
	answering(t, ctx, lab.Client, frontend(address, 80), all())
	pods := append(systemPods(t, ctx, "causeway-controller"), systemPods(t, ctx, "causeway-agent")...)
	release := hold(t, ctx, pods)
	traffic := startLoad(t, ctx, service, address)
	traffic.more(t, ctx)
	kill(t, pods)
	down(t, ctx, pods)
	traffic.more(t, ctx)
	release()
	if err := cluster.WaitInstalled(ctx); err != nil {
		t.Fatal(err)
	}
	traffic.more(t, ctx) // they take over what they find
	traffic.stop(t, ctx)
	if node := announcer(t, ctx, address); learned(t, address) != node.Name() {
		t.Errorf("the client sends to %s; %s announces", learned(t, address), node.Name())
	}
}

// SIGKILL of the announcing node's agent alone moves the address, and requests
// go on without a gap.
func TestKilledAnnouncerLosesNoRequest(t *testing.T) {
	ctx := need(t)
	service := create(t, ctx, "killed-announcer")
	address := ready(t, ctx, service)[0]
	answering(t, ctx, lab.Client, frontend(address, 80), all())
	before := announcer(t, ctx, address)
	var victim []corev1.Pod
	for _, pod := range systemPods(t, ctx, "causeway-agent") {
		if pod.Spec.NodeName == before.Name() {
			victim = append(victim, pod)
		}
	}
	release := hold(t, ctx, victim)
	generator := steady(ctx, frontend(address, 80))
	labtest.More(t, ctx, 100, generator)
	kill(t, victim)
	testkit.Eventually(t, 10*time.Second, "another announcer", func() error {
		if now := announcer(t, ctx, address); now == before {
			return fmt.Errorf("%s still answers", now.Name())
		}
		return nil
	})
	labtest.More(t, ctx, 100, generator)
	release()
	if err := cluster.WaitInstalled(ctx); err != nil {
		t.Fatal(err)
	}
	noneFailed(t, generator.Stop())
}

// A node that dies soon loses its addresses to another, and its endpoints stop
// being used; when it comes back there is still one announcer.
func TestNodeDies(t *testing.T) {
	ctx := need(t)
	service := create(t, ctx, "node-dies")
	address := ready(t, ctx, service)[0]
	answering(t, ctx, lab.Client, frontend(address, 80), all())
	before := announcer(t, ctx, address)
	generator := traffic.Generate(ctx, traffic.Config{From: cluster.Machine(lab.Client), Address: frontend(address, 80)})
	labtest.More(t, ctx, 20, generator)
	died := time.Now()
	if err := before.PowerOff(); err != nil {
		t.Fatal(err)
	}
	on := sync.OnceValue(before.PowerOn)
	t.Cleanup(func() {
		if err := on(); err != nil {
			t.Error(err)
		}
	})
	living := slices.DeleteFunc(all(), func(name string) bool { return servers[name].Spec.NodeName == before.Name() })
	answering(t, ctx, lab.Client, frontend(address, 80), living)
	labtest.More(t, ctx, 50, generator)
	results := generator.Stop().Since(died)
	since, ok := results.Steady()
	if !ok {
		t.Errorf("requests still fail: %d of %d failed", len(results.Failed()), len(results))
	}
	t.Logf("outage %s, none failed after %s; %d of %d failed in the first two seconds", results.LongestOutage(), since.Sub(died),
		len(results.Before(died.Add(2*time.Second)).Failed()), len(results.Before(died.Add(2*time.Second))))
	after := announcer(t, ctx, address)
	if after == before {
		t.Errorf("%s is dead and announces", before.Name())
	}
	if got := learned(t, address); got != after.Name() {
		t.Errorf("the client sends to %s; %s announces", got, after.Name())
	}
	if err := on(); err != nil {
		t.Fatal(err)
	}
	if err := cluster.WaitInstalled(ctx); err != nil {
		t.Fatal(err)
	}
	if err := cluster.WaitDeployment(ctx, "default", "go-http"); err != nil {
		t.Fatal(err)
	}
	answering(t, ctx, lab.Client, frontend(address, 80), all())
	announcer(t, ctx, address)
}

// Without an API server nothing that works stops working, and a node that dies
// meanwhile is replaced: its addresses move, and its endpoints are not used.
func TestAPIServerDown(t *testing.T) {
	ctx := need(t)
	service := create(t, ctx, "api-server-down")
	address := ready(t, ctx, service)[0]
	answering(t, ctx, lab.Client, frontend(address, 80), all())
	before := announcer(t, ctx, address)
	load := startLoad(t, ctx, service, address)
	cluster.KillAPIServer()
	start := sync.OnceValue(func() error {
		restart := restarted{from: time.Now()}
		defer func() {
			restart.ready = time.Now()
			restarts = append(restarts, restart)
		}()
		return cluster.StartAPIServer(ctx)
	})
	t.Cleanup(func() { _ = start() })
	load.more(t, ctx)
	load.stop(t, ctx)

	if err := before.PowerOff(); err != nil {
		t.Fatal(err)
	}
	on := sync.OnceValue(before.PowerOn)
	t.Cleanup(func() { _ = on() })
	living := slices.DeleteFunc(all(), func(name string) bool { return servers[name].Spec.NodeName == before.Name() })
	answering(t, ctx, lab.Client, frontend(address, 80), living)
	if after := announcer(t, ctx, address); after == before {
		t.Errorf("%s is dead and announces", before.Name())
	}

	if err := start(); err != nil {
		t.Fatal(err)
	}
	back := time.Now().Truncate(time.Second)
	if err := on(); err != nil {
		t.Fatal(err)
	}
	// The API server never heard of the node's end: its Pods are not what they
	// seem until the node's kubelet has started them again and says so.
	testkit.Eventually(t, time.Minute, "Pods of "+before.Name()+", started again", func() error {
		pods := &corev1.PodList{}
		if err := api.List(ctx, pods, client.MatchingFields{"spec.nodeName": before.Name()}); err != nil {
			return err
		}
		for _, pod := range pods.Items {
			for _, c := range pod.Status.ContainerStatuses {
				if c.State.Running == nil || c.State.Running.StartedAt.Time.Before(back) || !c.Ready {
					return fmt.Errorf("%s: %+v, ready %v", pod.Name, c.State, c.Ready)
				}
			}
		}
		return nil
	})
	if err := cluster.WaitInstalled(ctx); err != nil {
		t.Fatal(err)
	}
	answering(t, ctx, lab.Client, frontend(address, 80), all())
	announcer(t, ctx, address)
}
