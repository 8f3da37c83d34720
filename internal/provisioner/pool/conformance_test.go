// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/causeway-lb/causeway/internal/provisioner"
	"github.com/causeway-lb/causeway/internal/testkit/provisionertest"
)

func TestConformance(t *testing.T) {
	provisionertest.Run(t, provisionertest.Subject{
		Setup: func(t *testing.T) func(*testing.T, *provisionertest.Cluster) provisioner.Provisioner {
			s := newStore(1, 0)
			return func(t *testing.T, c *provisionertest.Cluster) provisioner.Provisioner {
				index := NewIndex()
				index.SetPool(with(pool("a", "192.0.2.10-192.0.2.40"), func(p *Pool) { p.Quarantine = time.Minute }))
				p, err := New(Config{Index: index, Records: s, Ports: c.Ports})
				if err != nil {
					t.Fatal(err)
				}
				(&watcher{store: s, index: index}).catchUp(-1)
				return p
			}
		},
		Ports: []uint16{80, 443, 8080}, Family: corev1.IPv4Protocol,
		Spare: addr("192.0.2.33"), Outside: addr("198.51.100.1"),
	})
}
