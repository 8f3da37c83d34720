// SPDX-License-Identifier: Apache-2.0

package allocator

import (
	"encoding/json"
	"errors"
	"net/http"
	"testing"

	"github.com/google/go-cmp/cmp"
	admissionv1 "k8s.io/api/admission/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/causeway-lb/causeway/internal/alloc/services"
)

// What another replica answers is what it granted, in one piece.
func TestForwardedGrant(t *testing.T) {
	for name, want := range map[string]services.Grant{
		"nothing": {},
		"all": {
			ClusterIPs: []string{"10.96.0.7", "2001:db8::7"}, NodePorts: map[int]uint16{0: 30000, 11: 65535}, HealthCheckNodePort: 30001,
		},
	} {
		answer := &admissionv1.AdmissionResponse{Allowed: true}
		if operations := Patch(want); len(operations) > 0 {
			var err error
			if answer.Patch, err = json.Marshal(operations); err != nil {
				t.Fatal(err)
			}
		}
		got, err := granted(answer)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
	for _, patch := range []string{`{`, `[{"op":"add","path":"/spec/type","value":"NodePort"}]`, `[{"op":"add","path":"/spec/healthCheckNodePort","value":70000}]`} {
		if _, err := granted(&admissionv1.AdmissionResponse{Allowed: true, Patch: []byte(patch)}); err == nil {
			t.Errorf("%s: read without an error", patch)
		}
	}
}

// What another replica does not grant is the same error as here.
func TestForwardedDenial(t *testing.T) {
	status := func(code int32, message string) *admissionv1.AdmissionResponse {
		return &admissionv1.AdmissionResponse{Result: &metav1.Status{Code: code, Message: message}}
	}
	if _, err := granted(status(http.StatusServiceUnavailable, "")); !errors.Is(err, ErrNotLeader) || answered(err) {
		t.Errorf("a replica that does not lead: %v", err)
	}
	for code, want := range map[int32]services.Reason{http.StatusForbidden: services.Full, http.StatusUnprocessableEntity: services.Taken} {
		_, err := granted(status(code, "spec.clusterIPs[0]: no"))
		denied, ok := errors.AsType[*services.Denied](err)
		if !ok || denied.Reason != want || err.Error() != "spec.clusterIPs[0]: no" {
			t.Errorf("status %d: %#v", code, err)
		}
	}
	_, err := granted(&admissionv1.AdmissionResponse{Allowed: true, Warnings: []string{NotAllocated + "no namespace"}})
	if unavailable, ok := errors.AsType[*UnavailableError](err); !ok || unavailable.Error() != NotAllocated+"no namespace" {
		t.Errorf("trouble: %v", err)
	}
}
