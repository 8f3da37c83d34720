// SPDX-License-Identifier: Apache-2.0

package ipvs

import (
	"context"
	"errors"
	"os"
	"testing"

	"github.com/causeway-lb/causeway/internal/proxy/backend"
	"github.com/causeway-lb/causeway/internal/proxy/flowtable"
	"github.com/causeway-lb/causeway/internal/proxy/nstest"
)

func TestMain(m *testing.M) { nstest.Main(m) }

// newTestBackend ends the test where the kernel has no IPVS, except in the
// virtual machine, which is there to have it.
func newTestBackend(t testing.TB, cfg Config) *Backend {
	t.Helper()
	nstest.Require(t, "ip")
	b, err := New(cfg)
	var lacks *backend.UnsupportedError
	if errors.As(err, &lacks) && os.Getenv("IN_TEST_VM") == "" {
		t.Skip("make test-vm runs this test in a virtual machine, as here the " + lacks.Error())
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Cleanup(context.Background()); err != nil {
			t.Error(err)
		}
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	return b
}

func TestFlowsWithPackets(t *testing.T) {
	flowtable.Packets(t, newTestBackend(t, Config{}), "NodePort at loopback, endpoint here", "NodePort at loopback, endpoint there")
}
