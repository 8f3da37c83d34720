// SPDX-License-Identifier: Apache-2.0

package ipvs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strings"

	"github.com/go-logr/logr"

	"github.com/causeway-lb/causeway/internal/netlink/nft"
	"github.com/causeway-lb/causeway/internal/proxy/model"
)

// firewall lets what is on its way to IPVS pass the INPUT chain of iptables,
// which sees it before IPVS does: a node that drops there what it does not know
// would serve nothing (kubernetes#98465). One rule in each table that is in use
// accepts by mark. Tables that nobody uses are not brought up for that.
type firewall struct {
	families []model.Family
	// told says that a missing program was logged.
	told bool
}

var acceptMarked = fmt.Sprintf("-m mark --mark %#x/%#x -m comment --comment %s -j ACCEPT", uint32(markBase), uint32(markMask), Name)

// open puts the rule at the top of every chain in use that lacks it.
func (f *firewall) open(ctx context.Context) error {
	return f.each(ctx, func(have int) string {
		if have > 0 {
			return ""
		}
		return "-I INPUT 1 " + acceptMarked + "\n"
	})
}

// close takes the rule out again.
func (f *firewall) close(ctx context.Context) error {
	return f.each(ctx, func(have int) string { return strings.Repeat("-D INPUT "+acceptMarked+"\n", have) })
}

// each asks for every table in use what to change, given how many such rules
// there are.
func (f *firewall) each(ctx context.Context, change func(have int) string) error {
	var errs []error
	for _, fam := range f.families {
		for _, variant := range []string{"nft", "legacy"} {
			used, err := filterInUse(fam, variant)
			if used {
				err = f.table(ctx, fam, variant, change)
			}
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func (f *firewall) table(ctx context.Context, fam model.Family, variant string, change func(int) string) error {
	program := "iptables-" + variant
	if fam == model.IPv6 {
		program = "ip6tables-" + variant
	}
	if _, err := exec.LookPath(program + "-restore"); err != nil {
		if !f.told {
			logr.FromContextOrDiscard(ctx).Info("Cannot let Services pass the firewall for want of a program; if its INPUT chain drops them, add the rule",
				"program", program, "rule", "-I INPUT "+acceptMarked)
		}
		f.told = true
		return nil
	}
	list, err := iptables(ctx, "", program+"-save", "-t", "filter")
	if err != nil {
		return err
	}
	input := change(strings.Count(list, "-A INPUT "+acceptMarked+"\n"))
	if input == "" {
		return nil
	}
	_, err = iptables(ctx, "*filter\n"+input+"COMMIT\n", program+"-restore", "-w", "10", "--noflush")
	return err
}

func iptables(ctx context.Context, input, program string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, program, args...)
	var out, complaints bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(input), &out, &complaints
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s: %w: %s", program, err, strings.TrimSpace(complaints.String()))
	}
	return out.String(), nil
}

// filterInUse says whether a variant's filter table has an INPUT chain. It asks
// the kernel, as the legacy programs would load their modules to answer.
func filterInUse(fam model.Family, variant string) (bool, error) {
	if variant == "legacy" {
		at := "/proc/thread-self/net/ip_tables_names"
		if fam == model.IPv6 {
			at = "/proc/thread-self/net/ip6_tables_names"
		}
		names, err := os.ReadFile(at)
		if errors.Is(err, fs.ErrNotExist) {
			return false, nil
		}
		if err != nil {
			return false, fmt.Errorf("list legacy tables: %w", err)
		}
		return bytes.Contains(append([]byte("\n"), names...), []byte("\nfilter\n")), nil
	}
	conn, err := nft.Dial()
	if err != nil {
		return false, err
	}
	defer conn.Close()
	chains, err := conn.Chains(nft.Table{Family: tableOf(fam).Family, Name: "filter"})
	if err != nil {
		return false, err
	}
	c := chains["INPUT"]
	return c != nil && c.Hook != nil, nil
}
