// SPDX-License-Identifier: Apache-2.0

package book

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
	// Random gives 64 evenly distributed bits.
	Random func() uint64
	Turn   alloc.Turn
}

// Grant is what to write into the Service. The zero value changes nothing.
type Grant struct {
	// ClusterIPs is the whole of spec.clusterIPs; nil to leave it alone.
	ClusterIPs []string
	// NodePorts are by place in spec.ports.
	NodePorts map[int]uint16
	// HealthCheckNodePort is 0 to leave it alone.
	HealthCheckNodePort uint16
	// Former are the addresses that the Service asked for while they rested, or
	// had before. What keeps the API server from giving them out has to go first;
	// if that is none of ours, Deny the address and ask again.
	Former []netip.Addr
}

// Reason says in one word why a request was refused.
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

// Refused says why a Service may not be stored as it is, and what to do.
type Refused struct {
	Reason Reason
	Field  string
	Detail string
	// Holder is who has the value, for Taken. The book may be behind: look
	// before telling anyone.
	Holder alloc.Owner
}

// Error names the field first, if there is one.
func (r *Refused) Error() string {
	if r.Field == "" {
		return r.Detail
	}
	return r.Field + ": " + r.Detail
}

// Admit grants a Service what it needs, or refuses with a *Refused. A Service
// for which there is nothing to do is granted nothing.
func (b *Book) Admit(req Request) (Grant, error) {
	if !b.HasPools() || exempt(req.Service) {
		return Grant{}, nil
	}
	b.Expire(req.Now)
	d := &desk{Book: b, req: req, who: subject{
		owner:           alloc.Owner{Namespace: req.Service.Namespace, Name: req.Service.Name, UID: req.UID},
		labels:          labels.Set(req.Service.Labels),
		namespaceLabels: labels.Set(req.NamespaceLabels),
	}}
	for _, svc := range []*corev1.Service{req.Service, req.Old} {
		if svc != nil {
			_, _, ports := holds(svc)
			for _, n := range ports {
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

// desk works on one request.
type desk struct {
	*Book
	req   Request
	who   subject
	undo  []func()
	given []string // what the Service has and what it was granted so far, as text
}

func (d *desk) admit() (Grant, error) {
	if err := d.checkExternal(); err != nil {
		return Grant{}, err
	}
	needs := NeedsOf(d.req.Service, d.req.Old, d.Families())
	grant := Grant{}
	if err := d.grantAddresses(&grant, needs.Addresses); err != nil {
		return Grant{}, err
	}
	if err := d.grantPorts(&grant, needs.Ports); err != nil {
		return Grant{}, err
	}
	return grant, nil
}

func (d *desk) grantAddresses(grant *Grant, needs []AddressNeed) error {
	ips := slices.Clone(clusterIPs(d.req.Service))
	if len(ips) == 0 && d.req.Old != nil && hasClusterIP(d.req.Old) {
		ips = slices.Clone(clusterIPs(d.req.Old))
	}
	for _, need := range needs {
		c := counter[netip.Addr]{
			desk: d, ledger: d.addresses[need.Family], kind: alloc.Addresses(), resource: "ClusterIPPool", policies: d.clusterIP,
			field: fmt.Sprintf("spec.clusterIPs[%d]", need.Index),
			spans: func(p policy) []alloc.Span[netip.Addr] { return p.spans(need.Family) },
		}
		if need.Asked.IsValid() {
			rested := resting(c.ledger, need.Asked)
			if err := c.take(need.Asked); err != nil {
				return err
			}
			if rested {
				grant.Former = append(grant.Former, need.Asked)
			}
			continue
		}
		v, former, ok, err := c.choose()
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

func (d *desk) grantPorts(grant *Grant, needs []PortNeed) error {
	for _, need := range needs {
		c := counter[uint16]{
			desk: d, ledger: d.ports, kind: alloc.Ports(), resource: "NodePortPool", policies: d.nodePort,
			field:    "spec.healthCheckNodePort",
			spans:    func(p policy) []alloc.PortRange { return p.ports },
			reserved: func(p policy) []alloc.PortRange { return p.reserved },
		}
		if len(need.Indexes) > 0 {
			c.field = fmt.Sprintf("spec.ports[%d].nodePort", need.Indexes[0])
		}
		n, ok := need.Asked, true
		var err error
		if n != 0 {
			err = c.take(n)
		} else {
			n, _, ok, err = c.choose()
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

// Concerns tells whether Admit could grant or refuse anything for a Service. It
// errs on the side of yes.
func (b *Book) Concerns(svc, old *corev1.Service) bool {
	if !b.HasPools() || exempt(svc) {
		return false
	}
	var had []field
	if old != nil {
		had = b.external(old)
	}
	needs := NeedsOf(svc, old, b.Families())
	return !slices.Equal(b.external(svc), had) ||
		len(b.clusterIP) > 0 && len(needs.Addresses) > 0 || len(b.nodePort) > 0 && len(needs.Ports) > 0
}
