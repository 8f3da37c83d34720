// SPDX-License-Identifier: Apache-2.0

package ipvs

import (
	"context"
	"errors"
	"testing"

	"github.com/causeway-lb/causeway/internal/proxy/backend"
	"github.com/causeway-lb/causeway/internal/testkit/backendtest"
	"github.com/causeway-lb/causeway/internal/testkit/flowmatrix"
	"github.com/causeway-lb/causeway/internal/testkit/nstest"
)

func TestMain(m *testing.M) { nstest.Main(m) }

// newTestBackend leaves the test to the virtual machine where the kernel has no
// IPVS.
func newTestBackend(t testing.TB, cfg Config) *Backend {
	t.Helper()
	b, err := New(cfg)
	var lacks *backend.UnsupportedError
	if errors.As(err, &lacks) {
		nstest.LeaveToVM(t, lacks.Error())
	}
	nstest.Require(t, "ip")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := backendtest.Cleanup(context.Background(), b); err != nil {
			t.Error(err)
		}
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	return b
}

func TestFlowsWithPackets(t *testing.T) {
	flowmatrix.Packets(t, newTestBackend(t, Config{}))
}
