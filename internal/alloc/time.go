// SPDX-License-Identifier: Apache-2.0

package alloc

import (
	"container/heap"
	"time"
)

// deadlines orders values by when an allocation of theirs ends. An entry may be
// stale: the allocation ended earlier, or was replaced by one that ends later. It
// says when to look, not what to do.
type deadlines[V any] struct{ queue deadlineHeap[V] }

type deadline[V any] struct {
	at    time.Time
	value V
}

func (d *deadlines[V]) add(at time.Time, v V) { heap.Push(&d.queue, deadline[V]{at, v}) }

// pop removes and returns a value whose time has come.
func (d *deadlines[V]) pop(now time.Time) (v V, ok bool) {
	if len(d.queue) == 0 || d.queue[0].at.After(now) {
		return v, false
	}
	return heap.Pop(&d.queue).(deadline[V]).value, true
}

type deadlineHeap[V any] []deadline[V]

func (h deadlineHeap[V]) Len() int           { return len(h) }
func (h deadlineHeap[V]) Less(i, j int) bool { return h[i].at.Before(h[j].at) }
func (h deadlineHeap[V]) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *deadlineHeap[V]) Push(x any)        { *h = append(*h, x.(deadline[V])) }
func (h *deadlineHeap[V]) Pop() any {
	last := len(*h) - 1
	x := (*h)[last]
	*h = (*h)[:last]
	return x
}
