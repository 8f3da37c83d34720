// SPDX-License-Identifier: Apache-2.0

package kubeproxy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"

	"github.com/causeway-lb/causeway/internal/netlink/nft"
)

// variant is one of the four rule sets that iptables can mean.
type variant struct {
	name   string // of its programs, without -save and -restore
	family nft.Family
	legacy bool
}

var variants = []variant{
	{"iptables-nft", nft.FamilyIPv4, false},
	{"ip6tables-nft", nft.FamilyIPv6, false},
	{"iptables-legacy", nft.FamilyIPv4, true},
	{"ip6tables-legacy", nft.FamilyIPv6, true},
}

// has says whether the kernel has a table, without loading a module for it, as
// listing does.
func (v variant) has(conn *nft.Conn, table string) (bool, error) {
	if v.legacy {
		list := "/proc/thread-self/net/ip_tables_names"
		if v.family == nft.FamilyIPv6 {
			list = "/proc/thread-self/net/ip6_tables_names"
		}
		names, err := os.ReadFile(list)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return false, fmt.Errorf("list tables of %s: %w", v.name, err)
		}
		return slices.Contains(strings.Fields(string(names)), table), nil
	}
	if conn == nil {
		return false, nil
	}
	names, err := conn.Tables(v.family)
	return slices.Contains(names, table), err
}

// hasServices says whether the chain is there that all others hang on.
func (v variant) hasServices(ctx context.Context, conn *nft.Conn) (bool, error) {
	const table = "nat"
	if has, err := v.has(conn, table); err != nil || !has {
		return false, err
	}
	if !v.legacy {
		names, err := conn.ChainNames(nft.Table{Family: v.family, Name: table})
		return slices.Contains(names, chainServices), err
	}
	saved, err := run(ctx, nil, v.name+"-save", "-t", table)
	if errors.Is(err, exec.ErrNotFound) {
		return false, nil
	}
	return bytes.Contains(saved, []byte("\n:"+chainServices+" ")), err
}

// rules are kube-proxy's in one iptables table.
type rules struct {
	variant variant
	table   string
	// chains to remove, sorted; jumps to them from built-in chains.
	chains []string
	jumps  []rule
	// kept are chains that somebody else's rules need, and which ones.
	kept map[string]string
}

// rule is one, as iptables-save prints it after -A.
type rule struct{ chain, text string }

func (r rule) target() string {
	fields := strings.Fields(r.text)
	for i, f := range fields[:max(len(fields)-1, 0)] {
		if f == "-j" || f == "-g" {
			return fields[i+1]
		}
	}
	return ""
}

// commented says whether the rule carries a comment of kube-proxy's.
func (r rule) commented() bool {
	return slices.ContainsFunc(comments, func(c string) bool { return strings.Contains(r.text, `--comment "`+c+`"`) })
}

// findRules reads all tables of all variants.
func findRules(ctx context.Context, conn *nft.Conn) ([]rules, error) {
	var found []rules
	for _, v := range variants {
		for _, table := range slices.Sorted(maps.Keys(chains)) {
			if has, err := v.has(conn, table); err != nil || !has {
				if err != nil {
					return nil, err
				}
				continue
			}
			saved, err := run(ctx, nil, v.name+"-save", "-t", table)
			if err != nil {
				return nil, fmt.Errorf("read table %s of %s: %w", table, v.name, err)
			}
			r := parse(table, saved)
			r.variant = v
			if len(r.chains)+len(r.jumps)+len(r.kept) > 0 {
				found = append(found, r)
			}
		}
	}
	return found, nil
}

// parse sorts out what iptables-save prints of a table.
func parse(table string, saved []byte) rules {
	found := rules{table: table, kept: map[string]string{}}
	var have []string
	leads := map[string][]string{} // from chain to chain, among kube-proxy's
	for line := range strings.Lines(string(saved)) {
		line = strings.TrimSpace(line)
		if name, ok := strings.CutPrefix(line, ":"); ok {
			if name, _, _ = strings.Cut(name, " "); ours(table, name) {
				have = append(have, name)
			}
			continue
		}
		text, ok := strings.CutPrefix(line, "-A ")
		if !ok {
			continue
		}
		var r rule
		r.chain, r.text, _ = strings.Cut(text, " ")
		switch target := r.target(); {
		case !ours(table, target):
		case ours(table, r.chain):
			leads[r.chain] = append(leads[r.chain], target)
		case r.commented():
			found.jumps = append(found.jumps, r)
		default:
			found.kept[target] = "-A " + text
		}
	}
	found.keep(leads)
	found.chains = slices.DeleteFunc(have, func(name string) bool { _, kept := found.kept[name]; return kept })
	slices.Sort(found.chains)
	return found
}

// keep adds what the kept chains lead to. Who sets kube-proxy's mark wants what
// masquerades by it.
func (r *rules) keep(leads map[string][]string) {
	todo := slices.Collect(maps.Keys(r.kept))
	for len(todo) > 0 {
		name := todo[0]
		todo = todo[1:]
		next := leads[name]
		if name == chainMark {
			next = append(next, chainPostrouting)
		}
		for _, n := range next {
			if _, known := r.kept[n]; !known {
				r.kept[n] = r.kept[name]
				todo = append(todo, n)
			}
		}
	}
	r.jumps = slices.DeleteFunc(r.jumps, func(j rule) bool { _, kept := r.kept[j.target()]; return kept })
}

// remove takes the rules away. In table nat those by which packets come in go
// first: what came in before is still masqueraded.
func (r *rules) remove(ctx context.Context) error {
	if len(r.chains)+len(r.jumps) == 0 {
		return nil
	}
	entrance := func(j rule) bool { return r.table == "nat" && j.chain != "POSTROUTING" }
	var in bytes.Buffer
	for _, j := range r.jumps {
		if entrance(j) {
			fmt.Fprintf(&in, "-D %s %s\n", j.chain, j.text)
		}
	}
	if in.Len() > 0 {
		if err := r.restore(ctx, in.Bytes()); err != nil {
			return err
		}
		nft.Settle()
		r.jumps = slices.DeleteFunc(r.jumps, entrance)
	}
	in.Reset()
	for _, name := range r.chains {
		fmt.Fprintf(&in, ":%s - [0:0]\n", name) // which empties it
	}
	for _, j := range r.jumps {
		fmt.Fprintf(&in, "-D %s %s\n", j.chain, j.text)
	}
	for _, name := range r.chains {
		fmt.Fprintf(&in, "-X %s\n", name)
	}
	return r.restore(ctx, in.Bytes())
}

// restore has the kernel carry out changes of the table in one step.
func (r *rules) restore(ctx context.Context, changes []byte) error {
	_, err := run(ctx, fmt.Appendf(nil, "*%s\n%sCOMMIT\n", r.table, changes), r.variant.name+"-restore", "-w", "10", "--noflush")
	if err != nil {
		return fmt.Errorf("remove rules from table %s of %s: %w", r.table, r.variant.name, err)
	}
	return nil
}

// lines says what would be removed and what would not.
func (r *rules) lines() []string {
	where := r.variant.name + ", table " + r.table
	var out []string
	if len(r.chains)+len(r.jumps) > 0 {
		var named []string
		for _, name := range r.chains {
			if !hashed.MatchString(name) {
				named = append(named, name)
			}
		}
		what := strings.Join(named, ", ")
		if n := len(r.chains) - len(named); n > 0 {
			what += fmt.Sprintf(", and %d of Services and endpoints", n)
		}
		out = append(out, fmt.Sprintf("remove %s: %d jumps; chains %s", where, len(r.jumps), what))
	}
	for _, name := range slices.Sorted(maps.Keys(r.kept)) {
		out = append(out, fmt.Sprintf("keep %s: chain %s, because of a rule that is not kube-proxy's: %s", where, name, r.kept[name]))
	}
	return out
}

// run runs a program; what it printed to standard error is in the error.
func run(ctx context.Context, in []byte, name string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdin = bytes.NewReader(in)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	switch {
	case errors.Is(err, exec.ErrNotFound):
		return nil, fmt.Errorf("%w: install iptables 1.8, or run this where it is: on the node itself", err)
	case err != nil:
		return nil, fmt.Errorf("%s: %w: %s", name, err, strings.TrimSpace(stderr.String()))
	}
	return stdout.Bytes(), nil
}
