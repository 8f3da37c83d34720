// SPDX-License-Identifier: Apache-2.0

package nftables

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/types"

	"github.com/causeway-lb/causeway/internal/netlink/nft"
	"github.com/causeway-lb/causeway/internal/proxy/backend"
	"github.com/causeway-lb/causeway/internal/proxy/model"
)

// maxRefused bounds how many Services are set aside. If the kernel refuses
// more, the fault is not theirs.
const maxRefused = 100

// isolate is fullSync without the Services whose elements the kernel refuses:
// of those it keeps what it has. It sets them aside and begins anew until the
// rest is accepted.
func (b *Backend) isolate(want model.Desired) (backend.Report, error) {
	for {
		report, err := b.fullSync(b.withoutRefused(want))
		if err == nil {
			return report, nil
		}
		before := len(b.refused)
		for _, name := range b.blame(want, err) {
			if b.refused[name] == nil {
				b.refused[name] = err
			}
		}
		if len(b.refused) == before || len(b.refused) > maxRefused {
			clear(b.refused)
			return report, err
		}
	}
}

// withoutRefused gives want with the Services that are set aside as the
// kernel has them.
func (b *Backend) withoutRefused(want model.Desired) model.Desired {
	if len(b.refused) == 0 {
		return want
	}
	want.Services = maps.Clone(want.Services)
	for name := range b.refused {
		if old := b.applied[name]; old != nil {
			want.Services[name] = old
		} else {
			delete(want.Services, name)
		}
	}
	return want
}

// retry tries Services that are set aside one by one: the kernel may have
// changed its mind, and those that only came into suspicion are accepted.
func (b *Backend) retry(want model.Desired, names []types.NamespacedName) (backend.Report, error) {
	var report backend.Report
	for _, name := range names {
		r, err := b.change(want, []types.NamespacedName{name})
		switch {
		case err == nil:
			delete(b.refused, name)
			report = report.Add(r)
		case nft.Refusals(err) != nil:
			b.refused[name] = err
		default:
			return report, err
		}
	}
	return report, nil
}

// split tells apart the Services that are set aside.
func (b *Backend) split(names []types.NamespacedName) (accepted, aside []types.NamespacedName) {
	if len(b.refused) == 0 {
		return names, nil
	}
	for _, name := range names {
		if b.refused[name] != nil {
			aside = append(aside, name)
		} else {
			accepted = append(accepted, name)
		}
	}
	return accepted, aside
}

// tellRefused reports who is set aside.
func (b *Backend) tellRefused(report *backend.Report) {
	for _, name := range slices.SortedFunc(maps.Keys(b.refused), compareNames) {
		report.Refused = append(report.Refused, name)
		report.Problems = append(report.Problems, model.Problem{
			Service: name, Reason: "RulesRefused",
			Message: fmt.Sprintf("the kernel refuses this Service's rules and keeps what it had; other Services are not affected, and it is tried again: %v", b.refused[name]),
		})
	}
}

// blame gives the Services that have elements which the kernel refused; none
// if the refusal is about something else.
func (b *Backend) blame(want model.Desired, err error) []types.NamespacedName {
	ids := make([]map[elementID]bool, len(b.families))
	found := false
	for _, refusal := range nft.Refusals(err) {
		i := slices.IndexFunc(b.families, func(f *family) bool { return f.table == refusal.Table })
		set := slices.Index(setNames[:], refusal.Set)
		if i < 0 || set < 0 || general(refusal.Err) {
			continue
		}
		if ids[i] == nil {
			ids[i] = map[elementID]bool{}
		}
		for _, e := range refusal.Elements {
			refused := element{setID(set), e}
			ids[i][refused.id()] = true
			found = true
		}
	}
	if !found {
		return nil
	}
	var names []types.NamespacedName
	for name, svc := range want.Services {
		guilty := false
		for i, f := range b.families {
			if ids[i] != nil {
				f.render.service(svc, func(e element) { guilty = guilty || ids[i][e.id()] })
			}
		}
		if guilty {
			names = append(names, name)
		}
	}
	return names
}

// general says that an errno is about the whole system and no element.
func general(err error) bool {
	return slices.ContainsFunc([]error{unix.EPERM, unix.EACCES, unix.ENOMEM, unix.ENOBUFS, unix.EOPNOTSUPP},
		func(e error) bool { return errors.Is(err, e) })
}
