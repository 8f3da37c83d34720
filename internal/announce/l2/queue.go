// SPDX-License-Identifier: Apache-2.0

package l2

import (
	"container/heap"
	"time"
)

// deadlines orders entries by their machines' deadlines. An entry may be in it
// several times; only the one under entry.queued counts.
type deadlines []deadline

type deadline struct {
	at    time.Time
	entry *entry
}

// put takes the entry's present deadline.
func (d *deadlines) put(e *entry) {
	at := e.machine.Deadline()
	if at.Equal(e.queued) {
		return
	}
	e.queued = at
	if !at.IsZero() {
		heap.Push(d, deadline{at, e})
	}
}

// remove forgets an entry.
func (d *deadlines) remove(e *entry) { e.queued = time.Time{} }

// next returns the earliest deadline.
func (d *deadlines) next() (time.Time, bool) {
	for len(*d) > 0 {
		top := (*d)[0]
		if top.entry.queued.Equal(top.at) {
			return top.at, true
		}
		heap.Pop(d)
	}
	return time.Time{}, false
}

// run calls tick for every entry that is due at now. tick has to put the entry
// again.
func (d *deadlines) run(now time.Time, tick func(*entry)) {
	for {
		at, ok := d.next()
		if !ok || at.After(now) {
			return
		}
		e := heap.Pop(d).(deadline).entry
		e.queued = time.Time{}
		tick(e)
	}
}

func (d deadlines) Len() int           { return len(d) }
func (d deadlines) Less(i, j int) bool { return d[i].at.Before(d[j].at) }
func (d deadlines) Swap(i, j int)      { d[i], d[j] = d[j], d[i] }
func (d *deadlines) Push(x any)        { *d = append(*d, x.(deadline)) }
func (d *deadlines) Pop() any {
	last := (*d)[len(*d)-1]
	*d = (*d)[:len(*d)-1]
	return last
}
