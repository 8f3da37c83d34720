// SPDX-License-Identifier: Apache-2.0

package services

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/causeway-lb/causeway/internal/alloc"
)

// Request is a Service that the API server is about to store.
type Request struct {
	// Service is the object as sent, with defaults.
	Service *corev1.Service
	// Old is what it replaces; nil when it is new.
	Old *corev1.Service
	// NamespaceLabels are those of its namespace.
	NamespaceLabels map[string]string
	// UID is the request's.
	UID string
	// DryRun asks for the same checks without a trace.
	DryRun bool
	Now    time.Time
	// Random returns 64 evenly distributed bits.
	Random func() uint64
	Epoch  alloc.Epoch
}

// Grant is what to write into the Service. The zero value changes nothing.
type Grant struct {
	// ClusterIPs is the whole of spec.clusterIPs; nil to leave it alone.
	ClusterIPs []string
	// NodePorts are by place in spec.ports.
	NodePorts map[int]uint16
	// HealthCheckNodePort is 0 to leave it alone.
	HealthCheckNodePort uint16
	// Former are the addresses that the Service asked for in their quarantine, or
	// had before. What keeps the API server from granting them has to go first;
	// if that is none of ours, Deny the address and ask again.
	Former []netip.Addr
}

// Reason says in one word why a request was denied.
type Reason string

// The reasons.
const (
	Taken    Reason = "Taken"    // another Service has the value
	Foreign  Reason = "Foreign"  // the value belongs to a pool that does not select the Service
	Outside  Reason = "Outside"  // the value belongs to none of the pools that select the Service
	Reserved Reason = "Reserved" // the port is reserved in its pool
	Full     Reason = "Full"     // no pool that selects the Service has a free value
	Quota    Reason = "Quota"    // the namespace has as much as it may
)

// Denied says why a Service may not be stored as it is, and what to do.
type Denied struct {
	Reason Reason
	Field  string
	Detail string
	// Holder is who has the value, for Taken. What is known may be behind: look
	// before telling anyone.
	Holder alloc.Owner
}

// Error names the field first, if there is one.
func (d *Denied) Error() string {
	if d.Field == "" {
		return d.Detail
	}
	return d.Field + ": " + d.Detail
}

// Admit grants a Service what it needs, or returns a *Denied. A Service for which
// there is nothing to do is granted nothing.
func (a *Allocations) Admit(req Request) (Grant, error) {
	if !a.HasPools() || exempt(req.Service) {
		return Grant{}, nil
	}
	a.Expire(req.Now)
	d := &admission{Allocations: a, req: req, who: subject{
		owner:           alloc.Owner{Namespace: req.Service.Namespace, Name: req.Service.Name, UID: req.UID},
		labels:          labels.Set(req.Service.Labels),
		namespaceLabels: labels.Set(req.NamespaceLabels),
	}}
	for _, svc := range []*corev1.Service{req.Service, req.Old} {
		if svc != nil {
			for _, n := range portsOf(svc) {
				d.given = append(d.given, alloc.Ports().Format(n))
			}
		}
	}
	grant, err := d.admit()
	if err != nil || req.DryRun {
		for _, undo := range d.undo {
			undo()
		}
		grant = Grant{}
	}
	return grant, err
}

// exempt is the API server's own Service, whose address it chose before there
// could be any pool.
func exempt(svc *corev1.Service) bool {
	return svc.Namespace == metav1.NamespaceDefault && svc.Name == "kubernetes"
}

// admission works on one request.
type admission struct {
	*Allocations
	req   Request
	who   subject
	undo  []func()
	given []string // what the Service has and what it was granted so far, as text
}

func (d *admission) admit() (grant Grant, err error) {
	if err := d.checkExternal(); err != nil {
		return Grant{}, err
	}
	needs := NeedsOf(d.req.Service, d.req.Old, d.Families())
	if err := d.grantAddresses(&grant, needs.Addresses); err != nil {
		return Grant{}, err
	}
	return grant, d.grantPorts(&grant, needs.Ports)
}

func (d *admission) grantAddresses(grant *Grant, needs []AddressNeed) error {
	ips := slices.Clone(clusterIPs(d.req.Service))
	if len(ips) == 0 && d.req.Old != nil && hasClusterIP(d.req.Old) {
		ips = slices.Clone(clusterIPs(d.req.Old))
	}
	for _, need := range needs {
		p := picker[netip.Addr]{d, d.addresses[need.Family], fmt.Sprintf("spec.clusterIPs[%d]", need.Index)}
		if need.Asked.IsValid() {
			quarantined := p.quarantined(need.Asked)
			if err := p.take(need.Asked); err != nil {
				return err
			}
			if quarantined {
				grant.Former = append(grant.Former, need.Asked)
			}
			continue
		}
		v, former, ok, err := p.choose()
		switch {
		case err != nil:
			return err
		case !ok || need.Index > len(ips):
			continue // the API server's business
		case former:
			grant.Former = append(grant.Former, v)
		}
		ips = append(ips[:need.Index], v.String())
		grant.ClusterIPs = ips
	}
	return nil
}

func (d *admission) grantPorts(grant *Grant, needs []PortNeed) error {
	for _, need := range needs {
		p := picker[uint16]{d, d.ports, "spec.healthCheckNodePort"}
		if len(need.Indexes) > 0 {
			p.field = fmt.Sprintf("spec.ports[%d].nodePort", need.Indexes[0])
		}
		n, ok := need.Asked, true
		var err error
		if n != 0 {
			err = p.take(n)
		} else {
			n, _, ok, err = p.choose()
		}
		if err != nil {
			return err
		}
		if !ok {
			continue
		}
		for _, i := range need.Indexes {
			if d.req.Service.Spec.Ports[i].NodePort == 0 {
				setPort(grant, i, n)
			}
		}
		if len(need.Indexes) == 0 && need.Asked == 0 {
			grant.HealthCheckNodePort = n
		}
	}
	return nil
}

func setPort(grant *Grant, i int, n uint16) {
	if grant.NodePorts == nil {
		grant.NodePorts = map[int]uint16{}
	}
	grant.NodePorts[i] = n
}

// Concerns reports whether Admit could grant or deny anything for a Service. It
// errs on the side of yes.
func (a *Allocations) Concerns(svc, old *corev1.Service) bool {
	if !a.HasPools() || exempt(svc) {
		return false
	}
	var had []field
	if old != nil {
		had = a.external(old)
	}
	needs := NeedsOf(svc, old, a.Families())
	return !slices.Equal(a.external(svc), had) || len(a.ports.list) > 0 && len(needs.Ports) > 0 ||
		len(a.addresses[corev1.IPv4Protocol].list) > 0 && len(needs.Addresses) > 0
}
