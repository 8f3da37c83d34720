// SPDX-License-Identifier: Apache-2.0

package kubeproxy

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/causeway-lb/causeway/internal/netlink/nft"
)

// Leftovers are what kube-proxy has left, in the network namespace of the
// calling thread.
type Leftovers struct {
	tables []nft.Table
	rules  []rules
	ipvs   *ipvs // nil without the interface
}

// Find reads the kernel. It changes nothing, and loads no module.
func Find(ctx context.Context) (*Leftovers, error) {
	found := &Leftovers{}
	conn, err := nft.Dial()
	if err != nil {
		conn = nil // no nf_tables, and nothing in it
	} else {
		defer conn.Close()
		if found.tables, err = findTables(conn); err != nil {
			return nil, err
		}
	}
	if found.rules, err = findRules(ctx, conn); err != nil {
		return nil, err
	}
	if found.ipvs, err = findIPVS(); err != nil {
		return nil, err
	}
	return found, nil
}

// Present says what there is, in short; "" if nothing. It costs little, and
// starts a program for iptables' legacy variant only, where that is in use;
// without the program it does not see that.
func Present(ctx context.Context) (string, error) {
	var what []string
	if conn, err := nft.Dial(); err == nil {
		defer conn.Close()
		tables, err := findTables(conn)
		if err != nil {
			return "", err
		}
		for _, t := range tables {
			what = append(what, "nf_tables table "+t.String())
		}
		for _, v := range variants {
			if found, err := v.hasServices(ctx, conn); err != nil {
				return "", err
			} else if found {
				what = append(what, "chains KUBE-* of "+v.name)
			}
		}
	}
	switch _, err := netlink.LinkByName(Device); {
	case err == nil:
		what = append(what, "interface "+Device)
	case !errors.As(err, &netlink.LinkNotFoundError{}):
		return "", fmt.Errorf("find %s: %w", Device, err)
	}
	return strings.Join(what, ", "), nil
}

func findTables(conn *nft.Conn) ([]nft.Table, error) {
	var found []nft.Table
	for _, f := range nft.Families {
		t := nft.Table{Family: f, Name: tableName}
		have, err := conn.ChainNames(t)
		if err != nil {
			return nil, err
		}
		if !slices.ContainsFunc(tableChains, func(name string) bool { return !slices.Contains(have, name) }) {
			found = append(found, t)
		}
	}
	return found, nil
}

// Lines says what Remove would remove, and what it would keep and why.
func (l *Leftovers) Lines() []string {
	var out []string
	for _, t := range l.tables {
		out = append(out, "remove nf_tables table "+t.String())
	}
	for i := range l.rules {
		out = append(out, l.rules[i].lines()...)
	}
	if l.ipvs != nil {
		out = append(out, l.ipvs.lines()...)
	}
	return out
}

// Empty says that there is nothing to remove.
func (l *Leftovers) Empty() bool {
	return len(l.tables) == 0 && l.ipvs == nil &&
		!slices.ContainsFunc(l.rules, func(r rules) bool { return len(r.chains)+len(r.jumps) > 0 })
}

// Config of a removal.
type Config struct {
	// Drain is how long connections of mode ipvs may take to end; then they are
	// cut off.
	Drain time.Duration
	// Waiting, unless nil, is told now and then what has not ended.
	Waiting func(connections int)
}

// Remove removes it all; package doc says in which order. Rules of different
// tables are independent of each other: an error in one does not keep the
// others. What is gone meanwhile is no error. After an error or a cancelled ctx,
// Find and Remove go on where this ended.
func (l *Leftovers) Remove(ctx context.Context, cfg Config) error {
	if l.ipvs != nil {
		if err := l.ipvs.route(); err != nil {
			return err
		}
	}
	errs := []error{l.removeTables()}
	for i := range l.rules {
		errs = append(errs, l.rules[i].remove(ctx))
	}
	err := errors.Join(errs...)
	if l.ipvs == nil || err != nil {
		return err // the sets are still in use
	}
	if err := l.ipvs.drain(ctx, cfg); err != nil {
		return err
	}
	return l.ipvs.remove()
}

func (l *Leftovers) removeTables() error {
	if len(l.tables) == 0 {
		return nil
	}
	conn, err := nft.Dial()
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.RemoveTables(l.tables...); err != nil {
		return fmt.Errorf("remove kube-proxy's nf_tables tables: %w", err)
	}
	return nil
}
