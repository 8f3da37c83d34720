// SPDX-License-Identifier: Apache-2.0

package ipvs

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/causeway-lb/causeway/internal/netlink/ipvs"
	"github.com/causeway-lb/causeway/internal/proxy/model"
	"github.com/causeway-lb/causeway/internal/testkit/backendtest"
	"github.com/causeway-lb/causeway/internal/testkit/flowmatrix"
)

// What somebody takes out is named, and nothing else.
func TestDifferencesNameWhatIsGone(t *testing.T) {
	row := flowmatrix.Rows()[0]
	d, _ := model.Compute(row.Snapshot(model.IPv4))
	key := ipvs.Key{Addr: row.Packet(model.IPv4).Destination, Port: 80, Protocol: uint8(model.TCP)}
	for name, tc := range map[string]struct {
		damage func(*fakeKernel)
		want   []string
	}{
		"nothing":       {func(*fakeKernel) {}, nil},
		"a destination": {func(k *fakeKernel) { k.servers[key].Reals = k.servers[key].Reals[1:] }, []string{"default/web port web: missing endpoint "}},
		"a route":       {func(k *fakeKernel) { delete(k.routes, key.Addr) }, []string{"missing local route (ip route local 10.96.0.10 dev causeway-ipvs table 51806)"}},
	} {
		t.Run(name, func(t *testing.T) {
			k := newFakeKernel()
			b := newFakeBackend(k, Config{})
			if _, err := b.Resync(t.Context(), d); err != nil {
				t.Fatal(err)
			}
			tc.damage(k)
			var got []string
			for i, s := range backendtest.Differences(t, b, d) {
				if i < len(tc.want) {
					s = s[:min(len(s), len(tc.want[i]))] // which of the endpoints is open
				}
				got = append(got, s)
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}
