// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"net/netip"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/causeway-lb/causeway/api/v1alpha1"
	"github.com/causeway-lb/causeway/internal/announce"
	"github.com/causeway-lb/causeway/internal/announce/elect"
)

// TestStatusDispute: two agents announce one address, on two LANs, and each writes
// its status. One gives way, whether or not they hold each other alive.
func TestStatusDispute(t *testing.T) {
	addr := netip.MustParseAddr("192.0.2.200")
	names := []string{"node-1", "node-2"}
	if elect.Outranks(addr, names[1], names[0]) {
		names[0], names[1] = names[1], names[0]
	}
	for _, alive := range []bool{true, false} {
		now, end := time.Duration(0), time.Hour
		status, writes := "", 0
		held := map[string]time.Duration{}
		due := map[string]time.Duration{names[0]: 0, names[1]: 0} // of the next write
		agents := map[string]*announceStatus{}
		for i, name := range names {
			agents[name] = newAnnounceStatus(Env{NodeName: name})
			agents[name].alive[names[1-i]] = alive
		}
		for now < end {
			next, who := end, ""
			for _, name := range names {
				if at, ok := due[name]; ok && at < next {
					next, who = at, name
				}
			}
			held[status] += next - now
			now = next
			if who == "" {
				break
			}
			delete(due, who)
			status, writes = who, writes+1
			d := agents[who].disputes["x"]
			d.wrote = true
			agents[who].disputes["x"] = d
			record := &v1alpha1.LoadBalancerAddress{Status: v1alpha1.LoadBalancerAddressStatus{
				Node: who, Conditions: []metav1.Condition{{Type: v1alpha1.AddressAnnounced, Status: metav1.ConditionTrue}},
			}}
			for _, other := range names {
				if other == who {
					continue
				}
				s := agents[other]
				d := s.disputes["x"]
				if d.wrote {
					d.wrote, d.lost = false, d.lost+1
				}
				s.disputes["x"] = d
				due[other] = now + s.patience(record, announce.Report{Address: addr, State: announce.Announced}, d)
			}
		}
		if writes > 40 || held[names[0]] < end*95/100 {
			t.Errorf("alive %v: %d writes in %v, of which the status named %s for %v", alive, writes, end, names[0], held[names[0]])
		}
	}
}
