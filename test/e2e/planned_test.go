// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-lb/causeway/internal/lab"
	"github.com/causeway-lb/causeway/internal/lab/traffic"
	"github.com/causeway-lb/causeway/internal/testkit"
	"github.com/causeway-lb/causeway/test/labtest"
)

// steady is 200 requests a second. It is stopped by its test; none may fail.
func steady(ctx context.Context, address string) *traffic.Generator {
	return traffic.Generate(ctx, traffic.Config{
		From: cluster.Machine(lab.Client), Address: address, Interval: 5 * time.Millisecond, Timeout: patience,
	})
}

// patience is how long a request may take on a busy machine: these are tests of
// loss, which shows in what is sent again, and not of latency.
const patience = 20 * time.Second

func noneFailed(t *testing.T, results traffic.Results) {
	t.Helper()
	if len(results) < 100 {
		t.Errorf("only %d requests were sent", len(results))
	}
	nothingLost(t, "requests", results)
}

// nothingLost wants an answer to every request, and no gap: none whose SYN was lost
// twice, and no two in a row whose SYN was lost. One alone is no gap; a busy machine
// has one now and then, whatever is done to the cluster.
func nothingLost(t *testing.T, name string, results traffic.Results) {
	t.Helper()
	if failed := results.Failed(); len(failed) > 0 {
		t.Errorf("%s: %d of %d failed, the first %s after the start, the last %s, the longest outage %s: %v", name, len(failed), len(results),
			failed[0].Sent.Sub(results[0].Sent), failed[len(failed)-1].Sent.Sub(results[0].Sent), results.LongestOutage(), failed[0].Err)
	}
	for i, one := range results {
		if one.Lost > 1 || one.Lost > 0 && i > 0 && results[i-1].Lost > 0 {
			t.Errorf("%s: the SYN was lost %s after the start, of %d of %d requests in all", name, one.Sent.Sub(results[0].Sent), len(results.Resent()), len(results))
			return
		}
	}
	if resent := results.Resent(); len(resent) > 0 {
		t.Logf("%s: of %d of %d the SYN was lost, each alone", name, len(resent), len(results))
	}
}

// A drained node hands its addresses over and its Pods end: no request is lost.
// Back in service, it has at most what the election gives it.
func TestDrainLosesNoRequest(t *testing.T) {
	ctx := need(t)
	app := spare(t, ctx, "drained")
	service := create(t, ctx, "drained", func(s *corev1.Service) { s.Spec.Selector = app.Spec.Selector.MatchLabels })
	address := ready(t, ctx, service)[0]
	testkit.Eventually(t, 15*time.Second, "answers", func() error { return request(ctx, lab.Client, frontend(address, 80)).Err })
	before := announcer(t, ctx, address)
	generator := steady(ctx, frontend(address, 80))
	labtest.More(t, ctx, 100, generator)
	cordon(t, ctx, before.Name(), true)
	t.Cleanup(func() { cordon(t, context.Background(), before.Name(), false) })
	evict(t, ctx, app, before.Name())
	testkit.Eventually(t, 20*time.Second, "another announcer", func() error {
		if now := announcer(t, ctx, address); now == before {
			return fmt.Errorf("%s still answers", now.Name())
		}
		return nil
	})
	if err := cluster.WaitDeployment(ctx, app.Namespace, app.Name); err != nil {
		t.Error(err)
	}
	labtest.More(t, ctx, 100, generator)
	cordon(t, ctx, before.Name(), false)
	announcer(t, ctx, address)
	labtest.More(t, ctx, 100, generator)
	noneFailed(t, generator.Stop())
}

// A new version of the agents, one node after the other, loses no request and no
// open connection.
func TestAgentUpgradeLosesNoRequest(t *testing.T) {
	ctx := need(t)
	service := create(t, ctx, "agent-upgrade")
	address := ready(t, ctx, service)[0]
	answering(t, ctx, lab.Client, frontend(address, 80), all())
	generator := steady(ctx, frontend(address, 80))
	held, err := traffic.Hold(ctx, cluster.Machine(lab.Client), frontend(address, 80), 12)
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	labtest.More(t, ctx, 100, generator)
	const annotation = "causeway.dev/upgrade-test"
	agents := &appsv1.DaemonSet{ObjectMeta: metav1.ObjectMeta{Namespace: lab.SystemNamespace, Name: "causeway-agent"}}
	patch := client.RawPatch("application/merge-patch+json", fmt.Appendf(nil, `{"spec":{"template":{"metadata":{"annotations":{%q:%q}}}}}`, annotation, time.Now()))
	if err := api.Patch(ctx, agents, patch); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, 90*time.Second, "new agents everywhere", func() error {
		if err := api.Get(ctx, client.ObjectKeyFromObject(agents), agents); err != nil {
			return err
		}
		if s := agents.Status; s.ObservedGeneration < agents.Generation || s.UpdatedNumberScheduled < s.DesiredNumberScheduled || s.NumberUnavailable > 0 {
			return fmt.Errorf("%d of %d are new, %d unavailable", s.UpdatedNumberScheduled, s.DesiredNumberScheduled, s.NumberUnavailable)
		}
		return nil
	})
	announcer(t, ctx, address)
	for _, err := range held.Check(ctx, patience) {
		t.Errorf("open connection: %v", err)
	}
	noneFailed(t, generator.Stop())
}

// spare makes a Deployment of two servers that a test may move about, and deletes
// it with the test. Its Pods end as the sample's, which lose nothing.
func spare(t *testing.T, ctx context.Context, name string) *appsv1.Deployment {
	t.Helper()
	sample := &appsv1.Deployment{}
	if err := api.Get(ctx, client.ObjectKey{Namespace: "default", Name: "go-http"}, sample); err != nil {
		t.Fatal(err)
	}
	// Pods of a run before that still end are none of its.
	labels := map[string]string{"app": name, "run": fmt.Sprint(time.Now().UnixNano())}
	out := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}, Spec: *sample.Spec.DeepCopy()}
	out.Spec.Replicas, out.Spec.Selector = new(int32(2)), &metav1.LabelSelector{MatchLabels: labels}
	out.Spec.Template.Labels = labels
	out.Spec.Template.Spec.TopologySpreadConstraints[0].LabelSelector = out.Spec.Selector
	if err := api.Create(ctx, out); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := client.IgnoreNotFound(api.Delete(context.Background(), out)); err != nil {
			t.Error(err)
		}
	})
	if err := cluster.WaitDeployment(ctx, out.Namespace, out.Name); err != nil {
		t.Fatal(err)
	}
	return out
}

func cordon(t *testing.T, ctx context.Context, node string, yes bool) {
	t.Helper()
	patch := client.RawPatch("application/merge-patch+json", fmt.Appendf(nil, `{"spec":{"unschedulable":%v}}`, yes))
	if err := api.Patch(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: node}}, patch); err != nil {
		t.Errorf("cordon %s: %v", node, err)
	}
}

// evict has a Deployment's Pods leave a node.
func evict(t *testing.T, ctx context.Context, app *appsv1.Deployment, node string) {
	t.Helper()
	pods := &corev1.PodList{}
	if err := api.List(ctx, pods, client.InNamespace(app.Namespace), client.MatchingLabels(app.Spec.Selector.MatchLabels)); err != nil {
		t.Fatal(err)
	}
	for _, pod := range slices.DeleteFunc(pods.Items, func(p corev1.Pod) bool { return p.Spec.NodeName != node }) {
		if err := api.SubResource("eviction").Create(ctx, &pod, &policyv1.Eviction{}); err != nil {
			t.Errorf("evict %s: %v", pod.Name, err)
		}
	}
}
