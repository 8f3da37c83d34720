// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/causeway-lb/causeway/internal/netlink/nft"
	"github.com/causeway-lb/causeway/internal/proxy/model"
)

// Present says whether the kernel may have something of ours. It starts no
// program and does not load the legacy variant's modules, which listing a
// table there does.
func Present(cfg Config) (bool, error) {
	if err := cfg.Validate(); err != nil {
		return false, err
	}
	p, err := newProgram(model.IPv4, cfg.Variant)
	if err != nil {
		return false, nil //nolint:nilerr // without the program nothing was made
	}
	at, err := exec.LookPath(p.restore)
	if err == nil {
		at, err = filepath.EvalSymlinks(at)
	}
	if err != nil {
		return false, fmt.Errorf("find %s: %w", p.restore, err)
	}
	if cfg.Variant == "legacy" || cfg.Variant == "" && strings.Contains(at, "legacy") {
		return presentLegacy()
	}
	return presentNFT()
}

// presentLegacy: the kernel lists the tables that it has.
func presentLegacy() (bool, error) {
	for _, list := range []string{"/proc/thread-self/net/ip_tables_names", "/proc/thread-self/net/ip6_tables_names"} {
		names, err := os.ReadFile(list)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return false, fmt.Errorf("list legacy tables: %w", err)
		}
		if strings.Contains(string(names), string(nat)) {
			return true, nil
		}
	}
	return false, nil
}

// presentNFT looks at the nf_tables tables that stand for those of iptables.
func presentNFT() (bool, error) {
	conn, err := nft.Dial()
	if err != nil {
		return false, nil //nolint:nilerr // no nf_tables, nothing in it
	}
	defer conn.Close()
	for _, f := range nft.Families {
		for _, t := range []table{nat, filter} {
			names, err := conn.ChainNames(nft.Table{Family: f, Name: string(t)})
			if err != nil {
				return false, err
			}
			if slices.ContainsFunc(names, func(name string) bool { return strings.HasPrefix(name, prefix) }) {
				return true, nil
			}
		}
	}
	return false, nil
}
