// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"context"
	"errors"
	"testing"
)

// heldSource syncs when it is let go.
type heldSource struct{ release chan error }

func (heldSource) Start(context.Context, queue) error { return nil }

func (s heldSource) WaitForSync(context.Context) error { return <-s.release }

// TestGate: the gate opens when the last source has synced, and never if one
// fails.
func TestGate(t *testing.T) {
	ended, end := context.WithCancel(t.Context())
	end()
	var g gate
	waiter := g.wait()
	pass := func(err error) func() {
		held := heldSource{make(chan error, 1)}
		held.release <- err
		source := g.after(held)
		return func() {
			if got := source.WaitForSync(t.Context()); !errors.Is(got, err) {
				t.Errorf("the source says %v, want %v", got, err)
			}
		}
	}
	first, last := pass(nil), pass(nil)
	first()
	if err := waiter.WaitForSync(ended); !errors.Is(err, context.Canceled) {
		t.Errorf("one source is missing, and the gate says %v", err)
	}
	last()
	if err := waiter.WaitForSync(t.Context()); err != nil {
		t.Errorf("all have synced, and the gate says %v", err)
	}

	g = gate{}
	pass(errors.New("no such kind"))()
	if err := g.wait().WaitForSync(ended); !errors.Is(err, context.Canceled) {
		t.Errorf("a source has failed, and the gate says %v", err)
	}
}
