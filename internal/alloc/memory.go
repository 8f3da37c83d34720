// SPDX-License-Identifier: Apache-2.0

package alloc

import "slices"

const (
	maxNames  = 1 << 16 // names remembered; the oldest go first
	maxValues = 512     // values remembered of one name
)

// memory knows, by name, which values Services had, so that one that is deleted
// and created again can have them back. It claims nothing.
type memory[V comparable] struct {
	values map[name][]V
	order  []name // the keys of values, oldest first
}

type name struct{ namespace, name string }

func newMemory[V comparable]() memory[V] { return memory[V]{values: map[name][]V{}} }

// add remembers one more value, and reports whether it was not remembered before.
func (m *memory[V]) add(o Owner, v V) (novel bool) {
	had := m.of(o)
	if slices.Contains(had, v) || len(had) >= maxValues {
		return false
	}
	m.set(o, append(had, v))
	return true
}

// set remembers these values and no others. It keeps the slice's length, and
// may share its array: no code writes to a slice that was observed.
func (m *memory[V]) set(o Owner, values []V) {
	if o.Name == "" {
		return
	}
	key := name{o.Namespace, o.Name}
	if _, known := m.values[key]; !known {
		m.order = append(m.order, key)
	}
	m.values[key] = slices.Clip(values)
	for len(m.values) > maxNames {
		delete(m.values, m.order[0])
		m.order = m.order[1:]
	}
}

// drop takes back what add did.
func (m *memory[V]) drop(o Owner, v V) {
	if had := m.of(o); slices.Contains(had, v) {
		m.set(o, slices.DeleteFunc(slices.Clone(had), func(w V) bool { return w == v }))
	}
}

func (m *memory[V]) of(o Owner) []V {
	if o.Name == "" {
		return nil
	}
	return m.values[name{o.Namespace, o.Name}]
}
