// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/tools/events"

	"github.com/causeway-lb/causeway/api/v1alpha1"
	"github.com/causeway-lb/causeway/internal/proxy/modes"
	"github.com/causeway-lb/causeway/internal/testkit"
)

// What happened before there was a recorder is told as well as what happens
// after.
func TestModeReporter(t *testing.T) {
	r := NewModeReporter(logr.Discard())
	r.FellBack(modes.IPVS, modes.NFTables, errors.New("kernel lacks IPVS"))
	recorder := events.NewFakeRecorder(4)
	registry := prometheus.NewRegistry()
	kube := fake.NewClientset(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node-1"}, Status: corev1.NodeStatus{
		Conditions: []corev1.NodeCondition{{Type: v1alpha1.FormerNodeProxyMode, Status: corev1.ConditionTrue, Reason: "InUse"}}, // of a former version
	}})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- r.Part().Run(ctx, Env{NodeName: "node-1", Store: NewStore(), Kube: kube, Recorder: recorder, Registry: registry})
	}()
	expect := func(parts ...string) {
		t.Helper()
		select {
		case got := <-recorder.Events:
			for _, part := range parts {
				if !strings.Contains(got, part) {
					t.Errorf("event %q lacks %q", got, part)
				}
			}
		case <-time.After(10 * time.Second):
			t.Fatal("no event")
		}
	}
	expect("ProxyModeUnsupported", "mode ipvs", "uses nftables instead", "kernel lacks IPVS")
	r.FellBack(modes.NFTables, modes.IPTables, errors.New("kernel lacks nf_tables"))
	expect("mode nftables", "uses iptables instead")
	r.Chosen(modes.IPTables)
	testkit.Eventually(t, 10*time.Second, "a condition that names iptables", func() error {
		node, err := kube.CoreV1().Nodes().Get(ctx, "node-1", metav1.GetOptions{})
		if err != nil {
			return err
		}
		if cs := node.Status.Conditions; len(cs) != 1 || cs[0].Type != ModeCondition || cs[0].Status != corev1.ConditionFalse ||
			cs[0].Reason != "Fallback" || !strings.Contains(cs[0].Message, "uses iptables instead") {
			return fmt.Errorf("conditions %v", cs)
		}
		return nil
	})
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	values := map[string]float64{}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			values[f.GetName()] += m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
	}
	if values["causeway_proxy_mode"] != 1 || values["causeway_proxy_mode_fallbacks_total"] != 2 {
		t.Errorf("metrics %v, want one mode and two fallbacks", values)
	}
}
