// SPDX-License-Identifier: Apache-2.0

package nftables

import (
	"testing"

	"github.com/causeway-lb/causeway/internal/testkit/flowmatrix"
	"github.com/causeway-lb/causeway/internal/testkit/nstest"
)

func TestMain(m *testing.M) { nstest.Main(m) }

func newBackend(t testing.TB) *Backend {
	t.Helper()
	nstest.Require(t, "ip", "nft")
	b, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	return b
}

// On this kernel, and on Debian 12's.
func TestFlowsWithPackets(t *testing.T) {
	nstest.AlsoInVM(t)
	flowmatrix.Packets(t, newBackend(t))
}
