// SPDX-License-Identifier: Apache-2.0

package modes

import (
	"errors"

	"github.com/vishvananda/netlink"

	"github.com/causeway-lb/causeway/internal/proxy/backend"
	"github.com/causeway-lb/causeway/internal/proxy/iptables"
	"github.com/causeway-lb/causeway/internal/proxy/ipvs"
	"github.com/causeway-lb/causeway/internal/proxy/nftables"
	"github.com/causeway-lb/causeway/internal/proxy/none"
	"github.com/causeway-lb/causeway/internal/proxy/userspace"
)

// Configs are those of the modes that have some.
type Configs struct {
	IPVS      ipvs.Config
	IPTables  iptables.Config
	Userspace userspace.Config
	None      none.Config
}

// Validate says what is wrong.
func (c Configs) Validate() error {
	return errors.Join(c.IPVS.Validate(), c.IPTables.Validate(), c.Userspace.Validate(), c.None.Validate())
}

// Kinds are the modes of a node, in the network namespace of the thread that
// uses them.
func Kinds(c Configs) map[Mode]Kind {
	return map[Mode]Kind{
		NFTables: {
			Open:    func() (backend.Backend, error) { return opened(nftables.New(nftables.Config{})) },
			Present: nftables.Present,
		},
		IPTables: {
			Open:    func() (backend.Backend, error) { return opened(iptables.New(c.IPTables)) },
			Present: func() (bool, error) { return iptables.Present(c.IPTables) },
		},
		IPVS: {
			Open:    func() (backend.Backend, error) { return opened(ipvs.New(c.IPVS)) },
			Present: ipvsPresent,
		},
		Userspace: {
			Open:    func() (backend.Backend, error) { return opened(userspace.New(c.Userspace)) },
			Present: userspace.Present,
			Yield:   userspace.Yield,
		},
		None: {
			Open:    func() (backend.Backend, error) { return opened(none.New(c.None)) },
			Present: func() (bool, error) { return false, nil },
		},
	}
}

// Programmed says whether any of kinds has objects in the kernel, as far as that
// can be told.
func Programmed(kinds map[Mode]Kind) (bool, error) {
	for _, kind := range kinds {
		if kind.Present == nil {
			continue
		}
		if present, err := kind.Present(); err != nil || present {
			return present, err
		}
	}
	return false, nil
}

// opened keeps a nil *T from becoming an interface that is not nil.
func opened[B backend.Backend](b B, err error) (backend.Backend, error) {
	if err != nil {
		return nil, err
	}
	return b, nil
}

// ipvsPresent keeps the kernel's module from being loaded only to look for what
// was never made.
func ipvsPresent() (bool, error) {
	_, err := netlink.LinkByName(ipvs.Name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return false, nil
	}
	return err == nil, err
}
