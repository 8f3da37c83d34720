// SPDX-License-Identifier: Apache-2.0

package clusterip

import (
	"slices"
	"strings"
	"sync"

	"k8s.io/apimachinery/pkg/types"

	"github.com/causeway-lb/causeway/internal/alloc/services"
)

// problems has those of all Services, for the pools' status and the metrics. Safe for
// concurrent use.
type problems struct {
	changed func() // called after a change; it must not block

	mu  sync.Mutex
	all map[types.NamespacedName][]services.Problem
}

func (p *problems) set(key types.NamespacedName, found []services.Problem) {
	p.mu.Lock()
	defer p.mu.Unlock()
	before := p.all[key]
	if len(before) == 0 && len(found) == 0 {
		return
	}
	if len(before) > 0 {
		serviceProblems.WithLabelValues(before[0].Reason).Dec()
	}
	delete(p.all, key)
	if len(found) > 0 {
		serviceProblems.WithLabelValues(found[0].Reason).Inc()
		p.all[key] = found
	}
	p.changed()
}

// of returns the Services with a problem that concerns a pool, in order.
func (p *problems) of(pool string, addressPool bool) []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []string
	for key, found := range p.all {
		if slices.ContainsFunc(found, func(q services.Problem) bool {
			return q.AddressPools == addressPool && slices.Contains(q.Pools, pool)
		}) {
			out = append(out, key.String())
		}
	}
	slices.SortFunc(out, strings.Compare)
	return out
}
