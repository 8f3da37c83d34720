// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"testing"

	"github.com/causeway-lb/causeway/internal/proxy/backend"
	"github.com/causeway-lb/causeway/internal/proxy/backend/backendtest"
	"github.com/causeway-lb/causeway/internal/proxy/flowtable"
	"github.com/causeway-lb/causeway/internal/proxy/nstest"
)

func TestMain(m *testing.M) { nstest.Main(m) }

func newTestBackend(t testing.TB, variant string) *Backend {
	t.Helper()
	nstest.Require(t, "ip", "iptables-restore", "ip6tables-restore")
	b, err := New(Config{Variant: variant})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

var variants = []string{"nft", "legacy"}

func TestFlowsWithPackets(t *testing.T) {
	for _, v := range variants {
		t.Run(v, func(t *testing.T) { flowtable.Packets(t, newTestBackend(t, v)) })
	}
}

func TestContract(t *testing.T) {
	for _, v := range variants {
		t.Run(v, func(t *testing.T) {
			backendtest.Run(t, func(t testing.TB) backend.Backend { return newTestBackend(t, v) })
		})
	}
}
