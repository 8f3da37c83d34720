// SPDX-License-Identifier: Apache-2.0

package model_test

import (
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/causeway-lb/causeway/internal/proxy/model"
)

// Endpoints have the weight of their slice; what is none counts as 1, and is told.
func TestWeights(t *testing.T) {
	weights := []string{"", "1", "9", "100", "0", "101", "-1", "70000", "1.5", " 2"}
	want := []uint16{1, 1, 9, 100, 1, 1, 1, 1, 1, 1}
	in := model.Input{Service: &corev1.Service{Spec: corev1.ServiceSpec{ClusterIP: "10.96.0.1", Ports: []corev1.ServicePort{{Port: 80}}}}}
	for i, w := range weights {
		sl := &discoveryv1.EndpointSlice{
			ObjectMeta:  metav1.ObjectMeta{Name: fmt.Sprint("web-", i)},
			AddressType: discoveryv1.AddressTypeIPv4,
			Ports:       []discoveryv1.EndpointPort{{Port: ptr.To[int32](80)}},
			Endpoints:   []discoveryv1.Endpoint{{Addresses: []string{fmt.Sprint("10.244.0.", i+1)}}},
		}
		if i > 0 {
			sl.Annotations = map[string]string{model.WeightAnnotation: w}
		}
		in.Slices = append(in.Slices, sl)
	}
	out, problems := model.ComputeService(in, model.Node{})
	var got []uint16
	for _, ep := range out.Frontends[0].Inside.Endpoints {
		got = append(got, ep.Weight)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("weights (-want +got):\n%s", diff)
	}
	if len(problems) != 6 {
		t.Errorf("%d problems, want one for each weight that is none: %v", len(problems), problems)
	}
	for _, p := range problems {
		if p.Reason != "InvalidWeight" {
			t.Errorf("problem %v", p)
		}
	}
}
