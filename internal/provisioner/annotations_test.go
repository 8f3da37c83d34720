// SPDX-License-Identifier: Apache-2.0

package provisioner

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/causeway-lb/causeway/api/v1alpha1"
)

func annotated(pairs ...string) *corev1.Service {
	svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{}}}
	for i := 0; i < len(pairs); i += 2 {
		svc.Annotations[pairs[i]] = pairs[i+1]
	}
	return svc
}

func TestAnnotationProblems(t *testing.T) {
	for _, test := range []struct {
		name    string
		svc     *corev1.Service
		heeded  bool
		reason  string
		message string
	}{
		{name: "none", svc: annotated("example.com/pool", "a", "kubectl.kubernetes.io/last-applied-configuration", "{}")},
		{name: "ours", svc: annotated(v1alpha1.PoolAnnotation, "a", v1alpha1.SchedulerAnnotation, "lc", v1alpha1.EndpointSlicesAnnotation, "auto")},
		{name: "a word", svc: annotated("causeway.dev/address", "192.0.2.1"), reason: ReasonAnnotationUnknown, message: "did you mean causeway.dev/addresses?"},
		{name: "case", svc: annotated("causeway.dev/Pool", "a"), reason: ReasonAnnotationUnknown, message: "did you mean causeway.dev/pool?"},
		{name: "prefix", svc: annotated("causway.dev/sharing-key", "a"), reason: ReasonAnnotationUnknown, message: "did you mean causeway.dev/sharing-key?"},
		{name: "of slices, not of Services", svc: annotated("causeway.dev/weight", "9"), reason: ReasonAnnotationUnknown},
		{name: "MetalLB's", svc: annotated("metallb.io/address-pool", "a"), reason: ReasonAnnotationUnsupported, message: "use causeway.dev/pool"},
		{name: "MetalLB's, heeded", svc: annotated("metallb.io/address-pool", "a"), heeded: true},
		{name: "MetalLB's that there is nothing for", svc: annotated("metallb.io/ip-allocated-from-pool", "a"), heeded: true, reason: ReasonAnnotationUnsupported, message: "is MetalLB's"},
		{name: "MetalLB's former", svc: annotated("metallb.universe.tf/allow-shared-ip", "a"), reason: ReasonAnnotationUnsupported, message: "use causeway.dev/sharing-key"},
		{name: "kube-vip's", svc: annotated("kube-vip.io/loadbalancerIPs", "192.0.2.1"), reason: ReasonAnnotationUnsupported, message: "is kube-vip's"},
		{name: "Cilium's", svc: annotated("lbipam.cilium.io/ips", "192.0.2.1"), reason: ReasonAnnotationUnsupported, message: "is Cilium's"},
	} {
		got := AnnotationProblems(test.svc, test.heeded)
		if test.reason == "" {
			if len(got) > 0 {
				t.Errorf("%s: %+v", test.name, got)
			}
			continue
		}
		if len(got) != 1 || got[0].Reason != test.reason || !strings.Contains(got[0].Message, test.message) {
			t.Errorf("%s: %+v", test.name, got)
		}
	}
}

func TestWithMetalLB(t *testing.T) {
	svc := annotated("metallb.io/loadBalancerIPs", "192.0.2.1,2001:db8::1", "metallb.universe.tf/loadBalancerIPs", "192.0.2.9",
		"metallb.universe.tf/address-pool", "gold", "metallb.io/allow-shared-ip", "theirs", v1alpha1.SharingKeyAnnotation, "ours")
	before := svc.DeepCopy()
	got := WithMetalLB(svc)
	for key, want := range map[string]string{
		v1alpha1.AddressesAnnotation: "192.0.2.1,2001:db8::1", v1alpha1.PoolAnnotation: "gold", v1alpha1.SharingKeyAnnotation: "ours",
	} {
		if got.Annotations[key] != want {
			t.Errorf("%s: %q, want %q", key, got.Annotations[key], want)
		}
	}
	if diff := cmp.Diff(before, svc); diff != "" {
		t.Errorf("the Service was changed (-want +got):\n%s", diff)
	}
	if plain := annotated("a", "b"); WithMetalLB(plain) != plain {
		t.Error("a Service without them is copied")
	}
}
