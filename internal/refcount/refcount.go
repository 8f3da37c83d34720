// SPDX-License-Identifier: Apache-2.0

// Package refcount adds up what several owners want, of which two can want the
// same, and compares it with what is there.
//
//	wanted.Remove(what an owner wanted, touched)
//	wanted.Add(what it wants now, touched)
//	edits := Edits(touched, found, wanted.Get, compare)
//
// It is pure, and imports nothing of this module. Mode nftables counts its elements
// otherwise: it has some 300,000 of them at 10,000 Services and keeps those that only
// one Service can have uncounted, in flat memory.
package refcount

import "slices"

// Map is what is wanted, each value as long as an owner wants it. An owner wants a
// key at most once, and all owners the same value for it.
type Map[K, V comparable] map[K]*Counted[V]

// Counted is a value with the number of its owners.
type Counted[V comparable] struct {
	Value  V
	owners int
}

// Put adds an owner of one key.
func (m Map[K, V]) Put(key K, value V) {
	c := m[key]
	if c == nil {
		c = &Counted[V]{}
		m[key] = c
	}
	c.Value = value
	c.owners++
}

// Drop takes away an owner of one key. A key that none wants is left out.
func (m Map[K, V]) Drop(key K) {
	c := m[key]
	if c == nil {
		return
	}
	if c.owners--; c.owners == 0 {
		delete(m, key)
	}
}

// Add adds what an owner wants. touched collects the keys.
func (m Map[K, V]) Add(all map[K]V, touched map[K]bool) {
	for key, value := range all {
		touched[key] = true
		m.Put(key, value)
	}
}

// Remove takes away what an owner wanted. touched collects the keys.
func (m Map[K, V]) Remove(all map[K]V, touched map[K]bool) {
	for key := range all {
		touched[key] = true
		m.Drop(key)
	}
}

// Get returns the value that is wanted for a key, if one is.
func (m Map[K, V]) Get(key K) (value V, ok bool) {
	if c := m[key]; c != nil {
		return c.Value, true
	}
	return value, false
}

// Values returns what is wanted.
func (m Map[K, V]) Values() map[K]V {
	all := make(map[K]V, len(m))
	for key, c := range m {
		all[key] = c.Value
	}
	return all
}

// Edit is a step from what is there to what is wanted. Had and Has report whether
// there is a value before and after.
type Edit[K, V comparable] struct {
	Key      K
	Old, New V
	Had, Has bool
}

// Edits returns the steps for the touched keys that differ, sorted by compare.
func Edits[K, V comparable](touched map[K]bool, found map[K]V, wanted func(K) (V, bool), compare func(a, b K) int) []Edit[K, V] {
	var edits []Edit[K, V]
	for key := range touched {
		e := Edit[K, V]{Key: key}
		e.Old, e.Had = found[key]
		e.New, e.Has = wanted(key)
		if e.Had != e.Has || e.Old != e.New {
			edits = append(edits, e)
		}
	}
	slices.SortFunc(edits, func(a, b Edit[K, V]) int { return compare(a.Key, b.Key) })
	return edits
}

// Differences counts the keys at which two maps differ.
func Differences[K, V comparable](a, b map[K]V) int {
	n := 0
	for key, value := range a {
		if other, ok := b[key]; !ok || other != value {
			n++
		}
	}
	for key := range b {
		if _, ok := a[key]; !ok {
			n++
		}
	}
	return n
}
