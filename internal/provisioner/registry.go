// SPDX-License-Identifier: Apache-2.0

package provisioner

import (
	"fmt"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
)

// Registry finds the provisioner of a Service by its class. It does not change
// once made, so it is safe for concurrent use.
type Registry struct {
	byClass   map[string]Provisioner
	byDefault Provisioner
}

// NewRegistry returns a registry of these provisioners. A Service without a
// class is served by the one of defaultClass; with an empty defaultClass by
// none. Two provisioners of one class, and a default that is not there, are
// errors.
func NewRegistry(defaultClass string, provisioners ...Provisioner) (*Registry, error) {
	r := &Registry{byClass: make(map[string]Provisioner, len(provisioners))}
	for _, p := range provisioners {
		if _, taken := r.byClass[p.Class()]; taken {
			return nil, fmt.Errorf("register load balancer class %q: it is registered already: give each external load balancer a class of its own", p.Class())
		}
		r.byClass[p.Class()] = p
	}
	if defaultClass == "" {
		return r, nil
	}
	p, ok := r.byClass[defaultClass]
	if !ok {
		return nil, fmt.Errorf("use load balancer class %q by default: there is none of that name; there are %v", defaultClass, r.Classes())
	}
	r.byDefault = p
	return r, nil
}

// For returns the provisioner that serves svc; false if svc is not of type LoadBalancer or of
// another controller's class.
func (r *Registry) For(svc *corev1.Service) (Provisioner, bool) {
	if svc.Spec.Type != corev1.ServiceTypeLoadBalancer {
		return nil, false
	}
	if svc.Spec.LoadBalancerClass == nil {
		return r.byDefault, r.byDefault != nil
	}
	p, ok := r.byClass[*svc.Spec.LoadBalancerClass]
	return p, ok
}

// Class returns the provisioner of a class.
func (r *Registry) Class(class string) (Provisioner, bool) {
	p, ok := r.byClass[class]
	return p, ok
}

// Classes returns the classes, sorted.
func (r *Registry) Classes() []string {
	return slices.Sorted(maps.Keys(r.byClass))
}
