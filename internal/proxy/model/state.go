// SPDX-License-Identifier: Apache-2.0

package model

import (
	"cmp"
	"fmt"
	"iter"
	"maps"
	"slices"
	"time"

	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"
)

type sliceT = discoveryv1.EndpointSlice

// Snapshot is everything that Desired follows from.
type Snapshot struct {
	Node     Node
	Services []Input
}

// Compute gives all that the node must do. It equals what a State gives that
// was fed the same Services in any order.
func Compute(snap Snapshot) (Desired, []Problem) {
	s := NewState(snap.Node)
	for _, in := range snap.Services {
		s.Set(in)
	}
	var problems []Problem
	for _, name := range slices.SortedFunc(maps.Keys(s.services), compareNames) {
		problems = append(problems, s.Problems(name)...)
	}
	return s.Desired(), problems
}

func compareNames(a, b types.NamespacedName) int {
	return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
}

// State keeps Desired up to date, one Service at a time. It knows which
// Services claim which frontend, so that a conflict costs its parties only.
// Not safe for concurrent use; what Desired and Service give may be read by
// others while State goes on, except the map itself.
type State struct {
	node     *nodeFacts
	services map[types.NamespacedName]*entry
	desired  map[types.NamespacedName]*Service
	// claims has the claimants of each frontend, the winner first.
	claims map[Key][]claim
	// touched are those whom the last step may concern.
	touched map[types.NamespacedName]bool
}

type entry struct {
	// computed is the Service as if it were alone.
	computed *Service
	problems []Problem
	created  time.Time
}

type claim struct {
	service types.NamespacedName
	kind    Kind
	created time.Time
}

// compare orders claims, the winner first: a ClusterIP belongs to its Service
// by the API server's word, then the older Service wins.
func (c claim) compare(o claim) int {
	return cmp.Or(cmp.Compare(c.kind, o.kind), c.created.Compare(o.created), compareNames(c.service, o.service))
}

// NewState gives the State of a node without Services.
func NewState(node Node) *State {
	return &State{
		node:     newNodeFacts(node),
		services: map[types.NamespacedName]*entry{},
		desired:  map[types.NamespacedName]*Service{},
		claims:   map[Key][]claim{},
	}
}

// Desired is the current result. It shares State's map: read it before the
// next Set or Delete, or clone it.
func (s *State) Desired() Desired { return Desired{Node: s.node.Node, Services: s.desired} }

// Service gives what is done for one Service, nil if nothing.
func (s *State) Service(name types.NamespacedName) *Service { return s.desired[name] }

// Change is the step of one Service; nil is nothing to do for it.
type Change struct {
	Name     types.NamespacedName
	Old, New *Service
}

// Set takes in a new or changed Service with all its slices and returns the
// Services whose result changed by it, by name: mostly itself, or nobody.
func (s *State) Set(in Input) []Change {
	name := types.NamespacedName{Namespace: in.Service.Namespace, Name: in.Service.Name}
	computed, problems := computeService(in, s.node)
	next := &entry{computed: computed, problems: problems, created: in.Service.CreationTimestamp.Time}
	return s.replace(name, next)
}

// Delete forgets a Service and returns the Services whose result changed.
func (s *State) Delete(name types.NamespacedName) []Change {
	return s.replace(name, nil)
}

func (s *State) replace(name types.NamespacedName, next *entry) []Change {
	prev := s.services[name]
	touched := map[types.NamespacedName]bool{name: true}
	s.touched = touched
	if prev != nil && !(next != nil && prev.sameClaims(next)) {
		for i := range prev.computed.Frontends {
			s.unclaim(prev.computed.Frontends[i].Key, name, touched)
		}
	}
	if next != nil && !(prev != nil && prev.sameClaims(next)) {
		for i := range next.computed.Frontends {
			f := &next.computed.Frontends[i]
			s.claim(f.Key, claim{service: name, kind: f.Kind, created: next.created}, touched)
		}
	}
	if next == nil {
		delete(s.services, name)
	} else {
		s.services[name] = next
	}
	var changes []Change
	for t := range touched {
		old := s.desired[t]
		if s.resolve(t) {
			changes = append(changes, Change{Name: t, Old: old, New: s.desired[t]})
		}
	}
	slices.SortFunc(changes, func(a, b Change) int { return compareNames(a.Name, b.Name) })
	return changes
}

// sameClaims says that next claims what e claims, which spares the index.
func (e *entry) sameClaims(next *entry) bool {
	return e.created.Equal(next.created) &&
		slices.EqualFunc(e.computed.Frontends, next.computed.Frontends, func(a, b Frontend) bool {
			return a.Key == b.Key && a.Kind == b.Kind
		})
}

func (s *State) claim(k Key, c claim, touched map[types.NamespacedName]bool) {
	cs := s.claims[k]
	for _, o := range cs {
		touched[o.service] = true
	}
	i, _ := slices.BinarySearchFunc(cs, c, claim.compare)
	s.claims[k] = slices.Insert(cs, i, c)
}

func (s *State) unclaim(k Key, name types.NamespacedName, touched map[types.NamespacedName]bool) {
	cs := slices.DeleteFunc(s.claims[k], func(c claim) bool { return c.service == name })
	if len(cs) == 0 {
		delete(s.claims, k)
		return
	}
	s.claims[k] = cs
	for _, o := range cs {
		touched[o.service] = true
	}
}

// resolve brings desired[name] up to date and says whether it changed.
func (s *State) resolve(name types.NamespacedName) bool {
	prev := s.desired[name]
	e := s.services[name]
	if e == nil {
		delete(s.desired, name)
		return prev != nil
	}
	next := s.won(e)
	if prev.Equal(next) {
		return false
	}
	if len(next.Frontends) == 0 && next.HealthCheckPort == 0 {
		delete(s.desired, name)
		return prev != nil
	}
	s.desired[name] = next
	return true
}

// won is the computed Service without the frontends that others own.
func (s *State) won(e *entry) *Service {
	mine := func(f *Frontend) bool { return s.claims[f.Key][0].service == e.computed.Name }
	fs := e.computed.Frontends
	lost := 0
	for i := range fs {
		if !mine(&fs[i]) {
			lost++
		}
	}
	if lost == 0 {
		return e.computed
	}
	out := *e.computed
	out.Frontends = make([]Frontend, 0, len(fs)-lost)
	for i := range fs {
		if mine(&fs[i]) {
			out.Frontends = append(out.Frontends, fs[i])
		}
	}
	return &out
}

// Touched gives the Services whose Problems the last Set or Delete may have
// changed: that Service, and those that claim a frontend that it came to claim,
// or claims no more. In no order.
func (s *State) Touched() iter.Seq[types.NamespacedName] { return maps.Keys(s.touched) }

// Problems lists what cannot be programmed of a Service, conflicts included.
func (s *State) Problems(name types.NamespacedName) []Problem {
	e := s.services[name]
	if e == nil {
		return nil
	}
	ps := slices.Clone(e.problems)
	for i := range e.computed.Frontends {
		f := &e.computed.Frontends[i]
		if owner := s.claims[f.Key][0].service; owner != name {
			ps = tell(ps, Problem{Service: name, Reason: "FrontendConflict", Message: fmt.Sprintf(
				"%s %s belongs to Service %s, which has it by being older or by its ClusterIP: change the port or the address of one of them",
				f.Kind, f.Key, owner)})
		}
	}
	return ps
}
