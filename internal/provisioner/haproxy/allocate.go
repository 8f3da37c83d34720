// SPDX-License-Identifier: Apache-2.0

package haproxy

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/causeway-lb/causeway/internal/alloc"
	"github.com/causeway-lb/causeway/internal/provisioner"
)

// frontend is what a client dials.
type frontend struct {
	addr netip.Addr
	port provisioner.Port
}

// key is the frontend in HAProxy's map: the address as HAProxy writes it, a
// colon, the port.
func (f frontend) key() string { return fmt.Sprintf("%s:%d", f.addr, f.port.Port) }

// Provisioner serves Services through one HAProxy.
type Provisioner struct {
	Config

	mu     sync.Mutex // also keeps changes of HAProxy apart
	primed bool
	owners map[frontend]alloc.Owner
	// leaving has since when servers, by backend/name, are known to be in maintenance.
	leaving map[string]time.Time
}

var _ provisioner.Provisioner = (*Provisioner)(nil)

// New returns the provisioner of a valid config. It does not talk to HAProxy.
func New(c Config) (*Provisioner, error) {
	if err := c.Validate(); err != nil {
		return nil, fmt.Errorf("config of HAProxy provisioner: %w", err)
	}
	c.setDefaults()
	return &Provisioner{Config: c, owners: map[frontend]alloc.Owner{}, leaving: map[string]time.Time{}}, nil
}

// Class implements provisioner.Provisioner.
func (p *Provisioner) Class() string { return p.Config.Class }

// Capabilities implements provisioner.Provisioner. Pods see HAProxy's address,
// not the client's; policy Local is honoured all the same, in that only nodes
// with an endpoint get connections.
func (p *Provisioner) Capabilities() provisioner.Capabilities {
	c := provisioner.Capabilities{
		Protocols:          []corev1.Protocol{corev1.ProtocolTCP},
		RequestedAddresses: true, LocalPolicy: true, NeedsNodePorts: true, NeedsNodes: true,
	}
	for _, a := range p.Addresses {
		if f := alloc.FamilyOf(a); !slices.Contains(c.Families, f) {
			c.Families = append(c.Families, f)
		}
	}
	return c
}

// prime reads, once, which frontends Services have by their status.
func (p *Provisioner) prime(ctx context.Context) error {
	if p.primed || p.Holders == nil {
		return nil
	}
	holders, err := p.Holders(ctx)
	if err != nil {
		return fmt.Errorf("list Services of class %s: %w", p.Config.Class, err)
	}
	for _, h := range holders {
		for _, a := range h.Addresses {
			p.take(h.Owner, a, h.Ports)
		}
	}
	p.primed = true
	return nil
}

// take makes o the owner of the address's ports that HAProxy is bound to and that no
// other Service has.
func (p *Provisioner) take(o alloc.Owner, a netip.Addr, ports []provisioner.Port) {
	for _, port := range ports {
		f := frontend{a, port}
		if holder, taken := p.owners[f]; p.bound(port) && (!taken || holder.Is(o)) {
			p.owners[f] = o
		}
	}
}

// bound reports whether HAProxy listens on a port.
func (p *Provisioner) bound(port provisioner.Port) bool {
	return port.Protocol == corev1.ProtocolTCP && slices.ContainsFunc(p.Ports, func(r alloc.PortRange) bool {
		return r.First <= port.Port && port.Port <= r.Last
	})
}

// free reports whether all ports of an address are free or o's, and which other owner
// has one.
func (p *Provisioner) free(o alloc.Owner, a netip.Addr, ports []provisioner.Port) (alloc.Owner, bool) {
	for _, port := range ports {
		if holder, taken := p.owners[frontend{a, port}]; taken && !holder.Is(o) {
			return holder, false
		}
	}
	return alloc.Owner{}, true
}

// addressesOf returns the owner's addresses, in the order of the config.
func (p *Provisioner) addressesOf(o alloc.Owner) []netip.Addr {
	has := map[netip.Addr]bool{}
	for f, owner := range p.owners {
		has[f.addr] = has[f.addr] || owner.Is(o)
	}
	return slices.DeleteFunc(slices.Clone(p.Addresses), func(a netip.Addr) bool { return !has[a] })
}

// Allocate implements provisioner.Provisioner. A Service gets an address at which its
// ports are free.
func (p *Provisioner) Allocate(ctx context.Context, req provisioner.Request) (provisioner.Allocation, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.prime(ctx); err != nil {
		return provisioner.Allocation{}, err
	}
	held := p.addressesOf(req.Owner)
	var want []netip.Addr
	var unmet []string
	met, asked := 0, true // asked: what is asked for by address can be had
	for _, f := range req.Families {
		addrs, problem := p.choose(req, held, f)
		if problem != "" {
			unmet = append(unmet, problem)
			asked = asked && !slices.ContainsFunc(req.Addresses, func(a netip.Addr) bool { return alloc.FamilyOf(a) == f })
			continue
		}
		want = append(want, addrs...)
		met++
	}
	out := provisioner.Allocation{Addresses: want}
	if len(unmet) > 0 {
		reason := provisioner.ReasonPoolExhausted
		if !asked {
			reason = provisioner.ReasonAddressNotAllowed
		}
		if !slices.ContainsFunc(req.Ports, p.bound) {
			reason = provisioner.ReasonUnsupported
		}
		// An edit of another Service may help, and it does not tell: the pending
		// retry finds out.
		out.Unmet = &provisioner.AllocationError{Reason: reason, Message: strings.Join(unmet, "; "), Addresses: req.Addresses}
		if out.Enough = asked && met >= req.Required(); !out.Enough {
			out.Addresses = held
			return out, nil
		}
	}
	maps.DeleteFunc(p.owners, func(f frontend, o alloc.Owner) bool {
		return o.Is(req.Owner) && (!slices.Contains(want, f.addr) || !slices.Contains(req.Ports, f.port))
	})
	for _, a := range want {
		p.take(req.Owner, a, req.Ports)
	}
	return out, nil
}

// choose returns the addresses of a family that the request is to have, or why
// there is none.
func (p *Provisioner) choose(req provisioner.Request, held []netip.Addr, f corev1.IPFamily) ([]netip.Addr, string) {
	if !slices.ContainsFunc(req.Ports, p.bound) {
		return nil, fmt.Sprintf("HAProxy of class %s is bound to none of the Service's ports: use TCP ports of %s", p.Config.Class, p.portsText())
	}
	var asked []netip.Addr
	for _, a := range req.Addresses {
		if alloc.FamilyOf(a) != f {
			continue
		}
		asked = append(asked, a)
		if !slices.Contains(p.Addresses, a) {
			return nil, fmt.Sprintf("HAProxy of class %s is not bound to %s: ask for one of %v", p.Config.Class, a, p.Addresses)
		}
		if holder, free := p.free(req.Owner, a, req.Ports); !free && !slices.Contains(held, a) {
			return nil, fmt.Sprintf("a port of the Service is taken at %s by Service %s: use another port or address", a, holder)
		}
	}
	if len(asked) > 0 {
		return asked, ""
	}
	ofFamily := func(a netip.Addr) bool { return alloc.FamilyOf(a) == f }
	if i := slices.IndexFunc(held, ofFamily); i >= 0 {
		return held[i : i+1], ""
	}
	for _, a := range p.Addresses {
		if _, free := p.free(req.Owner, a, req.Ports); free && ofFamily(a) {
			return []netip.Addr{a}, ""
		}
	}
	return nil, fmt.Sprintf("no %s address of HAProxy of class %s has the Service's ports free: use other ports, or delete the Service that has them", f, p.Config.Class)
}

func (p *Provisioner) portsText() string {
	var words []string
	for _, r := range p.Ports {
		words = append(words, fmt.Sprintf("%d-%d", r.First, r.Last))
	}
	return strings.Join(words, ", ")
}

// Reserve implements provisioner.Provisioner.
func (p *Provisioner) Reserve(ctx context.Context, req provisioner.Request, addrs []netip.Addr) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.prime(ctx); err != nil {
		return err
	}
	held := p.addressesOf(req.Owner)
	var unmet []string
	for _, a := range addrs {
		if slices.ContainsFunc(held, func(h netip.Addr) bool { return h.BitLen() == a.BitLen() }) {
			continue
		}
		if !slices.Contains(p.Addresses, a) {
			unmet = append(unmet, fmt.Sprintf("HAProxy of class %s is not bound to %s", p.Config.Class, a))
			continue
		}
		if holder, free := p.free(req.Owner, a, req.Ports); !free {
			unmet = append(unmet, fmt.Sprintf("a port of the Service is taken at %s by Service %s", a, holder))
			continue
		}
		p.take(req.Owner, a, req.Ports)
	}
	if len(unmet) > 0 {
		return &provisioner.AllocationError{Reason: provisioner.ReasonAddressInUse, Message: strings.Join(unmet, "; "), Addresses: addrs}
	}
	return nil
}

// Release implements provisioner.Provisioner.
func (p *Provisioner) Release(_ context.Context, owner alloc.Owner) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	maps.DeleteFunc(p.owners, func(_ frontend, o alloc.Owner) bool { return o.Is(owner) })
	return nil
}

// Remove implements provisioner.Provisioner. HAProxy is not asked about a Service that
// has no frontend.
func (p *Provisioner) Remove(ctx context.Context, owner alloc.Owner) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.prime(ctx); err != nil {
		return err
	}
	if len(p.addressesOf(owner)) == 0 {
		return nil
	}
	have, err := readState(ctx, p.Runtime, p.MapFile)
	if err != nil {
		return err
	}
	var errs []error
	for f, holder := range p.owners {
		if backend, mapped := have.keys[f.key()]; mapped && holder.Is(owner) {
			errs = append(errs, p.unmap(ctx, f.key()))
			_, err := p.empty(ctx, backend, have.servers[backend], nil)
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
