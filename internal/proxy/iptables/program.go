// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"

	"github.com/causeway-lb/causeway/internal/proxy/backend"
	"github.com/causeway-lb/causeway/internal/proxy/model"
)

// program runs iptables-save and iptables-restore of one family.
type program struct {
	save, restore string
}

// newProgram finds the programs of a variant: "legacy", "nft", or "" for the
// one that the system has chosen.
func newProgram(fam model.Family, variant string) (*program, error) {
	base := "iptables"
	if fam == model.IPv6 {
		base = "ip6tables"
	}
	if variant != "" {
		base += "-" + variant
	}
	p := &program{save: base + "-save", restore: base + "-restore"}
	for _, name := range []string{p.save, p.restore} {
		if _, err := exec.LookPath(name); err != nil {
			return nil, &backend.UnsupportedError{Feature: "the program " + name + " (Debian package iptables)", Err: err}
		}
	}
	return p, nil
}

// dump is a table as the kernel has it.
type dump struct {
	// chains are the rules of our chains, in order, without "-A CHAIN ".
	chains map[string][]string
	// jumps are the rules of built-in chains that lead to ours, by chain.
	jumps map[string][]string
	// first says which built-in chains begin with such a rule.
	first map[string]bool
}

// read lists one table.
func (p *program) read(ctx context.Context, t table) (*dump, error) {
	out, err := run(ctx, nil, p.save, "-t", string(t))
	if err != nil {
		return nil, fmt.Errorf("read table %s: %w", t, err)
	}
	return parse(out), nil
}

// parse reads what iptables-save prints; lines that are none of ours are left
// out.
func parse(out []byte) *dump {
	d := &dump{chains: map[string][]string{}, jumps: map[string][]string{}, first: map[string]bool{}}
	seen := map[string]bool{}
	for line := range strings.Lines(string(out)) {
		line = strings.TrimSpace(line)
		if chain, ok := strings.CutPrefix(line, ":"); ok {
			chain, _, _ = strings.Cut(chain, " ")
			if strings.HasPrefix(chain, prefix) {
				d.chains[chain] = []string{}
			}
			continue
		}
		rule, ok := strings.CutPrefix(line, "-A ")
		if !ok {
			continue
		}
		chain, text, _ := strings.Cut(rule, " ")
		switch {
		case strings.HasPrefix(chain, prefix):
			d.chains[chain] = append(d.chains[chain], text)
		case strings.Contains(text, "-j "+prefix):
			d.jumps[chain] = append(d.jumps[chain], text)
			d.first[chain] = !seen[chain]
		}
		seen[chain] = true
	}
	return d
}

// apply runs one restore; the kernel takes all of each table or nothing.
func (p *program) apply(ctx context.Context, input []byte) error {
	if len(input) == 0 {
		return nil
	}
	_, err := run(ctx, input, p.restore, "-w", "10", "--noflush")
	return err
}

// run runs a program; what it printed to standard error is in the error.
func run(ctx context.Context, input []byte, name string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdin = bytes.NewReader(input)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return nil, understand(name, err, strings.TrimSpace(stderr.String()))
	}
	return stdout.Bytes(), nil
}

// understand is the one place that reads what iptables says.
func understand(name string, err error, said string) error {
	for _, phrase := range []string{"Table does not exist", "does not exist (do you need to insmod?)", "Protocol not supported"} {
		if strings.Contains(said, phrase) {
			return &backend.UnsupportedError{Feature: "iptables (tables nat and filter)", Err: errors.New(said)}
		}
	}
	for _, match := range []string{"statistic", "recent", "addrtype", "iprange", "conntrack", "MASQUERADE", "REJECT", "MARK"} {
		if strings.Contains(said, "Couldn't load match `"+match) || strings.Contains(said, "Couldn't load target `"+match) ||
			strings.Contains(said, "Extension "+match+" revision 0 not supported, missing kernel module") {
			return &backend.UnsupportedError{Feature: "iptables extension " + match, Err: errors.New(said)}
		}
	}
	return fmt.Errorf("%s: %w: %s", name, err, said)
}
