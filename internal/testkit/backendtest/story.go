// SPDX-License-Identifier: Apache-2.0

package backendtest

import (
	"context"
	"maps"
	"slices"

	"k8s.io/apimachinery/pkg/types"

	"github.com/causeway-lb/causeway/internal/proxy/backend"
	"github.com/causeway-lb/causeway/internal/proxy/model"
	"github.com/causeway-lb/causeway/internal/testkit/modeltest"
)

// Story is a random sequence of changes, and which of them a backend still has
// to be told. The same seed tells the same one.
type Story struct {
	// MasqueradeAll is the node's.
	MasqueradeAll bool

	world   *modeltest.World
	state   *model.State
	pending map[types.NamespacedName]bool
}

// NewStory begins one, without Services.
func NewStory(seed uint64) *Story {
	w := modeltest.New(seed)
	return &Story{
		MasqueradeAll: w.Node.MasqueradeAll, world: w, state: model.NewState(w.Node), pending: map[types.NamespacedName]bool{},
	}
}

// Change changes something about one Service.
func (s *Story) Change() {
	name := s.world.Change()
	var changes []model.Change
	if in, ok := s.world.Input(name); ok {
		changes = s.state.Set(in)
	} else {
		changes = s.state.Delete(name)
	}
	for _, c := range changes {
		s.pending[c.Name] = true
	}
}

// Desired is what has come of it.
func (s *Story) Desired() model.Desired {
	d := s.state.Desired()
	d.Node.MasqueradeAll = s.MasqueradeAll
	return d
}

// Sync tells a backend what it was not told yet, or of anything if full.
func (s *Story) Sync(ctx context.Context, b backend.Backend, full bool) error {
	changed := slices.AppendSeq([]types.NamespacedName{}, maps.Keys(s.pending))
	if full {
		changed = nil
	}
	_, err := Sync(ctx, b, s.Desired(), changed)
	if err == nil {
		clear(s.pending)
	}
	return err
}
