// SPDX-License-Identifier: Apache-2.0

package endpoints

import (
	"context"
	"encoding/json"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-lb/causeway/api/v1alpha1"
)

// statusPatches applies patches of a Service's status as an API server does.
type statusPatches struct {
	client.Client // nil: what is not below is not used

	service *corev1.Service
	count   int
}

func (s *statusPatches) Status() client.SubResourceWriter { return statusWriter{server: s} }

type statusWriter struct {
	client.SubResourceWriter // nil
	server                   *statusPatches
}

func (s statusWriter) Patch(_ context.Context, obj client.Object, patch client.Patch, _ ...client.SubResourcePatchOption) error {
	s.server.count++
	data, err := patch.Data(obj)
	if err != nil {
		return err
	}
	before, err := json.Marshal(s.server.service)
	if err != nil {
		return err
	}
	after, err := strategicpatch.StrategicMergePatch(before, data, corev1.Service{})
	if err != nil {
		return err
	}
	s.server.service = &corev1.Service{}
	return json.Unmarshal(after, s.server.service)
}

// What a former version wrote is replaced, or removed, by one write; conditions of
// other writers stay.
func TestFormerOwnershipConditionIsReplaced(t *testing.T) {
	other := metav1.Condition{Type: v1alpha1.ServiceAllocated, Status: metav1.ConditionTrue, Reason: "Allocated"}
	for _, tc := range []struct {
		name  string
		write func(context.Context, client.Client, *corev1.Service) error
		want  map[string]string
	}{
		{"another controller manages them", func(ctx context.Context, c client.Client, s *corev1.Service) error {
			return publishOwnership(ctx, c, s, &decision{reason: reasonStandingBy, message: "m"})
		}, map[string]string{v1alpha1.ServiceAllocated: "Allocated", v1alpha1.ServiceEndpointSlicesManaged: reasonStandingBy}},
		{"Causeway manages them", func(ctx context.Context, c client.Client, s *corev1.Service) error {
			return publishOwnership(ctx, c, s, &decision{keep: true})
		}, map[string]string{v1alpha1.ServiceAllocated: "Allocated", v1alpha1.ServiceEndpointSlicesManaged: reasonManaged}},
		{"there are none", dropOwnership, map[string]string{v1alpha1.ServiceAllocated: "Allocated"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			server := &statusPatches{service: &corev1.Service{Status: corev1.ServiceStatus{Conditions: []metav1.Condition{
				other, {Type: "causeway.dev/EndpointSlices", Status: metav1.ConditionFalse, Reason: "StandingBy", Message: "m"},
			}}}}
			for range 2 {
				if err := tc.write(t.Context(), server, server.service); err != nil {
					t.Fatal(err)
				}
			}
			got := map[string]string{}
			for _, c := range server.service.Status.Conditions {
				got[c.Type] = c.Reason
			}
			if len(got) != len(tc.want) || server.count != 1 {
				t.Fatalf("conditions %v by %d writes, want %v by one", got, server.count, tc.want)
			}
			for kind, reason := range tc.want {
				if got[kind] != reason {
					t.Errorf("conditions %v, want %v", got, tc.want)
				}
			}
		})
	}
}
