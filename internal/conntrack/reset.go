// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	gexpr "github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/causeway-lb/causeway/internal/netlink/conntrack"
	"github.com/causeway-lb/causeway/internal/netlink/nft"
	"github.com/causeway-lb/causeway/internal/netlink/nft/expr"
	"github.com/causeway-lb/causeway/internal/proxy/model"
)

const (
	resetTable = "causeway-resets"
	resetFlows = "flows" // client . its port . frontend . its port
	// resetTimeout is longer than an idle Linux client waits before it probes,
	// two hours.
	resetTimeout = 150 * time.Minute
	// prioResets is the priority of chains that see packets behind connection tracking
	// and before any mode does: mode ipvs drops and refuses in those of mangle.
	prioResets = -160
	// resetSize bounds the flows that are noted at a time.
	resetSize = 1 << 18
)

// refuser notes flows whose clients are to be reset.
type refuser struct {
	conn     *nft.Conn
	declared map[model.Family]bool
}

// close releases the socket.
func (r *refuser) close() {
	if r.conn != nil {
		_ = r.conn.Close()
	}
}

// refuse has the next segment of each translated TCP flow, all of one family,
// answered with a reset, once its entry is deleted. The first time it writes the whole table, so
// that it does not matter who deleted what of it.
func (r *refuser) refuse(entries []conntrack.Entry) error {
	if r.conn == nil {
		conn, err := nft.Dial()
		if err != nil {
			return fmt.Errorf("have clients reset: %w", err)
		}
		r.conn, r.declared = conn, map[model.Family]bool{}
	}
	fam := model.FamilyOf(entries[0].Source.Addr())
	err := r.note(fam, entries, false)
	if errors.Is(err, unix.EEXIST) || errors.Is(err, unix.EOPNOTSUPP) {
		// Another version of the agent has made it, otherwise.
		err = r.note(fam, entries, true)
	}
	if err != nil {
		return fmt.Errorf("have clients reset: %w", err)
	}
	return nil
}

// note adds the flows, to a new table if anew.
func (r *refuser) note(fam model.Family, entries []conntrack.Entry, anew bool) error {
	var tx nft.Batch
	table := familyTable(fam, resetTable)
	if anew {
		tx.AddTable(table)
		tx.DeleteTable(table)
	}
	n := 0
	for i := range entries {
		e := &entries[i]
		// What was not translated is not a Service's for sure.
		if e.Protocol != uint8(model.TCP) || !e.Translated() {
			continue
		}
		if n == 0 && (anew || !r.declared[fam]) {
			declareResets(&tx, fam, table)
		}
		tx.AddElement(table, resetFlows, nft.Element{Key: string(flowKey(e))})
		n++
	}
	if n == 0 {
		return nil
	}
	if err := r.conn.Commit(&tx); err != nil {
		return err
	}
	r.declared[fam] = true
	return nil
}

func flowKey(e *conntrack.Entry) []byte {
	var b []byte
	for _, ap := range []netip.AddrPort{e.Source, e.Destination} {
		b = append(b, ap.Addr().AsSlice()...)
		b = binary.BigEndian.AppendUint16(b, ap.Port())
		b = append(b, 0, 0)
	}
	return b
}

// declareResets makes what is missing of the table and writes its rules anew.
func declareResets(tx *nft.Batch, fam model.Family, table nft.Table) {
	addr := table.Family.AddrType()
	tx.AddTable(table)
	tx.AddSet(nft.Set{
		Table: table, Name: resetFlows, Key: []nft.Type{addr, nft.TypeService, addr, nft.TypeService},
		Dynamic: true, Timeout: resetTimeout, Size: resetSize,
	})
	// Not "prerouting" and "output", for what arrivingChain says.
	for name, hook := range map[string]uint32{arrivingChain: expr.HookPrerouting, "own": expr.HookOutput} {
		tx.AddChain(nft.Chain{Table: table, Name: name, Hook: &nft.Hook{Type: "filter", Num: hook, Priority: prioResets}})
		tx.FlushChain(table, name)
		tx.AppendRule(table, name, resetRule(fam).Rule("its Service or endpoint is gone"))
	}
}

// resetRule is
//
//	meta l4proto tcp tcp flags & (syn | rst) == 0 ct state invalid,new
//	ip saddr . tcp sport . ip daddr . tcp dport @flows reject with tcp reset
func resetRule(fam model.Family) *expr.List {
	n := words(fam)
	return segments(fam, gexpr.CmpOpEq, expr.SYN|expr.RST, gexpr.CtStateBitINVALID|gexpr.CtStateBitNEW).
		Saddr(r0).Sport(r0+n).Daddr(r0+n+1).Dport(r0+2*n+1).
		Lookup(r0, expr.Name(resetFlows)).RejectTCP()
}
