// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/causeway-lb/causeway/api/v1alpha1"
	"github.com/causeway-lb/causeway/internal/alloc"
	"github.com/causeway-lb/causeway/internal/provisioner"
)

// maxAttempts is how often Allocate plans again after it has lost a race before it leaves the
// rest to the caller's retry. After each lost race the index has the winner's record.
const maxAttempts = 32

// errLost is returned when a record was not as the index had it; the index has been
// updated.
var errLost = errors.New("the record has changed")

// Config is what New needs.
type Config struct {
	// Class is the load balancer class; empty means v1alpha1.LoadBalancerClass.
	Class string
	// Index is fed with the events of pools and records by the caller.
	Index *Index
	// Records keeps the records.
	Records Records
	// Ports reads from a cache.
	Ports PortsFunc
	// LocalPods returns Request.LocalPods of other Services from a cache. It is set where
	// nodes without an endpoint drop packets to a Service of policy Local, as kube-proxy
	// does: such Services can share an address only if they have the same Pods. Nil:
	// nodes forward them.
	LocalPods func(alloc.Owner) string
	// Now is the clock; nil means time.Now.
	Now func() time.Time
	// Lost, if set, is called whenever a race for an address is lost.
	Lost func()
}

// Validate names everything that is missing.
func (c *Config) Validate() error {
	var errs []error
	for _, field := range []struct {
		name    string
		missing bool
	}{{"Index", c.Index == nil}, {"Records", c.Records == nil}, {"Ports", c.Ports == nil}} {
		if field.missing {
			errs = append(errs, fmt.Errorf("config of pool provisioner: %s is missing", field.name))
		}
	}
	return errors.Join(errs...)
}

// Provisioner returns addresses from pools.
type Provisioner struct {
	Config
}

var _ provisioner.Provisioner = (*Provisioner)(nil)

// New returns the provisioner of a valid config.
func New(c Config) (*Provisioner, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	c.Class = cmp.Or(c.Class, v1alpha1.LoadBalancerClass)
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Lost == nil {
		c.Lost = func() {}
	}
	return &Provisioner{Config: c}, nil
}

// Class implements provisioner.Provisioner.
func (p *Provisioner) Class() string { return p.Config.Class }

// Capabilities implements provisioner.Provisioner. The agents serve everything that a
// Service can request.
func (p *Provisioner) Capabilities() provisioner.Capabilities {
	return provisioner.Capabilities{
		Protocols:          []corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP},
		Families:           []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol},
		Sharing:            true,
		RequestedAddresses: true,
		Pools:              true,
		SourceRanges:       true,
		LocalPolicy:        true,
	}
}

// Allocate implements provisioner.Provisioner.
func (p *Provisioner) Allocate(ctx context.Context, req provisioner.Request) (provisioner.Allocation, error) {
	scatter := uint64(0)
	for range maxAttempts {
		pl := p.Index.Reserve(req, p.sharing(), scatter)
		err := p.apply(ctx, req, pl)
		if errors.Is(err, errLost) {
			p.Lost()
			scatter = rand.Uint64()
			continue
		}
		if err != nil {
			return provisioner.Allocation{}, err
		}
		return provisioner.Allocation{Addresses: arrange(req, pl), Unmet: pl.unmet, Enough: pl.enough}, nil
	}
	return provisioner.Allocation{}, fmt.Errorf("allocate address of Service %s: lost %d races against another controller", req.Owner, maxAttempts)
}

func (p *Provisioner) sharing() sharing { return sharing{p.Ports, p.LocalPods} }

// Reserve implements provisioner.Provisioner.
func (p *Provisioner) Reserve(ctx context.Context, req provisioner.Request, addrs []netip.Addr) error {
	for range maxAttempts {
		pl := p.Index.ReserveExactly(req, addrs, p.sharing())
		err := p.apply(ctx, req, pl)
		if errors.Is(err, errLost) {
			p.Lost()
			continue
		}
		if err == nil && pl.unmet != nil {
			return pl.unmet
		}
		return err
	}
	return fmt.Errorf("reserve addresses of Service %s: lost %d races against another controller", req.Owner, maxAttempts)
}

// apply carries out a plan: new addresses first, so that the Service is never without, then
// corrections, then releases. It returns errLost if the request has to be planned again.
func (p *Provisioner) apply(ctx context.Context, req provisioner.Request, pl plan) error {
	var err error
	for _, t := range pl.assign {
		if err == nil {
			err = p.assign(ctx, req, t)
		}
		p.Index.Release(t.addr)
	}
	for _, a := range pl.keep {
		if err == nil {
			err = p.correct(ctx, req, a)
		}
	}
	for _, a := range pl.drop {
		if err == nil {
			err = p.release(ctx, req.Owner, a)
		}
	}
	return err
}

// assign creates the record of an address, or adds the owner to it.
func (p *Provisioner) assign(ctx context.Context, req provisioner.Request, t assignment) error {
	if t.record == nil {
		return p.write(ctx, t.addr, "create", p.Index.Commit, func() (Record, error) {
			return p.Records.Create(ctx, Record{
				Address: t.addr, Pool: t.pool, SharingKey: req.SharingKey, Owners: []alloc.Owner{req.Owner},
			})
		})
	}
	want := *t.record
	want.Pool, want.SharingKey = t.pool, req.SharingKey
	want.ReleasedAt, want.ReleasedBy = time.Time{}, alloc.Owner{}
	want.Owners = append(want.others(req.Owner), req.Owner)
	return p.write(ctx, t.addr, "update", p.Index.Commit, func() (Record, error) { return p.Records.Update(ctx, want) })
}

// correct updates the record of an address that is kept: the UID of a Service that was created
// again, the sharing key, the pool that the address belongs to now.
func (p *Provisioner) correct(ctx context.Context, req provisioner.Request, a netip.Addr) error {
	have, ok := p.Index.Lookup(a)
	if !ok {
		return errLost
	}
	want := have
	want.Owners = slices.Clone(have.Owners)
	for i, o := range want.Owners {
		if o.Is(req.Owner) {
			want.Owners[i] = req.Owner
		}
	}
	if len(want.Owners) == 1 {
		want.SharingKey = req.SharingKey
	}
	if containing := p.Index.PoolFor(a); containing != "" {
		want.Pool = containing
	}
	if slices.Equal(want.Owners, have.Owners) && want.SharingKey == have.SharingKey && want.Pool == have.Pool {
		return nil
	}
	return p.write(ctx, a, "update", p.put, func() (Record, error) { return p.Records.Update(ctx, want) })
}

// Release implements provisioner.Provisioner.
func (p *Provisioner) Release(ctx context.Context, owner alloc.Owner) error {
	var errs []error
	for _, a := range p.Index.AddressesOf(owner) {
		err := errLost
		for attempt := 0; attempt < maxAttempts && errors.Is(err, errLost); attempt++ {
			err = p.release(ctx, owner, a)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// release removes owner from a record. A record without owners is quarantined, or deleted
// without a quarantine, unless it is reserved.
func (p *Provisioner) release(ctx context.Context, owner alloc.Owner, a netip.Addr) error {
	have, ok := p.Index.Lookup(a)
	if !ok || !have.hasOwner(owner) {
		return nil
	}
	want := have
	want.Owners = have.others(owner)
	if len(want.Owners) == 0 {
		want.SharingKey = ""
		if !have.Reserved {
			if p.Index.quarantine(a) <= 0 {
				return p.forget(ctx, have)
			}
			want.ReleasedAt, want.ReleasedBy = p.Now(), nameOf(owner)
		}
	}
	return p.write(ctx, a, "update", p.put, func() (Record, error) { return p.Records.Update(ctx, want) })
}

// Forget deletes a record whose quarantine is over, unless another writer has changed
// it in the meantime, which is not an error.
func (p *Provisioner) Forget(ctx context.Context, r Record) error {
	if err := p.forget(ctx, r); !errors.Is(err, errLost) {
		return err
	}
	return nil
}

func (p *Provisioner) forget(ctx context.Context, r Record) error {
	err := p.Records.Delete(ctx, r)
	switch {
	case err == nil || errors.Is(err, ErrGone):
		p.Index.Delete(r.Address, r.UID)
		return nil
	case errors.Is(err, ErrChanged):
		return p.refresh(ctx, r.Address)
	}
	return fmt.Errorf("delete record of %s: %w", r.Address, err)
}

func (p *Provisioner) put(r Record) { p.Index.Put(r) }

// write runs one write and puts its result into the index. If another writer was faster it
// puts that one's record there and returns errLost.
func (p *Provisioner) write(ctx context.Context, a netip.Addr, verb string, put func(Record), write func() (Record, error)) error {
	r, err := write()
	switch {
	case err == nil:
		put(r)
		return nil
	case errors.Is(err, ErrTaken) || errors.Is(err, ErrChanged) || errors.Is(err, ErrGone):
		return p.refresh(ctx, a)
	}
	return fmt.Errorf("%s record of %s: %w", verb, a, err)
}

// refresh reads a record past every cache into the index, and returns errLost if it could.
func (p *Provisioner) refresh(ctx context.Context, a netip.Addr) error {
	r, err := p.Records.Get(ctx, a)
	switch {
	case errors.Is(err, ErrGone):
		if old, ok := p.Index.Lookup(a); ok {
			p.Index.Delete(a, old.UID)
		}
	case err != nil:
		return fmt.Errorf("read record of %s: %w", a, err)
	default:
		p.Index.Put(r)
	}
	return errLost
}

// Remove implements provisioner.Provisioner: the agents stop by themselves when
// the record is released.
func (p *Provisioner) Remove(context.Context, alloc.Owner) error { return nil }

// arrange returns a Service's addresses after a plan, in the order of the request, then of the
// Service's families.
func arrange(req provisioner.Request, pl plan) []netip.Addr {
	all := slices.Clone(pl.keep)
	for _, t := range pl.assign {
		all = append(all, t.addr)
	}
	rank := func(a netip.Addr) int {
		if i := slices.Index(req.Addresses, a); i >= 0 {
			return i
		}
		i := slices.Index(req.Families, alloc.FamilyOf(a))
		if i < 0 {
			i = len(req.Families)
		}
		return provisioner.MaxAddresses + i
	}
	slices.SortStableFunc(all, func(a, b netip.Addr) int { return rank(a) - rank(b) })
	return all
}
