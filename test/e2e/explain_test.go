// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-lb/causeway/api/v1alpha1"
	"github.com/causeway-lb/causeway/internal/explain"
	"github.com/causeway-lb/causeway/internal/lab"
	"github.com/causeway-lb/causeway/internal/testkit"
)

// When no node is eligible, the record's status and condition give each node's
// reason, so does the Service's condition, and `causeway explain` repeats it; when
// one is again, all of that is gone.
func TestReasonsWhenNobodyAnnounces(t *testing.T) {
	ctx := need(t)
	service := create(t, ctx, "reasons")
	address := ready(t, ctx, service)[0]
	announcer(t, ctx, address)
	testkit.Eventually(t, 15*time.Second, "nothing to explain", func() error { return explained(ctx, service) })

	exclude := func(node string) {
		label(t, ctx, node, map[string]any{corev1.LabelNodeExcludeBalancers: ""})
		t.Cleanup(func() {
			label(t, context.Background(), node, map[string]any{corev1.LabelNodeExcludeBalancers: nil})
		})
	}
	exclude("node-2")
	var pool v1alpha1.LoadBalancerPool
	if err := api.Get(ctx, client.ObjectKey{Name: "lan"}, &pool); err != nil {
		t.Fatal(err)
	}
	selects := func(ctx context.Context, node string) {
		t.Helper()
		patch := `{"spec":{"nodeSelector":null}}`
		if node != "" {
			patch = fmt.Sprintf(`{"spec":{"nodeSelector":{"matchLabels":{%q:%q}}}}`, corev1.LabelHostname, node)
		}
		if err := api.Patch(ctx, &pool, client.RawPatch("application/merge-patch+json", []byte(patch))); err != nil {
			t.Error(err)
		}
	}
	selects(ctx, "another")
	t.Cleanup(func() { selects(context.Background(), "") })
	reasons := []string{
		"control-plane, node-2: it has the label node.kubernetes.io/exclude-from-external-load-balancers (ignored with the pool's ignoreExcludeLabel)",
		"node-1, node-3: the pool's nodeSelector does not match its labels",
	}
	record := &v1alpha1.LoadBalancerAddress{ObjectMeta: metav1.ObjectMeta{Name: v1alpha1.LoadBalancerAddressName(address)}}
	testkit.Eventually(t, 15*time.Second, "each node's reason in the record", func() error {
		if err := api.Get(ctx, client.ObjectKeyFromObject(record), record); err != nil {
			return err
		}
		c := meta.FindStatusCondition(record.Status.Conditions, v1alpha1.AddressAnnounced)
		want := "No node may announce it. " + strings.Join(reasons, "; ")
		if c == nil || c.Status != metav1.ConditionFalse || c.Reason != "NoEligibleNode" || c.Message != want {
			return fmt.Errorf("condition %+v", c)
		}
		if s := record.Status; s.Node != "" || s.Interface != "" || s.Since != nil {
			return fmt.Errorf("status still names node %q, interface %q, since %v", s.Node, s.Interface, s.Since)
		}
		return nil
	})
	testkit.Eventually(t, 15*time.Second, "the reasons on the Service", func() error {
		if err := api.Get(ctx, client.ObjectKeyFromObject(service), service); err != nil {
			return err
		}
		c := meta.FindStatusCondition(service.Status.Conditions, v1alpha1.ServiceAnnounced)
		if c == nil || c.Status != metav1.ConditionFalse || !strings.Contains(c.Message, reasons[0]) || !strings.Contains(c.Message, reasons[1]) {
			return fmt.Errorf("condition %+v", c)
		}
		return nil
	})
	testkit.Eventually(t, 5*time.Second, "the reasons explained", func() error {
		lead := address.String() + " of pool lan is announced by nobody: no node may announce it"
		return explained(ctx, service, append([]string{lead}, reasons...)...)
	})

	selects(ctx, "node-3")
	if now := announcer(t, ctx, address); now.Name() != "node-3" {
		t.Errorf("%s announces, want node-3, the only one that may", now.Name())
	}
	testkit.Eventually(t, 15*time.Second, "nothing to explain", func() error { return explained(ctx, service) })

	// Cordoned it goes on, and says so.
	cordon(t, ctx, "node-3", true)
	t.Cleanup(func() { cordon(t, context.Background(), "node-3", false) })
	const despite = "it is cordoned (spec.unschedulable), but no other node can do better"
	testkit.Eventually(t, 15*time.Second, "the cordon in the record", func() error {
		if err := api.Get(ctx, client.ObjectKeyFromObject(record), record); err != nil {
			return err
		}
		c := meta.FindStatusCondition(record.Status.Conditions, v1alpha1.AddressAnnounced)
		if c == nil || c.Status != metav1.ConditionTrue || record.Status.Node != "node-3" || !strings.Contains(c.Message, despite+". "+reasons[0]) {
			return fmt.Errorf("node %q, condition %+v", record.Status.Node, c)
		}
		return nil
	})
	testkit.Eventually(t, 5*time.Second, "nothing wrong", func() error { return explained(ctx, service) })
	testkit.Eventually(t, 5*time.Second, "noted", func() error {
		facts, err := explain.Read(ctx, api, client.ObjectKeyFromObject(service), lab.SystemNamespace)
		if err != nil {
			return err
		}
		for _, f := range explain.Explain(facts).Findings {
			if f.Level == explain.Note && strings.Contains(f.Text, "is announced by node-3 on") && strings.HasSuffix(f.Text, despite) && slices.Contains(f.Details, reasons[0]) {
				return nil
			}
		}
		return fmt.Errorf("%+v", explain.Explain(facts).Findings)
	})
}

// explained returns an error unless `causeway explain` finds this and nothing else
// wrong: first the text, then its details; nothing at all when none is given.
func explained(ctx context.Context, service *corev1.Service, want ...string) error {
	facts, err := explain.Read(ctx, api, client.ObjectKeyFromObject(service), lab.SystemNamespace)
	if err != nil {
		return err
	}
	report := explain.Explain(facts)
	var got []string
	for _, f := range report.Findings {
		if f.Level == explain.Wrong {
			got = append(append(got, f.Text), f.Details...)
		}
	}
	if !slices.Equal(got, want) {
		return fmt.Errorf("explained as %q, want %q", got, want)
	}
	return nil
}
