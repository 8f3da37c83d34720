// SPDX-License-Identifier: Apache-2.0

package syncer

import (
	"slices"

	"k8s.io/apimachinery/pkg/types"

	"github.com/causeway-lb/causeway/internal/proxy/model"
)

// problems reports what is wrong with Services, by the model and by the Backend.
type problems struct {
	report  func(types.NamespacedName, []model.Problem) // may be nil
	backend map[types.NamespacedName][]model.Problem
}

// tell reports a Service's problems; computed are the model's.
func (p *problems) tell(name types.NamespacedName, computed []model.Problem) {
	if p.report != nil {
		p.report(name, slices.Concat(computed, p.backend[name]))
	}
}

// take takes in the Backend's problems of the Services for which looked says so,
// and reports those that have changed.
func (p *problems) take(found []model.Problem, looked func(types.NamespacedName) bool, computed func(types.NamespacedName) []model.Problem) {
	next := map[types.NamespacedName][]model.Problem{}
	for _, f := range found {
		next[f.Service] = append(next[f.Service], f)
	}
	last := p.backend
	for name, old := range last {
		if !looked(name) {
			next[name] = old
		}
	}
	p.backend = next
	for name, old := range last {
		if len(next[name]) == 0 && len(old) > 0 {
			p.tell(name, computed(name))
		}
	}
	for name, ps := range next {
		if !slices.Equal(ps, last[name]) {
			p.tell(name, computed(name))
		}
	}
}
