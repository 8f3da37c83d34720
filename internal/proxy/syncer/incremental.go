// SPDX-License-Identifier: Apache-2.0

package syncer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"reflect"
	"slices"

	"k8s.io/apimachinery/pkg/types"

	"github.com/causeway-lb/causeway/internal/proxy/backend"
	"github.com/causeway-lb/causeway/internal/proxy/model"
)

// maxRejected bounds how many Services are set aside. If the kernel rejects
// more, they are not the cause.
const maxRejected = 100

// Check is what to compare in the kernel besides what changes.
type Check int

// The checks, each of which includes the one before.
const (
	CheckNothing  Check = iota
	CheckReported       // what the Backend's Watch has reported
	CheckAll
)

// Incremental makes the kernel follow a Desired step by step. It owns the record of
// what the kernel has and of the Services that the kernel rejects. Not safe for
// concurrent use.
type Incremental struct {
	backend backend.Backend
	// known reports whether the kernel is as had says; if not, had is what it was
	// when it was last known.
	known   bool
	had     model.Desired
	objects int
	// rejected are Services that the kernel does not have as they should be; had
	// has what it keeps of them.
	rejected map[types.NamespacedName]error
	// before is what the Services that have changed since the last success were.
	before map[types.NamespacedName]*model.Service
}

// NewIncremental returns an Incremental that knows nothing of the kernel yet.
func NewIncremental(b backend.Backend) *Incremental {
	return &Incremental{
		backend: b, rejected: map[types.NamespacedName]error{}, before: map[types.NamespacedName]*model.Service{},
		had: model.Desired{Services: map[types.NamespacedName]*model.Service{}},
	}
}

// Program makes the kernel match want and checks it. changed are the Services that
// may differ from those of the last success. A rejected Service keeps what the
// kernel has of it, and is tried again, alone, when changed names it. After an
// error the next call has everything read back. want is neither kept nor modified.
func (k *Incremental) Program(ctx context.Context, want model.Desired, changed iter.Seq[types.NamespacedName], at Check) (Applied, error) {
	done := Applied{Node: want.Node, Report: backend.Report{Objects: k.objects}}
	err := k.program(ctx, want, changed, at, &done)
	if err != nil {
		k.known = false
		return done, err
	}
	k.objects = done.Report.Objects
	done.Changes = slices.Grow(done.Changes, len(k.before))
	for name, old := range k.before {
		if svc := k.had.Services[name]; svc != old {
			done.Changes = append(done.Changes, model.Change{Name: name, Old: old, New: svc})
		}
	}
	k.before = emptied(k.before)
	done.Rejected = slices.SortedFunc(maps.Keys(k.rejected), compareNames)
	for _, name := range done.Rejected {
		done.Report.Problems = append(done.Report.Problems, model.Problem{
			Service: name, Reason: "RulesRejected",
			Message: fmt.Sprintf("the kernel rejects this Service's rules and keeps what it had; other Services are not affected, and it is tried again: %v", k.rejected[name]),
		})
	}
	return done, nil
}

func (k *Incremental) program(ctx context.Context, want model.Desired, changed iter.Seq[types.NamespacedName], at Check, done *Applied) error {
	switch {
	case !k.known || !reflect.DeepEqual(k.had.Node, want.Node):
		if err := k.resync(ctx, want, changed, done); err != nil {
			return err
		}
		done.Report.Drift = 0 // nothing is known to compare with
	case at == CheckAll:
		if err := k.compare(ctx, done); err != nil {
			return err
		}
	case at == CheckReported:
		if err := k.repair(ctx, done); err != nil {
			return err
		}
	}
	step := backend.Delta{Node: want.Node}
	var alone []model.Change
	for name := range changed {
		c := model.Change{Name: name, Old: k.had.Services[name], New: want.Services[name]}
		switch {
		case c.Old == c.New:
			delete(k.rejected, name)
		case k.rejected[name] != nil:
			alone = append(alone, c)
		default:
			step.Services = append(step.Services, c)
		}
	}
	slices.SortFunc(step.Services, func(a, b model.Change) int { return compareNames(a.Name, b.Name) })
	suspects, err := k.apply(ctx, step, done)
	if err != nil {
		return err
	}
	for _, c := range append(alone, suspects...) {
		err := k.commit(ctx, backend.Delta{Node: want.Node, Services: []model.Change{c}}, done)
		if rejected, ok := errors.AsType[*backend.RejectedError](err); ok {
			k.rejected[c.Name] = rejected
		} else if err != nil {
			return err
		}
	}
	return nil
}

// repair restores what the Backend's Watch has reported.
func (k *Incremental) repair(ctx context.Context, done *Applied) error {
	r, ok := k.backend.(backend.Repairer)
	if !ok || !r.Pinpointed() {
		return k.compare(ctx, done)
	}
	report, err := r.Repair(ctx, k.had)
	if _, ok := errors.AsType[*backend.RejectedError](err); ok {
		return k.compare(ctx, done)
	}
	done.Report = then(done.Report, report)
	return err
}

// compare has everything read back and made as the record says.
func (k *Incremental) compare(ctx context.Context, done *Applied) error {
	return k.resync(ctx, k.had, func(func(types.NamespacedName) bool) {}, done)
}

// resync has everything read back and made as want says, without the Services that
// the kernel rejects: of those it keeps what it has.
func (k *Incremental) resync(ctx context.Context, want model.Desired, changed iter.Seq[types.NamespacedName], done *Applied) error {
	done.Full = true
	for {
		next := k.withoutRejected(want)
		report, err := k.backend.Resync(ctx, next)
		if err == nil {
			k.adopt(next, changed)
			// Of all Services, so that what was reported before is out of date.
			done.Report.Problems = nil
			done.Report = then(done.Report, report)
			return nil
		}
		rejected, ok := errors.AsType[*backend.RejectedError](err)
		if !ok {
			return err
		}
		more := false
		for _, name := range rejected.Services {
			if svc := next.Services[name]; svc != nil {
				more = true
				k.rejected[name] = rejected
				if svc == k.had.Services[name] {
					k.set(name, nil) // rejected although it had been accepted
				}
			}
		}
		if !more || len(k.rejected) > maxRejected {
			clear(k.rejected)
			return err
		}
	}
}

// withoutRejected returns want with the rejected Services as the kernel has them.
func (k *Incremental) withoutRejected(want model.Desired) model.Desired {
	if len(k.rejected) == 0 {
		return want
	}
	want.Services = maps.Clone(want.Services)
	for name := range k.rejected {
		if old := k.had.Services[name]; old != nil {
			want.Services[name] = old
		} else {
			delete(want.Services, name)
		}
	}
	return want
}

// adopt records that the kernel is as next says.
func (k *Incremental) adopt(next model.Desired, changed iter.Seq[types.NamespacedName]) {
	for name := range changed {
		k.remember(name)
	}
	k.known, k.had = true, model.Desired{Node: next.Node, Services: maps.Clone(next.Services)}
	if k.had.Services == nil {
		k.had.Services = map[types.NamespacedName]*model.Service{}
	}
}

// set records that the kernel has svc, or nothing of a Service if that is nil.
func (k *Incremental) set(name types.NamespacedName, svc *model.Service) {
	k.remember(name)
	if svc == nil {
		delete(k.had.Services, name)
	} else {
		k.had.Services[name] = svc
	}
}

// remember keeps what a Service was at the last success for the next one.
func (k *Incremental) remember(name types.NamespacedName) {
	if _, ok := k.before[name]; !ok {
		k.before[name] = k.had.Services[name]
	}
}

// emptied returns m without its keys: a new one if it was large, as what it costs to
// walk through a map or to clear it follows how many keys it has ever had.
func emptied[V any](m map[types.NamespacedName]V) map[types.NamespacedName]V {
	const large = 64
	if len(m) > large {
		return map[types.NamespacedName]V{}
	}
	clear(m)
	return m
}

// apply makes a step. If the kernel rejects it, everything is read back first, as
// another program may be the cause. suspects are the Services of what is rejected
// then; the step is made without them.
func (k *Incremental) apply(ctx context.Context, step backend.Delta, done *Applied) (suspects []model.Change, err error) {
	for len(step.Services) > 0 {
		err := k.commit(ctx, step, done)
		if err == nil {
			return suspects, nil
		}
		rejected, ok := errors.AsType[*backend.RejectedError](err)
		if !ok {
			return nil, err
		}
		if !done.Full {
			if err := k.compare(ctx, done); err != nil {
				return nil, err
			}
			continue
		}
		var rest []model.Change
		for _, c := range step.Services {
			if slices.Contains(rejected.Services, c.Name) {
				suspects = append(suspects, c)
			} else {
				rest = append(rest, c)
			}
		}
		if len(rest) == len(step.Services) || len(suspects) > maxRejected {
			return nil, err
		}
		step.Services = rest
	}
	return suspects, nil
}

// commit applies a step and records it.
func (k *Incremental) commit(ctx context.Context, step backend.Delta, done *Applied) error {
	report, err := k.backend.Apply(ctx, step)
	if err != nil {
		return err
	}
	for _, c := range step.Services {
		delete(k.rejected, c.Name)
		k.set(c.Name, c.New)
	}
	if len(done.Report.Problems) > 0 { // those of a Resync, which come before few changes
		changed := make(map[types.NamespacedName]bool, len(step.Services))
		for _, c := range step.Services {
			changed[c.Name] = true
		}
		done.Report.Problems = slices.DeleteFunc(done.Report.Problems, func(p model.Problem) bool { return changed[p.Service] })
	}
	done.Report = then(done.Report, report)
	return nil
}

// then joins the reports of two calls, one after the other.
func then(first, next backend.Report) backend.Report {
	sum := first.Add(next)
	sum.Objects = next.Objects
	return sum
}

func compareNames(a, b types.NamespacedName) int {
	return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
}
