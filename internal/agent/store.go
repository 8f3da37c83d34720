// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/causeway-lb/causeway/api/v1alpha1"
	"github.com/causeway-lb/causeway/internal/proxy/model"
)

// Kind is a kind of object in the Store.
type Kind uint8

// The kinds.
const (
	KindService Kind = iota
	KindEndpointSlice
	KindNode
	KindLoadBalancerAddress
	KindLoadBalancerPool
	numKinds
)

// String is the kind's name in the API.
func (k Kind) String() string {
	return [...]string{"Service", "EndpointSlice", "Node", "LoadBalancerAddress", "LoadBalancerPool"}[k]
}

// Event is an added, changed or deleted object. For KindEndpointSlice the Name is that
// of the Service.
type Event struct {
	Kind Kind
	Name types.NamespacedName
	// Trigger is when the cause happened; zero if unknown.
	Trigger time.Time
}

// Store has the API's objects, stripped to what the agent needs. Safe for concurrent
// use. Objects that it returns are shared and must not be modified.
type Store struct {
	self string // this node's name; set before anything is put in

	mu        sync.RWMutex
	services  map[types.NamespacedName]*corev1.Service
	slices    map[types.NamespacedName]map[string]*discoveryv1.EndpointSlice // by Service
	owners    map[types.NamespacedName]sliceOwner                            // by slice
	older     map[types.NamespacedName]map[string][]corev1.ServicePort       // by Service and slice: see noteFormer
	nodes     map[string]*corev1.Node
	addresses map[string]*v1alpha1.LoadBalancerAddress
	pools     map[string]*v1alpha1.LoadBalancerPool
	listed    [numKinds]chan struct{}
	listeners []func(Event)
	strings   map[string]*string
	former    map[string]*corev1.Node    // that were deleted, some of them
	inherited map[string]map[string]bool // by Node: what it has from the one before, see inherit
}

// sliceOwner is what is known of a slice besides its content.
type sliceOwner struct {
	service types.NamespacedName
	// trigger is when its last known change was caused, zero if unknown.
	trigger time.Time
}

// NewStore returns an empty Store.
func NewStore() *Store {
	s := &Store{
		services:  map[types.NamespacedName]*corev1.Service{},
		slices:    map[types.NamespacedName]map[string]*discoveryv1.EndpointSlice{},
		owners:    map[types.NamespacedName]sliceOwner{},
		older:     map[types.NamespacedName]map[string][]corev1.ServicePort{},
		nodes:     map[string]*corev1.Node{},
		addresses: map[string]*v1alpha1.LoadBalancerAddress{},
		pools:     map[string]*v1alpha1.LoadBalancerPool{},
		strings:   map[string]*string{},
		former:    map[string]*corev1.Node{},
		inherited: map[string]map[string]bool{},
	}
	for k := range s.listed {
		s.listed[k] = make(chan struct{})
	}
	return s
}

// Listen registers f, which is called for every later Event, by the goroutine that
// feeds the Store and after the Store shows the change. f must not block.
func (s *Store) Listen(f func(Event)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.listeners = append(s.listeners, f)
}

// Listed is closed when the Store has all objects of the kind that existed at the start.
func (s *Store) Listed(k Kind) <-chan struct{} { return s.listed[k] }

// WaitListed waits until several kinds are Listed; it returns ctx's error.
func (s *Store) WaitListed(ctx context.Context, kinds ...Kind) error {
	for _, k := range kinds {
		select {
		case <-s.listed[k]:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// Names lists all Services; it is part of syncer.Source.
func (s *Store) Names() []types.NamespacedName {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return slices.Collect(maps.Keys(s.services))
}

// Input returns a Service and its slices; it is part of syncer.Source.
func (s *Store) Input(name types.NamespacedName) (model.Input, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	svc := s.services[name]
	if svc == nil {
		return model.Input{}, false
	}
	return model.Input{Service: svc, Slices: slices.Collect(maps.Values(s.slices[name])), Former: maps.Clone(s.older[name])}, true
}

// Service returns a Service, nil if there is none.
func (s *Store) Service(name types.NamespacedName) *corev1.Service {
	return lookUp(s, s.services, name)
}

// Slices returns the slices of a Service, in no order.
func (s *Store) Slices(service types.NamespacedName) []*discoveryv1.EndpointSlice {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return slices.Collect(maps.Values(s.slices[service]))
}

// Node returns a Node, nil if there is none.
func (s *Store) Node(name string) *corev1.Node { return lookUp(s, s.nodes, name) }

// Nodes returns all Nodes, by name.
func (s *Store) Nodes() []*corev1.Node { return sortedValues(s, s.nodes) }

// Addresses returns all LoadBalancerAddresses, by name.
func (s *Store) Addresses() []*v1alpha1.LoadBalancerAddress { return sortedValues(s, s.addresses) }

// Address returns a LoadBalancerAddress by its object's name, nil if there is none.
func (s *Store) Address(name string) *v1alpha1.LoadBalancerAddress {
	return lookUp(s, s.addresses, name)
}

// Pools returns all LoadBalancerPools, by name.
func (s *Store) Pools() []*v1alpha1.LoadBalancerPool { return sortedValues(s, s.pools) }

// Pool returns a LoadBalancerPool, nil if there is none.
func (s *Store) Pool(name string) *v1alpha1.LoadBalancerPool { return lookUp(s, s.pools, name) }

func lookUp[K comparable, T any](s *Store, m map[K]T, name K) T {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return m[name]
}

func sortedValues[T any](s *Store, m map[string]T) []T {
	s.mu.RLock()
	defer s.mu.RUnlock()
	out := make([]T, 0, len(m))
	for _, name := range slices.Sorted(maps.Keys(m)) {
		out = append(out, m[name])
	}
	return out
}

func (s *Store) notify(events ...Event) {
	s.mu.RLock()
	listeners := s.listeners
	s.mu.RUnlock()
	for _, e := range events {
		for _, f := range listeners {
			f(e)
		}
	}
}
