// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/causeway-lb/causeway/api/v1alpha1"
	"github.com/causeway-lb/causeway/internal/announce"
	"github.com/causeway-lb/causeway/internal/announce/l2/wire"
)

func TestFormerConflictConditionIsReplaced(t *testing.T) {
	host := wire.MAC{2, 0, 0, 0, 0, 0x99}
	for _, tc := range []struct {
		name   string
		former string // type of the condition that the record has
		report announce.Report
		want   metav1.ConditionStatus // of Uncontested; "" if absent
	}{
		{"goes on", "Conflict", announce.Report{State: announce.Announced, ConflictingHost: host}, metav1.ConditionFalse},
		{"has ended", "Conflict", announce.Report{State: announce.Announced}, metav1.ConditionTrue},
		{"never was", "", announce.Report{State: announce.Announced}, ""},
	} {
		record := &v1alpha1.LoadBalancerAddress{}
		if tc.former != "" {
			record.Status.Conditions = []metav1.Condition{{Type: tc.former, Status: metav1.ConditionTrue, Reason: "AddressInUse"}}
		}
		got := map[string]metav1.ConditionStatus{}
		for _, c := range (&announceStatus{env: Env{NodeName: "node-1"}}).desired(record, tc.report).Conditions {
			got[c.Type] = c.Status
		}
		if _, ok := got["Conflict"]; ok || got[v1alpha1.AddressUncontested] != tc.want || got[v1alpha1.AddressAnnounced] != metav1.ConditionTrue {
			t.Errorf("%s: %v, want Uncontested %q", tc.name, got, tc.want)
		}
	}
}
