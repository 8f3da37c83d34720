// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/causeway-lb/causeway/api/v1alpha1"
	"github.com/causeway-lb/causeway/internal/announce"
	"github.com/causeway-lb/causeway/internal/announce/elect"
)

// TestStatusDispute: two agents say different things of one address, on two LANs or
// because they do not hear each other, and each writes its status. Whatever they say,
// they come to rest; and one that announces has its way, of two that do the one that
// outranks the other, whether or not they hold each other alive.
func TestStatusDispute(t *testing.T) {
	addr := netip.MustParseAddr("192.0.2.200")
	names := []string{"node-1", "node-2"}
	if elect.Outranks(addr, names[1], names[0]) {
		names[0], names[1] = names[1], names[0]
	}
	for _, tc := range []struct {
		name   string
		states [2]announce.State // of the one that outranks, and the other
		winner int               // or -1
	}{
		{"both announce", [2]announce.State{announce.Announced, announce.Announced}, 0},
		{"the outranked one announces, the other knows of no node that may", [2]announce.State{announce.NoEligibleNode, announce.Announced}, 1},
		{"the outranked one announces, the other sees a conflict", [2]announce.State{announce.Conflicted, announce.Announced}, 1},
		{"both know of none", [2]announce.State{announce.NoEligibleNode, announce.NoEligibleNode}, -1},
		{"both see a conflict", [2]announce.State{announce.Conflicted, announce.Conflicted}, -1},
	} {
		for _, alive := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, alive %v", tc.name, alive), func(t *testing.T) {
				now, end := time.Duration(0), time.Hour
				status, writes := "", 0
				held := map[string]time.Duration{}
				due := map[string]time.Duration{names[0]: 0, names[1]: 0} // of the next write
				agents, states := map[string]*announceStatus{}, map[string]announce.State{}
				for i, name := range names {
					agents[name], states[name] = newAnnounceStatus(Env{NodeName: name}), tc.states[i]
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
						Conditions: []metav1.Condition{{Type: v1alpha1.AddressAnnounced, Status: metav1.ConditionFalse}},
					}}
					if states[who] == announce.Announced {
						record.Status.Node, record.Status.Conditions[0].Status = who, metav1.ConditionTrue
					}
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
						due[other] = now + s.patience(record, announce.Report{Address: addr, State: states[other]}, d)
					}
				}
				if writes > 40 {
					t.Errorf("%d writes in %v", writes, end)
				}
				if tc.winner >= 0 && held[names[tc.winner]] < end*95/100 {
					t.Errorf("the status has the words of %s for %v of %v", names[tc.winner], held[names[tc.winner]], end)
				}
			})
		}
	}
}
