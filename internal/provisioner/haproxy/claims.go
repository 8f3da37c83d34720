// SPDX-License-Identifier: Apache-2.0

package haproxy

import (
	"context"
	"errors"
	"fmt"
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
	claims map[frontend]alloc.Owner
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
	return &Provisioner{Config: c, claims: map[frontend]alloc.Owner{}, leaving: map[string]time.Time{}}, nil
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

// prime reads, once, what Services hold by their status.
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
			p.claim(h.Owner, a, h.Ports)
		}
	}
	p.primed = true
	return nil
}

// claim takes what is free of an address's ports, and tells whether that is all
// of those that HAProxy is bound to.
func (p *Provisioner) claim(o alloc.Owner, a netip.Addr, ports []provisioner.Port) bool {
	all := true
	for _, port := range ports {
		f := frontend{a, port}
		if holder, taken := p.claims[f]; !p.bound(port) {
			continue
		} else if taken && !holder.Is(o) {
			all = false
			continue
		}
		p.claims[f] = o
	}
	return all
}

// bound tells whether HAProxy listens on a port.
func (p *Provisioner) bound(port provisioner.Port) bool {
	return port.Protocol == corev1.ProtocolTCP && slices.ContainsFunc(p.Ports, func(r alloc.PortRange) bool {
		return r.First <= port.Port && port.Port <= r.Last
	})
}

// free tells whether all bound ports of an address are free or the owner's.
func (p *Provisioner) free(o alloc.Owner, a netip.Addr, ports []provisioner.Port) (alloc.Owner, bool) {
	for _, port := range ports {
		if holder, taken := p.claims[frontend{a, port}]; taken && !holder.Is(o) {
			return holder, false
		}
	}
	return alloc.Owner{}, true
}

// held are the owner's addresses, in the order of the config.
func (p *Provisioner) held(o alloc.Owner) []netip.Addr {
	var out []netip.Addr
	for _, a := range p.Addresses {
		for f, holder := range p.claims {
			if f.addr == a && holder.Is(o) {
				out = append(out, a)
				break
			}
		}
	}
	return out
}

// Allocate implements provisioner.Provisioner. An address is given as long as
// the Service's ports are free there.
func (p *Provisioner) Allocate(ctx context.Context, req provisioner.Request) (provisioner.Allocation, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.prime(ctx); err != nil {
		return provisioner.Allocation{}, err
	}
	held := p.held(req.Owner)
	var want []netip.Addr
	var unmet []string
	met, asked := 0, true // asked: what is asked for by address can be had
	for _, f := range req.Families {
		addrs, refused := p.choose(req, held, f)
		if refused != "" {
			unmet = append(unmet, refused)
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
	for f, holder := range p.claims {
		if holder.Is(req.Owner) && (!slices.Contains(want, f.addr) || !slices.Contains(req.Ports, f.port)) {
			delete(p.claims, f)
		}
	}
	for _, a := range want {
		p.claim(req.Owner, a, req.Ports)
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
	held := p.held(req.Owner)
	var refused []string
	for _, a := range addrs {
		if slices.ContainsFunc(held, func(h netip.Addr) bool { return h.BitLen() == a.BitLen() }) {
			continue
		}
		if !slices.Contains(p.Addresses, a) {
			refused = append(refused, fmt.Sprintf("HAProxy of class %s is not bound to %s", p.Config.Class, a))
			continue
		}
		if holder, free := p.free(req.Owner, a, req.Ports); !free {
			refused = append(refused, fmt.Sprintf("a port of the Service is taken at %s by Service %s", a, holder))
			continue
		}
		p.claim(req.Owner, a, req.Ports)
	}
	if len(refused) > 0 {
		return &provisioner.AllocationError{Reason: provisioner.ReasonAddressInUse, Message: strings.Join(refused, "; "), Addresses: addrs}
	}
	return nil
}

// Release implements provisioner.Provisioner.
func (p *Provisioner) Release(_ context.Context, owner alloc.Owner) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for f, holder := range p.claims {
		if holder.Is(owner) {
			delete(p.claims, f)
		}
	}
	return nil
}

// Remove implements provisioner.Provisioner. For a Service that claims nothing
// HAProxy is not asked.
func (p *Provisioner) Remove(ctx context.Context, owner alloc.Owner) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.prime(ctx); err != nil {
		return err
	}
	if len(p.held(owner)) == 0 {
		return nil
	}
	have, err := readState(ctx, p.Runtime, p.MapFile)
	if err != nil {
		return err
	}
	var errs []error
	for f, holder := range p.claims {
		if backend, mapped := have.keys[f.key()]; mapped && holder.Is(owner) {
			errs = append(errs, p.unmap(ctx, f.key()))
			_, err := p.empty(ctx, backend, have.servers[backend], nil)
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
