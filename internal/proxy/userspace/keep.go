// SPDX-License-Identifier: Apache-2.0

package userspace

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/causeway-lb/causeway/internal/netlink/conntrack"
	"github.com/causeway-lb/causeway/internal/netlink/ipvs"
	"github.com/causeway-lb/causeway/internal/netlink/nft"
	"github.com/causeway-lb/causeway/internal/netlink/nft/expr"
	"github.com/causeway-lb/causeway/internal/proxy/elements"
	"github.com/causeway-lb/causeway/internal/proxy/model"
)

// keepName is the table that stands in for those of a mode that has gone.
const keepName = "causeway-translated"

// keeper keeps connections going that another mode has translated. The kernel
// goes on translating them only while some chain of type nat, and some rule
// that looks at connections, are there.
type keeper struct {
	conn     *nft.Conn
	families []model.Family
	began    bool
}

func keepTable(f model.Family) nft.Table {
	t := tableOf(f)
	t.Name = keepName
	return t
}

// keep is to be called before the proxy's tables are there and another mode's
// objects go, and then now and again: without translated connections nothing
// stays behind. beside says that IPVS still has some.
func (k *keeper) keep() (beside bool, err error) {
	beside, err = k.passIPVS()
	if err != nil {
		return false, fmt.Errorf("pass by IPVS: %w", err)
	}
	needed, err := k.needed()
	if err != nil {
		return false, err
	}
	k.began = true
	if !needed && !beside {
		return false, k.removeTables()
	}
	var tx nft.Batch
	for _, f := range k.families {
		for _, c := range kept(f, beside) {
			tx.AddTable(c.Table)
			tx.AddChain(c)
			tx.FlushChain(c.Table, c.Name)
			tx.AppendRules(c)
		}
	}
	err = k.conn.Commit(&tx)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EOPNOTSUPP) {
		err = nil // a kernel that cannot translate has translated nothing
	}
	if err != nil {
		return false, fmt.Errorf("keep translated connections: %w", err)
	}
	return beside, nil
}

// kept are the chains of a family. IPVS knows a flow by UDP longer than connection
// tracking does, and longer than the tables stay that masqueraded it: what is new to
// connection tracking leaves with an address of this node, so that the answer comes back
// to where IPVS gives it the source that its client has dialled.
func kept(f model.Family, beside bool) []nft.Chain {
	table := keepTable(f)
	x := func() *expr.List { return expr.For(table.Family) }
	chain := func(name, kind string, hook uint32, priority int32, r nft.Rule) nft.Chain {
		c := nft.Chain{Table: table, Name: name, Hook: &nft.Hook{Type: kind, Num: hook, Priority: priority}, Rules: []nft.Rule{r}}
		if hook == expr.HookPostrouting && !beside {
			c.Rules = nil
		}
		return c
	}
	const last = 225
	return []nft.Chain{
		chain(chainPrerouting, "nat", expr.HookPrerouting, expr.PriorityDstNAT, x().Tracked().Accept().Rule("open connections are still translated")),
		chain(chainMasquerade, "nat", expr.HookPostrouting, expr.PrioritySrcNAT, x().Marked(markPassed).Masquerade().Rule("IPVS has it")),
		chain(chainUnmark, "filter", expr.HookPostrouting, last, x().Marked(markPassed).MarkWith(0).Rule("")),
	}
}

// passIPVS has IPVS let pass what belongs to the proxy, as long as it has
// virtual servers that would take it: a virtual server for our mark delivers
// locally, unchanged. It says whether there are others.
func (k *keeper) passIPVS() (others bool, err error) {
	others, ours, err := virtualServers()
	if err != nil || others == ours {
		return others, err
	}
	if !others {
		return false, removePass(k.families)
	}
	conn, err := ipvs.Dial()
	if err != nil {
		return false, err
	}
	defer conn.Close()
	var changes []ipvs.Change
	for _, f := range k.families {
		server := pass(f)
		real := ipvs.RealServer{AddrPort: netip.AddrPortFrom(loopback(f), 0), Weight: 1, Direct: true}
		changes = append(changes, ipvs.Change{Op: ipvs.AddServer, Server: server, Settings: ipvs.Settings{Scheduler: "rr"}},
			ipvs.Change{Op: ipvs.AddReal, Server: server, Real: real})
	}
	return true, errors.Join(slices.DeleteFunc(conn.Do(changes), func(err error) bool { return errors.Is(err, unix.EEXIST) })...)
}

// pass is the virtual server of the proxy's packets.
func pass(f model.Family) ipvs.Key { return ipvs.Key{Mark: uint32(Mark), IPv6: f == model.IPv6} }

func removePass(families []model.Family) error {
	conn, err := ipvs.Dial()
	if err != nil {
		return err
	}
	defer conn.Close()
	var changes []ipvs.Change
	for _, f := range families {
		changes = append(changes, ipvs.Change{Op: ipvs.DeleteServer, Server: pass(f)})
	}
	return errors.Join(slices.DeleteFunc(conn.Do(changes), func(err error) bool { return errors.Is(err, unix.ESRCH) })...)
}

// virtualServers says whether IPVS has any by our mark, and any others. It
// does not load the kernel's module to find out.
func virtualServers() (others, ours bool, err error) {
	list, err := os.ReadFile("/proc/thread-self/net/ip_vs")
	if errors.Is(err, fs.ErrNotExist) {
		return false, false, nil
	}
	mark := fmt.Sprintf("%08X", uint32(Mark))
	for line := range strings.Lines(string(list)) {
		words := strings.Fields(line)
		switch {
		case len(words) < 2:
		case words[0] == "FWM" && words[1] == mark:
			ours = true
		case slices.Contains([]string{"TCP", "UDP", "SCTP", "FWM"}, words[0]):
			others = true
		}
	}
	return others, ours, err
}

// needed says whether there may be translated connections. At first that is
// wherever connections are tracked: another mode may still begin some.
func (k *keeper) needed() (bool, error) {
	if !k.began {
		return tracked(), nil
	}
	for _, f := range k.families {
		if there, err := k.conn.Tables(keepTable(f).Family); err != nil || !slices.Contains(there, keepName) {
			if err != nil {
				return false, err
			}
			continue
		}
		some, err := conntrack.AnyTranslated(f.Unspecified())
		if some || err != nil {
			return some, err
		}
	}
	return false, nil
}

// remove deletes everything; absent is no error.
func (k *keeper) remove() error {
	errs := []error{k.removeTables()}
	if _, ours, err := virtualServers(); ours || err != nil {
		errs = append(errs, err, removePass(k.families))
	}
	return errors.Join(errs...)
}

func (k *keeper) removeTables() error {
	var tx nft.Batch
	for _, f := range k.families {
		tx.AddTable(keepTable(f))
		tx.DeleteTable(keepTable(f))
	}
	return k.conn.Commit(&tx)
}

// forget ends the tracking of what was dialled at these elements and not
// translated.
func (k *keeper) forget(found elements.Map[setID]) error {
	if !tracked() {
		return nil
	}
	keys := map[conntrack.Key]bool{}
	for id := range found {
		if key, ok := dialled(id); ok {
			keys[conntrack.Key{Addr: key.Addr, Port: key.Port, Protocol: uint8(key.Protocol)}] = true
		}
	}
	if len(keys) == 0 {
		return nil
	}
	return conntrack.DeleteDialled(keys, func(e *conntrack.Entry) bool { return !e.Translated() })
}

// tracked says whether the kernel tracks any connections.
func tracked() bool {
	count, err := os.ReadFile("/proc/sys/net/netfilter/nf_conntrack_count")
	return err == nil && strings.TrimSpace(string(count)) != "0"
}
