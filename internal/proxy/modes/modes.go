// SPDX-License-Identifier: Apache-2.0

package modes

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/go-logr/logr"

	"github.com/causeway-lb/causeway/internal/netlink/conntrack"
	"github.com/causeway-lb/causeway/internal/netlink/nft"
	"github.com/causeway-lb/causeway/internal/proxy/backend"
	"github.com/causeway-lb/causeway/internal/proxy/model"
)

// Mode is what an operator asks for.
type Mode string

// The modes.
const (
	Auto     Mode = "auto"
	NFTables Mode = "nftables"
	IPTables Mode = "iptables"
	IPVS     Mode = "ipvs"
	// Userspace is a proxy in this process.
	Userspace Mode = "userspace"
	// None leaves forwarding to somebody else.
	None Mode = "none"
)

// orders are the candidates of each mode, best first.
var orders = map[Mode][]Mode{
	Auto:      {NFTables, IPTables, Userspace},
	NFTables:  {NFTables},
	IPTables:  {IPTables},
	IPVS:      {IPVS, NFTables, IPTables, Userspace},
	Userspace: {Userspace},
	None:      {None},
}

// Parse reads a mode's name.
func Parse(name string) (Mode, error) {
	if _, ok := orders[Mode(name)]; !ok {
		return "", fmt.Errorf("unknown mode %q: choose from auto, nftables, iptables, ipvs, userspace, none", name)
	}
	return Mode(name), nil
}

// Kind is how to use one mode.
type Kind struct {
	// Open makes its Backend; it changes nothing in the kernel.
	Open func() (backend.Backend, error)
	// Present says whether there may be objects of an earlier process. Nil means
	// that Cleanup may always be asked.
	Present func() (bool, error)
	// Yield, unless nil, prepares what an earlier process has left for another mode's
	// taking over, ahead of anything that one does.
	Yield func(context.Context) error
}

// Config of a Chooser.
type Config struct {
	Mode  Mode
	Kinds map[Mode]Kind
	// FellBack, unless nil, is told that from cannot be used here, and why.
	FellBack func(from, to Mode, why error)
	// Chosen, unless nil, is told of the choice, once.
	Chosen func(Mode)
}

// Chooser is the Backend of the mode that this node can do. It implements
// backend.Backend and backend.Repairer.
type Chooser struct {
	cfg Config

	// left are the candidates still to try; current is the first that opened.
	left    []Mode
	mode    Mode
	current backend.Backend
	// old are modes whose objects are still to be removed.
	old []Mode

	fixed  bool
	settle chan struct{} // closed when fixed: current then never changes
}

var (
	_ backend.Backend  = (*Chooser)(nil)
	_ backend.Repairer = (*Chooser)(nil)
)

// Leaver is a Backend whose connections end with its objects. Leave removes
// what can go, and returns whether nothing is left; it is called again.
type Leaver interface {
	Leave(ctx context.Context) (done bool, err error)
}

// New opens the first candidate that opens. If none does, the error has the
// reason of each.
func New(cfg Config) (*Chooser, error) {
	order, ok := orders[cfg.Mode]
	if !ok {
		return nil, fmt.Errorf("unknown mode %q", cfg.Mode)
	}
	c := &Chooser{cfg: cfg, left: slices.Clone(order), settle: make(chan struct{})}
	return c, c.next(nil)
}

// next opens the next candidate; why is what was wrong with the current one.
func (c *Chooser) next(why error) error {
	errs := []error{why}
	for len(c.left) > 0 {
		mode := c.left[0]
		c.left = c.left[1:]
		b, err := c.cfg.Kinds[mode].Open()
		var lacks *backend.UnsupportedError
		switch {
		case err == nil:
			from := c.mode
			if from == "" && len(errs) > 1 {
				from = c.cfg.Mode
			}
			c.mode, c.current = mode, b
			if reason := errors.Join(errs...); reason != nil && c.cfg.FellBack != nil {
				c.cfg.FellBack(from, mode, reason)
			}
			return nil
		case errors.As(err, &lacks):
			errs = append(errs, fmt.Errorf("%s: %w", mode, err))
		default:
			return fmt.Errorf("open mode %s: %w", mode, err)
		}
	}
	return fmt.Errorf("this node can do none of the modes for %q: %w", c.cfg.Mode, errors.Join(errs...))
}

// Name is the name of the mode in use.
func (c *Chooser) Name() string { return string(c.mode) }

// Apply implements backend.Backend.
func (c *Chooser) Apply(ctx context.Context, step backend.Delta) (backend.Report, error) {
	return c.current.Apply(ctx, step)
}

// Resync implements backend.Backend. The first one tries candidates until one
// can do it; it and the next ones remove what the others left.
func (c *Chooser) Resync(ctx context.Context, want model.Desired) (backend.Report, error) {
	for {
		c.yield(ctx)
		report, err := c.current.Resync(ctx, want)
		var lacks *backend.UnsupportedError
		switch {
		case err == nil:
			c.fix()
			removed := c.removeOld(ctx)
			if removed {
				// What the mode in use did for the sake of those is not needed now.
				_, err = c.current.Resync(ctx, want)
			}
			if removed || len(c.old) > 0 {
				c.decideAnew(ctx, want)
			}
			return report, err
		case c.fixed || !errors.As(err, &lacks) || len(c.left) == 0:
			return report, err
		}
		// It may have got halfway.
		failed := c.current
		cleanErr := failed.Cleanup(ctx)
		if nextErr := c.next(err); nextErr != nil {
			return report, errors.Join(nextErr, cleanErr)
		}
		_ = failed.Close()
	}
}

// yield has the other modes let the current one take over, unless it has. Where one
// cannot, that is logged: the change is made all the same.
func (c *Chooser) yield(ctx context.Context) {
	if c.fixed {
		return
	}
	for mode, kind := range c.cfg.Kinds {
		if mode == c.mode || kind.Yield == nil {
			continue
		}
		if err := kind.Yield(ctx); err != nil {
			logr.FromContextOrDiscard(ctx).Error(err, "Another mode's objects could not be prepared for the change; connections that this node begins meanwhile may be reset", "mode", mode)
		}
	}
}

// fix ends the choosing.
func (c *Chooser) fix() {
	if c.fixed {
		return
	}
	c.fixed = true
	for mode := range c.cfg.Kinds {
		if mode != c.mode {
			c.old = append(c.old, mode)
		}
	}
	slices.Sort(c.old)
	close(c.settle)
	if c.cfg.Chosen != nil {
		c.cfg.Chosen(c.mode)
	}
}

// removeOld removes the objects of modes that are not in use, and says whether
// there were any. A mode whose objects can't be removed is tried again with the
// next Resync; that is logged, and is not an error of the mode in use.
func (c *Chooser) removeOld(ctx context.Context) (some bool) {
	var left []Mode
	for _, mode := range c.old {
		present, gone, err := c.removed(ctx, mode)
		if err != nil {
			logr.FromContextOrDiscard(ctx).Error(err, "Objects of another mode could not be removed, trying again", "mode", mode)
		}
		some = some || present && gone
		if !gone {
			left = append(left, mode)
		}
	}
	c.old = left
	return some
}

// decideAnew has connection tracking forget what clients have dialled without an
// answer while modes changed: what the old mode's rules, or none, made of the first packet
// would hold for all that repeat it. A datagram that was translated may be about to be
// answered. In mode userspace nothing is translated, and all is heard.
func (c *Chooser) decideAnew(ctx context.Context, want model.Desired) {
	if c.mode == Userspace || c.mode == None {
		return
	}
	dialled := map[conntrack.Key]bool{}
	for _, svc := range want.Services {
		for i := range svc.Frontends {
			key := svc.Frontends[i].Key
			dialled[conntrack.Key{Addr: key.Addr, Port: key.Port, Protocol: uint8(key.Protocol)}] = true
		}
	}
	err := conntrack.DeleteDialled(dialled, func(e *conntrack.Entry) bool {
		return !e.Replied() && (e.Protocol != uint8(model.UDP) || !e.Translated())
	})
	if err != nil {
		logr.FromContextOrDiscard(ctx).Error(err, "Connections that were begun while the mode changed may stay unanswered until their clients begin others")
	}
}

// Remaining are the modes whose objects are still there, sorted.
func (c *Chooser) Remaining() []Mode { return slices.Clone(c.old) }

// removed says whether there was something of a mode, as far as that can be
// told, and whether nothing is left. What is left without an error is in use.
func (c *Chooser) removed(ctx context.Context, mode Mode) (present, gone bool, err error) {
	kind := c.cfg.Kinds[mode]
	if kind.Present != nil {
		if present, err = kind.Present(); err != nil || !present {
			return false, err == nil, err
		}
	}
	b, err := kind.Open()
	var lacks *backend.UnsupportedError
	if errors.As(err, &lacks) {
		return false, true, nil // then nothing of it can be there
	}
	if err != nil {
		return false, false, err
	}
	defer b.Close()
	// A packet that was ahead of the new mode's rules when they came would meet neither
	// mode's, and its connection would stay untranslated.
	nft.Settle()
	if l, ok := b.(Leaver); ok {
		done, err := l.Leave(ctx)
		return present, done && err == nil, err
	}
	err = b.Cleanup(ctx)
	return present, err == nil, err
}

// Cleanup removes the objects of all modes.
func (c *Chooser) Cleanup(ctx context.Context) error {
	errs := []error{c.current.Cleanup(ctx)}
	for mode, kind := range c.cfg.Kinds {
		if mode == c.mode {
			continue
		}
		errs = append(errs, cleanup(ctx, mode, kind))
	}
	return errors.Join(errs...)
}

func cleanup(ctx context.Context, mode Mode, kind Kind) error {
	if kind.Present != nil {
		if present, err := kind.Present(); err != nil || !present {
			return err
		}
	}
	b, err := kind.Open()
	var lacks *backend.UnsupportedError
	if errors.As(err, &lacks) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open mode %s: %w", mode, err)
	}
	defer b.Close()
	return b.Cleanup(ctx)
}

// Close closes the Backend in use.
func (c *Chooser) Close() error { return c.current.Close() }

// Pinpointed implements backend.Repairer for the mode in use, if that can.
func (c *Chooser) Pinpointed() bool {
	r, ok := c.current.(backend.Repairer)
	return ok && c.fixed && r.Pinpointed()
}

// Repair implements backend.Repairer for a mode that is Pinpointed.
func (c *Chooser) Repair(ctx context.Context, had model.Desired) (backend.Report, error) {
	return c.current.(backend.Repairer).Repair(ctx, had)
}

// Watch implements backend.Watcher: it waits for the choice, which takes a Resync,
// and then watches for the mode in use, if that can. Before the choice there is
// no other, so that nothing is missed.
func (c *Chooser) Watch(ctx context.Context, notify func()) error {
	notify()
	select {
	case <-ctx.Done():
		return nil
	case <-c.settle:
	}
	if w, ok := c.current.(backend.Watcher); ok {
		return w.Watch(ctx, notify)
	}
	<-ctx.Done()
	return nil
}
