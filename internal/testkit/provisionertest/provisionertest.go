// SPDX-License-Identifier: Apache-2.0

package provisionertest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/causeway-lb/causeway/internal/alloc"
	"github.com/causeway-lb/causeway/internal/provisioner"
)

// Subject is what is tested.
type Subject struct {
	// Setup makes a world outside, empty, that lasts for one case, and returns
	// how to start a provisioner on it. It is started again in the case, as
	// after a crash: nothing of the one before may be used but the world.
	Setup func(t *testing.T) (start func(t *testing.T, c *Cluster) provisioner.Provisioner)
	// Ports are at least three that can be served.
	Ports []uint16
	// Family that it has addresses of.
	Family corev1.IPFamily
	// Spare is an address that it has, Outside one that it does not have.
	Spare, Outside netip.Addr
	// Nodes for Ensure.
	Nodes []provisioner.Node
}

// Service is what the API shows of a Service: Request.Current is its status.
type Service struct {
	Request provisioner.Request
}

// Cluster is the Services and their statuses.
type Cluster struct {
	mu       sync.Mutex
	services map[string]Service
}

// Services lists them, ordered by name.
func (c *Cluster) Services() []Service {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []Service
	for _, s := range c.services {
		out = append(out, s)
	}
	slices.SortFunc(out, func(a, b Service) int { return cmp.Compare(a.Request.Owner.Name, b.Request.Owner.Name) })
	return out
}

// Ports are those of a Service.
func (c *Cluster) Ports(o alloc.Owner) []provisioner.Port {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.services[o.Name].Request.Ports
}

func (c *Cluster) put(s Service) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.services[s.Request.Owner.Name] = s
}

func (c *Cluster) remove(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.services, name)
}

// run is one case.
type run struct {
	*testing.T
	subject Subject
	cluster *Cluster
	start   func(*testing.T, *Cluster) provisioner.Provisioner
	p       provisioner.Provisioner
}

// Run runs the suite.
func Run(t *testing.T, s Subject) {
	for _, c := range []struct {
		name string
		run  func(*run)
	}{
		{"serves a Service at every address it gives", servesWhatItGives},
		{"gives the same again", givesTheSame},
		{"gives nothing to two", givesNothingTwice},
		{"gives what is asked for, or refuses and takes nothing away", givesWhatIsAsked},
		{"keeps everything over a restart", keepsOverRestart},
		{"gives a newcomer after a restart nothing that is held", newcomerAfterRestart},
		{"gives again what was released", givesReleased},
		{"keeps the address when ports change", keepsWhenPortsChange},
		{"knows nothing of strangers", knowsNoStrangers},
		{"refuses what it is not capable of", refusesIncapable},
		{"works for many at once", worksConcurrently},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := &run{T: t, subject: s, cluster: &Cluster{services: map[string]Service{}}}
			r.start = s.Setup(t)
			r.restart()
			c.run(r)
		})
	}
}

// restart begins again with nothing but the world and the statuses.
func (r *run) restart() { r.p = r.start(r.T, r.cluster) }

// request is a Service of one port, the i-th.
func (r *run) request(name string, i int) provisioner.Request {
	return provisioner.Request{
		Owner:    alloc.Owner{Namespace: "conformance", Name: name, UID: "uid-" + name},
		Families: []corev1.IPFamily{r.subject.Family}, Policy: corev1.IPFamilyPolicySingleStack,
		Ports: []provisioner.Port{{Protocol: corev1.ProtocolTCP, Port: r.subject.Ports[i]}},
	}
}

// reconcile does what the controller does, and returns the allocation and the
// result. Allocation.Unmet is for the caller to judge.
func (r *run) reconcile(ctx context.Context, req provisioner.Request) (provisioner.Allocation, provisioner.Result, error) {
	var refused *provisioner.AllocationError
	if err := r.p.Capabilities().Check(r.p.Class(), req); err != nil {
		return provisioner.Allocation{}, provisioner.Result{}, err
	}
	if err := r.p.Reserve(ctx, req, req.Current); err != nil && !errors.As(err, &refused) {
		return provisioner.Allocation{}, provisioner.Result{}, fmt.Errorf("reserve: %w", err)
	}
	held, err := r.p.Allocate(ctx, req)
	if err != nil {
		return held, provisioner.Result{}, fmt.Errorf("allocate: %w", err)
	}
	req.Current = held.Addresses
	r.cluster.put(Service{Request: req})
	if len(held.Addresses) == 0 {
		return held, provisioner.Result{}, nil
	}
	result, err := r.p.Ensure(ctx, r.desired(req, held.Addresses))
	if err != nil {
		return held, result, fmt.Errorf("ensure: %w", err)
	}
	return held, result, nil
}

func (r *run) desired(req provisioner.Request, addrs []netip.Addr) provisioner.Desired {
	want := provisioner.Desired{Owner: req.Owner, Addresses: addrs, Nodes: r.subject.Nodes}
	for i, p := range req.Ports {
		want.Ports = append(want.Ports, provisioner.ServicePort{Name: fmt.Sprint("p", i), Port: p, NodePort: 30000 + p.Port%1000})
	}
	return want
}

// must reconciles a request that has to be met.
func (r *run) must(req provisioner.Request) []netip.Addr {
	r.Helper()
	held, result, err := r.reconcile(r.Context(), req)
	if err != nil {
		r.Fatalf("%s: %v", req.Owner, err)
	}
	if held.Unmet != nil || len(held.Addresses) == 0 {
		r.Fatalf("%s: unmet: %+v", req.Owner, held)
	}
	r.served(held.Addresses, result)
	return held.Addresses
}

// served compares the ingress with the addresses.
func (r *run) served(addrs []netip.Addr, result provisioner.Result) {
	r.Helper()
	var at []netip.Addr
	for _, in := range result.Ingress {
		at = append(at, in.Address)
		if in.IPMode == "" {
			r.Errorf("%s has no ipMode", in.Address)
		}
		if len(in.PortErrors) > 0 {
			r.Errorf("%s: errors of ports: %v", in.Address, in.PortErrors)
		}
	}
	if !slices.Equal(at, addrs) {
		r.Errorf("served at %v, want %v", at, addrs)
	}
	if result.RequeueAfter < 0 {
		r.Errorf("requeue after %v", result.RequeueAfter)
	}
}

// current is the request as it is after the status has been written.
func (r *run) current(name string) provisioner.Request {
	for _, s := range r.cluster.Services() {
		if s.Request.Owner.Name == name {
			return s.Request
		}
	}
	r.Fatalf("there is no Service %s", name)
	return provisioner.Request{}
}

// end deletes a Service as the controller does.
func (r *run) end(name string) {
	r.Helper()
	owner := r.request(name, 0).Owner
	if err := r.p.Remove(r.Context(), owner); err != nil {
		r.Fatalf("remove %s: %v", name, err)
	}
	if err := r.p.Release(r.Context(), owner); err != nil {
		r.Fatalf("release %s: %v", name, err)
	}
	r.cluster.remove(name)
}
