// SPDX-License-Identifier: Apache-2.0

package modes

import (
	"slices"
	"testing"

	"github.com/causeway-lb/causeway/internal/proxy/backend"
	"github.com/causeway-lb/causeway/internal/testkit/nstest"
)

// Where no other mode has objects, the first Resync opens none of them, and so
// does not wait until packets have passed what is not there.
func TestFirstResyncOpensNoOtherMode(t *testing.T) {
	nstest.Require(t, "iptables-restore")
	for _, mode := range []Mode{NFTables, None} {
		t.Run(string(mode), func(t *testing.T) {
			var opened []Mode
			kinds := Kinds(Configs{})
			for m, kind := range kinds {
				open := kind.Open
				kind.Open = func() (backend.Backend, error) {
					opened = append(opened, m)
					return open()
				}
				kinds[m] = kind
			}
			nstest.NewNS(t).Must(t, func() error {
				c := inUse(t, kinds, mode)
				if left := c.Remaining(); len(left) > 0 {
					t.Errorf("%v are left to be removed", left)
				}
				return c.Close()
			})
			if want := []Mode{mode}; !slices.Equal(opened, want) {
				t.Errorf("opened %v, want %v", opened, want)
			}
		})
	}
}
