// SPDX-License-Identifier: Apache-2.0

package book

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/causeway-lb/causeway/api/v1alpha1"
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

// Error names the field first.
func (r *Refused) Error() string { return r.Field + ": " + r.Detail }

// Admit grants a Service what it needs, or refuses with a *Refused. A Service
// for which there is nothing to do is granted nothing.
func (b *Book) Admit(req Request) (Grant, error) {
	if !b.HasPools() || exempt(req.Service) {
		return Grant{}, nil
	}
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

// checkExternal refuses external IPs and LoadBalancer addresses that the
// Service did not have and that belong to pools that do not select it.
func (d *desk) checkExternal() error {
	had := map[netip.Addr]bool{}
	if d.req.Old != nil {
		for _, f := range external(d.req.Old) {
			had[f.addr] = true
		}
	}
	for _, f := range external(d.req.Service) {
		if had[f.addr] {
			continue
		}
		for _, set := range []struct {
			resource string
			policies []policy
		}{{"LoadBalancerPool", d.loadBalancer}, {"ClusterIPPool", d.clusterIP}} {
			inside := func(p policy) []alloc.Span[netip.Addr] { return p.spans(alloc.FamilyOf(f.addr)) }
			owners, mine := where(alloc.Addresses(), set.policies, inside, f.addr, d.who)
			if len(owners) > 0 && !mine {
				return &Refused{Reason: Foreign, Field: f.field, Detail: fmt.Sprintf(
					"%s belongs to %s %s, which does not select this Service: leave the address out, or ask an administrator to select the namespace or the Service's labels",
					f.addr, set.resource, strings.Join(owners, ", "))}
			}
		}
	}
	return nil
}

// field is an address with the field that it stands in.
type field struct {
	field string
	addr  netip.Addr
}

func external(svc *corev1.Service) []field {
	var out []field
	add := func(name, text string) {
		if a, err := netip.ParseAddr(strings.TrimSpace(text)); err == nil {
			out = append(out, field{name, a.Unmap()})
		}
	}
	for i, s := range svc.Spec.ExternalIPs {
		add(fmt.Sprintf("spec.externalIPs[%d]", i), s)
	}
	if svc.Spec.Type == corev1.ServiceTypeLoadBalancer {
		add("spec.loadBalancerIP", svc.Spec.LoadBalancerIP)
		for _, s := range strings.Split(svc.Annotations[v1alpha1.AddressesAnnotation], ",") {
			add("metadata.annotations["+v1alpha1.AddressesAnnotation+"]", s)
		}
	}
	return out
}

// where returns the names of the pools that have the value, and whether one of
// them selects the Service.
func where[V comparable](kind alloc.Kind[V], policies []policy, spans func(policy) []alloc.Span[V], v V, who subject) (names []string, mine bool) {
	for _, p := range policies {
		if !slices.ContainsFunc(spans(p), func(s alloc.Span[V]) bool { return kind.Compare(s.First, v) <= 0 && kind.Compare(v, s.Last) <= 0 }) {
			continue
		}
		names = append(names, p.name)
		mine = mine || p.selects(who)
	}
	return names, mine
}

// counter serves one request from one ledger.
type counter[V comparable] struct {
	*desk
	ledger          *alloc.Ledger[V]
	kind            alloc.Kind[V]
	resource, field string
	policies        []policy
	spans, reserved func(policy) []alloc.Span[V]
}

func (c *counter[V]) ask() alloc.Ask {
	ask := alloc.Ask{Owner: c.who.owner, Now: c.req.Now, Hold: c.config.Hold, Random: c.req.Random()}
	if c.req.Old != nil || c.reserved != nil {
		ask.Doubt = doubt
	}
	return ask
}

func (c *counter[V]) refuse(reason Reason, format string, args ...any) *Refused {
	return &Refused{Reason: reason, Field: c.field, Detail: fmt.Sprintf(format, args...)}
}

// mine returns the names of the pools of this kind that select the Service, in
// the order in which they are asked.
func (c *counter[V]) mine() []string {
	var out []string
	for _, p := range c.policies {
		if len(c.spans(p)) > 0 && p.selects(c.who) {
			out = append(out, p.name)
		}
	}
	return out
}

// take picks the value that the Service asks for.
func (c *counter[V]) take(v V) error {
	text := c.kind.Format(v)
	owners, selected := where(c.kind, c.policies, c.spans, v, c.who)
	if len(owners) > 0 && !selected {
		return c.refuse(Foreign, "%s belongs to %s %s, which does not select this Service: leave the field empty, or ask an administrator to select the namespace or the Service's labels",
			text, c.resource, strings.Join(owners, ", "))
	}
	if mine := c.mine(); len(owners) == 0 && len(mine) > 0 {
		return c.refuse(Outside, "%s is not in %s %s, which serves this Service: leave the field empty, or choose a value from there",
			text, c.resource, strings.Join(mine, ", "))
	}
	if c.reserved != nil {
		if pools, _ := where(c.kind, c.policies, c.reserved, v, c.who); len(pools) > 0 && !c.ledger.Mine(v, c.who.owner) {
			return c.refuse(Reserved, "%s is reserved in %s %s: leave the field empty, or choose another value", text, c.resource, strings.Join(pools, ", "))
		}
	}
	return c.pick(v)
}

// pick takes a value and remembers how to undo it.
func (c *counter[V]) pick(v V) error {
	had := c.ledger.Mine(v, c.who.owner)
	c.given = append(c.given, c.kind.Format(v))
	err := c.ledger.Take(v, c.ask())
	var taken *alloc.TakenError
	switch {
	case errors.As(err, &taken):
		refused := c.refuse(Taken, "%s is %s by Service %s: leave the field empty, or choose another value", taken.Value, taken.State, taken.Owner)
		refused.Holder = taken.Owner
		return refused
	case err != nil:
		return c.refuse(Quota, "%v: delete Services that are not needed, or ask an administrator to raise maxPerNamespace", err)
	case !had:
		c.undo = append(c.undo, func() { c.ledger.Drop(v, c.who.owner) })
	}
	return nil
}

// choose picks any value, and tells whether the Service had it before. It
// returns false when there is nothing to choose from, so that the API server
// has to.
func (c *counter[V]) choose() (v V, former, ok bool, err error) {
	if len(c.policies) == 0 {
		return v, false, false, nil
	}
	names := c.mine()
	if len(names) == 0 {
		names = []string{rest}
	}
	if v, ok := c.again(names); ok {
		return v, true, true, nil
	}
	var reasons []string
	reason := Full
	for _, name := range names {
		v, err := c.ledger.Next(name, c.ask())
		switch {
		case err == nil:
			c.undo = append(c.undo, func() { c.ledger.Drop(v, c.who.owner) })
			return v, false, true, nil
		case errors.Is(err, alloc.ErrNoPool):
			continue // the rest of a cluster whose ranges are not known
		case errors.Is(err, alloc.ErrQuota):
			reason = Quota
		}
		reasons = append(reasons, err.Error())
	}
	if len(reasons) == 0 {
		return v, false, false, nil
	}
	return v, false, false, c.refuse(reason, "no %s to give: %s: delete Services that are not needed, or ask an administrator to enlarge the %s",
		c.kind.Name, strings.Join(reasons, "; "), c.resource)
}

// again picks a value that a Service of this name had before and that is free,
// or that an earlier try of this request was granted.
func (c *counter[V]) again(pools []string) (v V, ok bool) {
	for _, v := range slices.Clone(c.ledger.Remembers(c.who.owner)) {
		inPool := slices.ContainsFunc(c.ledger.PoolsOf(v), func(name string) bool { return slices.Contains(pools, name) })
		if inPool && !c.used(v) && c.mayReuse(v) && !c.reservedNow(v) && c.pick(v) == nil {
			return v, true
		}
	}
	return v, false
}

// used tells whether the Service has the value already: the book may be behind.
func (c *counter[V]) used(v V) bool { return slices.Contains(c.given, c.kind.Format(v)) }

// mayReuse tells whether a value that this name had may be given to it once
// more. A pick that was not seen may be when the Service is created again and
// the caller can look whether it is booked, as it can for addresses; not for an
// update, see doubt.
func (c *counter[V]) mayReuse(v V) bool {
	ports, lost, own := c.reserved != nil, false, false
	for _, lease := range c.ledger.Leases(v) {
		mine := lease.Owner.Namespace == c.who.owner.Namespace && lease.Owner.Name == c.who.owner.Name
		switch {
		case lease.State == alloc.Held:
			return false
		case lease.State == alloc.Picked && (ports || c.req.Old != nil || c.req.Now.Sub(lease.Since) < concurrent):
			return false
		case lease.State == alloc.Doubted && !mine:
			lost = true
		}
		own = own || mine
	}
	return !lost || own && !ports
}

func (c *counter[V]) reservedNow(v V) bool {
	if c.reserved == nil {
		return false
	}
	pools, _ := where(c.kind, c.policies, c.reserved, v, c.who)
	return len(pools) > 0
}

func resting[V comparable](ledger *alloc.Ledger[V], v V) bool {
	return slices.ContainsFunc(ledger.Leases(v), func(l alloc.Lease[V]) bool { return l.State == alloc.Resting })
}

// Concerns tells whether Admit could grant or refuse anything for a Service. It
// errs on the side of yes.
func (b *Book) Concerns(svc, old *corev1.Service) bool {
	if !b.HasPools() || exempt(svc) {
		return false
	}
	if old == nil || len(svc.Spec.ExternalIPs) > 0 || svc.Spec.LoadBalancerIP != "" ||
		svc.Annotations[v1alpha1.AddressesAnnotation] != old.Annotations[v1alpha1.AddressesAnnotation] {
		return true
	}
	needs := NeedsOf(svc, old, b.Families())
	return len(needs.Addresses)+len(needs.Ports) > 0
}
