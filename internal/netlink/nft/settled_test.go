// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"errors"
	"sync"
	"sync/atomic"
	"testing"
)

// While another process writes to a set, a dump of it lacks elements that nobody
// touches, and the kernel does not say so.
func TestReadWhileOthersWrite(t *testing.T) {
	const still, moving, rounds, busy = 4000, 400, 8, 3
	c, m := dial(t)
	var b Batch
	for i := range still + moving {
		b.AddElement(table, m.Name, elementOf(i))
	}
	if err := c.Commit(&b); err != nil {
		t.Fatal(err)
	}
	other, err := Dial()
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()

	for range rounds {
		var attempts atomic.Int32
		var over atomic.Bool
		writing, written := make(chan struct{}), make(chan error, 1)
		go func() {
			var err error
			var once sync.Once
			for ; err == nil && attempts.Load() <= busy && !over.Load(); once.Do(func() { close(writing) }) {
				var del, add Batch
				for i := range moving {
					del.DeleteElement(table, m.Name, elementOf(still+i))
					add.AddElement(table, m.Name, elementOf(still+i))
				}
				if err = other.Commit(&del); err == nil {
					err = other.Commit(&add)
				}
			}
			written <- err
		}()
		<-writing
		have := map[string]bool{}
		settled, err := c.ReadElements(table, m.Name, func() { attempts.Add(1); clear(have) }, func(e *RawElement) bool {
			again := have[string(e.Key)]
			have[string(e.Key)] = true
			return !again
		})
		over.Store(true)
		if err := errors.Join(err, <-written); err != nil {
			t.Fatal(err)
		}
		missing := 0
		for i := range still {
			if !have[elementOf(i).Key] {
				missing++
			}
		}
		if !settled || missing > 0 {
			t.Errorf("settled %v after %d attempts, %d of %d elements missing that nobody touched", settled, attempts.Load(), missing, still)
		}
	}
}

func TestGeneration(t *testing.T) {
	c, m := dial(t)
	generation := func() uint32 {
		g, err := c.Generation()
		if err != nil {
			t.Fatal(err)
		}
		return g
	}
	before := generation()
	if again := generation(); again != before {
		t.Errorf("generation %d and then %d, though nobody wrote", before, again)
	}
	var b Batch
	b.AddElement(table, m.Name, elementOf(1))
	if err := c.Commit(&b); err != nil {
		t.Fatal(err)
	}
	if after := generation(); after == before {
		t.Errorf("generation %d before and after a transaction", before)
	}
}
