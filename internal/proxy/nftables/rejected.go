// SPDX-License-Identifier: Apache-2.0

package nftables

import (
	"errors"
	"iter"
	"maps"
	"slices"

	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/types"

	"github.com/causeway-lb/causeway/internal/netlink/nft"
	"github.com/causeway-lb/causeway/internal/proxy/model"
)

// blame returns those of services that have elements which the kernel rejected,
// each once; none if the rejections are about something else.
func (b *Backend) blame(services iter.Seq[*model.Service], rejections []*nft.Error) []types.NamespacedName {
	ids := make([]map[elementID]bool, len(b.families))
	found := false
	for _, r := range rejections {
		i := slices.IndexFunc(b.families, func(f *family) bool { return f.table == r.Table })
		set := slices.Index(setNames[:], r.Set)
		if i < 0 || set < 0 || general(r.Err) {
			continue
		}
		if ids[i] == nil {
			ids[i] = map[elementID]bool{}
		}
		for _, e := range r.Elements {
			rejected := element{setID(set), e}
			ids[i][rejected.id()] = true
			found = true
		}
	}
	if !found {
		return nil
	}
	guilty := map[types.NamespacedName]bool{}
	for svc := range services {
		for i, f := range b.families {
			if ids[i] != nil {
				f.render.service(svc, func(e element) {
					if ids[i][e.id()] {
						guilty[svc.Name] = true
					}
				})
			}
		}
	}
	return slices.Collect(maps.Keys(guilty))
}

// general says that an errno is about the whole system and no element.
func general(err error) bool {
	return slices.ContainsFunc([]error{unix.EPERM, unix.EACCES, unix.ENOMEM, unix.ENOBUFS, unix.EOPNOTSUPP},
		func(e error) bool { return errors.Is(err, e) })
}
