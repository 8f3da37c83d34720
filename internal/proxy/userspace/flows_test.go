// SPDX-License-Identifier: Apache-2.0

package userspace

import (
	"context"
	"testing"

	"github.com/causeway-lb/causeway/internal/proxy/backend"
	"github.com/causeway-lb/causeway/internal/testkit/backendtest"
	"github.com/causeway-lb/causeway/internal/testkit/flowmatrix"
	"github.com/causeway-lb/causeway/internal/testkit/nstest"
)

func TestMain(m *testing.M) { nstest.Main(m) }

func newTestBackend(t testing.TB, cfg Config) *Backend {
	t.Helper()
	nstest.Require(t, "ip")
	b, err := New(cfg)
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

func TestFlowsWithPackets(t *testing.T) { flowmatrix.Packets(t, newTestBackend(t, Config{})) }

func TestContract(t *testing.T) {
	backendtest.Run(t, func(t testing.TB) backend.Backend { return newTestBackend(t, Config{}) })
}
