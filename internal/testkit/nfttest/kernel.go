// SPDX-License-Identifier: Apache-2.0

package nfttest

import (
	"encoding/binary"
	"errors"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/causeway-lb/causeway/internal/netlink"
	"github.com/causeway-lb/causeway/internal/netlink/attributes"
	"github.com/causeway-lb/causeway/internal/netlink/nft"
)

const nfgenmsgLen = 4

// ErrFault is what requests fail with that Faults lets fail.
var ErrFault = errors.New("fault")

// Kernel is the nf_tables of one network namespace. It is safe for concurrent use,
// each of its connections by one at a time.
type Kernel struct {
	mu         sync.Mutex
	tables     map[nft.Table]*table
	generation uint32
	ports      uint32

	rnd         *rand.Rand
	odds        float64
	faults      int
	interrupted int
}

// NewKernel returns a Kernel without tables.
func NewKernel() *Kernel { return &Kernel{tables: map[nft.Table]*table{}, generation: 1} }

// Conn returns a connection.
func (k *Kernel) Conn() *nft.Conn {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.ports++
	return nft.NewConn(&socket{kernel: k, port: k.ports})
}

// Faults lets requests fail with ErrFault from now on, with these odds before they
// are carried out and behind it; a nil rnd ends that. Fault returns how many did.
func (k *Kernel) Faults(rnd *rand.Rand, odds float64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.rnd, k.odds = rnd, odds
}

// Fault returns how many requests were let fail.
func (k *Kernel) Fault() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.faults
}

// Interrupt spoils the next n dumps, as a change during each of them does.
func (k *Kernel) Interrupt(n int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.interrupted = n
}

func (k *Kernel) fault() bool {
	if k.rnd == nil || k.rnd.Float64() >= k.odds {
		return false
	}
	k.faults++
	return true
}

// socket is one connection's. What is received was queued when it was asked for.
type socket struct {
	kernel *Kernel
	port   uint32
	queue  [][]byte
	// broken says that the answer to the last request is lost.
	broken bool
}

func (s *socket) Port() uint32 { return s.port }
func (s *socket) Close() error { return nil }

func (s *socket) Drain() error {
	s.queue, s.broken = nil, false
	return nil
}

func (s *socket) Receive() ([]byte, error) {
	switch {
	case s.broken:
		return nil, ErrFault
	case len(s.queue) == 0:
		return nil, unix.EAGAIN
	}
	first := s.queue[0]
	s.queue = s.queue[1:]
	return first, nil
}

func (s *socket) Send(parts ...[]byte) error {
	k := s.kernel
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.fault() {
		return ErrFault
	}
	var all []netlink.Message
	for m, err := range netlink.Messages(slices.Concat(parts...)) {
		if err != nil || len(m.Body) < nfgenmsgLen {
			return unix.EINVAL
		}
		all = append(all, m)
	}
	switch {
	case len(all) == 0:
		return unix.EINVAL
	case all[0].Type == unix.NFNL_MSG_BATCH_BEGIN:
		s.queue = append(s.queue, k.transaction(all)...)
	default:
		for i := range all {
			s.queue = append(s.queue, k.answer(&all[i]))
		}
	}
	s.broken = k.fault()
	return nil
}

// transaction carries out a batch and returns the answers.
func (k *Kernel) transaction(batch []netlink.Message) (answers [][]byte) {
	if batch[len(batch)-1].Type != unix.NFNL_MSG_BATCH_END {
		return nil // the kernel drops what does not end, without a word
	}
	before := k.tables
	k.tables = maps.Clone(before)
	failed, changed := false, false
	for i := 1; i < len(batch)-1; i++ {
		m := &batch[i]
		offset, err := k.change(m, before)
		if errors.Is(err, errNothing) {
			err = nil
		} else {
			changed = true
		}
		failed = failed || err != nil
		if err != nil || m.Flags&unix.NLM_F_ACK != 0 {
			answers = append(answers, errorMessage(m.Seq, err, offset))
		}
	}
	if failed {
		k.tables = before
		return answers
	}
	if changed {
		k.generation++
	}
	return answers
}

func errorMessage(seq uint32, err error, offset int) []byte {
	var e attributes.Encoder
	flags := uint16(0)
	if offset > 0 {
		flags = unix.NLM_F_ACK_TLVS
	}
	e.Buf = netlink.AppendHeader(nil, unix.NLMSG_ERROR, flags, seq)
	var errno unix.Errno
	errors.As(err, &errno)
	e.Buf = binary.NativeEndian.AppendUint32(e.Buf, uint32(-int32(errno)))
	e.Buf = append(e.Buf, make([]byte, netlink.HeaderLen)...)
	if offset > 0 {
		const extOffset = 2 // NLMSGERR_ATTR_OFFS
		e.Uint32(extOffset, uint32(offset))
	}
	netlink.EndMessage(e.Buf)
	return e.Buf
}

// request is what a message names.
type request struct {
	family nft.Family
	flags  uint16
	attrs  map[uint16][]byte
}

func parse(m *netlink.Message) request {
	r := request{family: nft.Family(m.Body[0]), flags: m.Flags, attrs: map[uint16][]byte{}}
	for a := attributes.Decode(m.Body[nfgenmsgLen:]); a.Next(); {
		r.attrs[a.Type] = a.Data
	}
	return r
}

// text is an attribute's string.
func (r *request) text(typ uint16) string { return attributes.String(r.attrs[typ]) }

// table is named by attribute 1 in every message.
func (k *Kernel) table(r *request) (*table, error) {
	t := k.tables[nft.Table{Family: r.family, Name: r.text(unix.NFTA_TABLE_NAME)}]
	if t == nil {
		return nil, unix.ENOENT
	}
	return t, nil
}

// change carries out one message of a batch. offset is where in it the element is
// that is refused, 0 if none is. before are the tables that the transaction found.
func (k *Kernel) change(m *netlink.Message, before map[nft.Table]*table) (offset int, err error) {
	r := parse(m)
	command := m.Type & 0xff
	if command == unix.NFT_MSG_NEWTABLE {
		at, flags := nft.Table{Family: r.family, Name: r.text(unix.NFTA_TABLE_NAME)}, attributes.BE32(r.attrs[unix.NFTA_TABLE_FLAGS])
		if old := k.tables[at]; old != nil && old.flags == flags {
			return 0, errNothing
		}
		t := newTable()
		if old := k.tables[at]; old != nil {
			t = old.clone()
		}
		k.tables[at], t.flags = t, flags
		return 0, nil
	}
	t, err := k.table(&r)
	if err != nil {
		return 0, err
	}
	at := nft.Table{Family: r.family, Name: r.text(unix.NFTA_TABLE_NAME)}
	if t == before[at] {
		t = t.clone()
		k.tables[at] = t
	}
	switch command {
	case unix.NFT_MSG_DELTABLE:
		delete(k.tables, at)
		return 0, nil
	case unix.NFT_MSG_NEWCHAIN:
		return 0, t.newChain(&r)
	case unix.NFT_MSG_DELCHAIN:
		return 0, t.deleteChain(r.text(unix.NFTA_CHAIN_NAME))
	case unix.NFT_MSG_NEWRULE:
		return 0, t.newRule(&r)
	case unix.NFT_MSG_DELRULE:
		return 0, t.flushChain(r.text(unix.NFTA_RULE_CHAIN))
	case unix.NFT_MSG_NEWSET:
		return 0, t.newSet(&r)
	case unix.NFT_MSG_DELSET:
		return 0, t.deleteSet(r.text(unix.NFTA_SET_NAME))
	case unix.NFT_MSG_NEWSETELEM, unix.NFT_MSG_DELSETELEM:
		return t.changeElements(m, &r, command == unix.NFT_MSG_DELSETELEM)
	}
	return 0, unix.EOPNOTSUPP
}

// answer returns the answer to a request that is no transaction, in one datagram.
func (k *Kernel) answer(m *netlink.Message) []byte {
	r := parse(m)
	command := m.Type & 0xff
	if command == unix.NFT_MSG_GETGEN {
		return message(nil, unix.NFT_MSG_NEWGEN, 0, m.Seq, 0, func(e *attributes.Encoder) { e.BE32(unix.NFTA_GEN_ID, k.generation) })
	}
	dump := m.Flags&unix.NLM_F_DUMP == unix.NLM_F_DUMP
	if command == unix.NFT_MSG_GETSETELEM && !dump {
		return k.element(m, &r)
	}
	if !dump {
		return errorMessage(m.Seq, unix.EOPNOTSUPP, 0)
	}
	flags := uint16(unix.NLM_F_MULTI)
	if k.interrupted > 0 {
		k.interrupted--
		flags |= unix.NLM_F_DUMP_INTR
	}
	var out []byte
	each := func(typ uint16, encode func(*attributes.Encoder)) {
		out = message(out, typ, flags, m.Seq, r.family, encode)
	}
	if err := k.dump(command, &r, each); err != nil {
		return errorMessage(m.Seq, err, 0)
	}
	done := netlink.AppendHeader(nil, unix.NLMSG_DONE, flags, m.Seq)
	done = append(done, 0, 0, 0, 0)
	netlink.EndMessage(done)
	return append(out, done...)
}

func message(out []byte, typ, flags uint16, seq uint32, f nft.Family, encode func(*attributes.Encoder)) []byte {
	start := len(out)
	e := attributes.Encoder{Buf: netlink.AppendHeader(out, unix.NFNL_SUBSYS_NFTABLES<<8|typ, flags, seq)}
	e.Buf = append(e.Buf, byte(f), unix.NFNETLINK_V0, 0, 0)
	encode(&e)
	netlink.EndMessage(e.Buf[start:])
	return e.Buf
}

func (k *Kernel) dump(command uint16, r *request, each func(uint16, func(*attributes.Encoder))) error {
	switch command {
	case unix.NFT_MSG_GETTABLE:
		k.eachTable(r.family, func(name string, t *table) {
			each(unix.NFT_MSG_NEWTABLE, func(e *attributes.Encoder) {
				e.String(unix.NFTA_TABLE_NAME, name)
				e.BE32(unix.NFTA_TABLE_FLAGS, t.flags)
			})
		})
		return nil
	case unix.NFT_MSG_GETCHAIN:
		k.eachTable(r.family, func(name string, t *table) {
			for _, chain := range slices.Sorted(maps.Keys(t.chains)) {
				each(unix.NFT_MSG_NEWCHAIN, func(e *attributes.Encoder) { t.chains[chain].encode(e, name, chain) })
			}
		})
		return nil
	}
	t, err := k.table(r)
	if err != nil {
		return err
	}
	name := r.text(unix.NFTA_TABLE_NAME)
	switch command {
	case unix.NFT_MSG_GETRULE:
		for _, chain := range slices.Sorted(maps.Keys(t.chains)) {
			for _, rule := range t.chains[chain].rules {
				each(unix.NFT_MSG_NEWRULE, func(e *attributes.Encoder) {
					e.String(unix.NFTA_RULE_TABLE, name)
					e.String(unix.NFTA_RULE_CHAIN, chain)
					e.Text(unix.NFTA_RULE_EXPRESSIONS|unix.NLA_F_NESTED, rule.exprs)
					if rule.userData != "" {
						e.Text(unix.NFTA_RULE_USERDATA, rule.userData)
					}
				})
			}
		}
	case unix.NFT_MSG_GETSET:
		for _, set := range slices.Sorted(maps.Keys(t.sets)) {
			each(unix.NFT_MSG_NEWSET, func(e *attributes.Encoder) { t.sets[set].encode(e, name, set) })
		}
	case unix.NFT_MSG_GETSETELEM:
		s := t.sets[r.text(unix.NFTA_SET_ELEM_LIST_SET)]
		if s == nil {
			return unix.ENOENT
		}
		const part = 400
		for some := range slices.Chunk(slices.SortedFunc(maps.Values(s.elements), compareElements), part) {
			each(unix.NFT_MSG_NEWSETELEM, func(e *attributes.Encoder) { encodeElements(e, r, some) })
		}
	default:
		return unix.EOPNOTSUPP
	}
	return nil
}

func (k *Kernel) eachTable(f nft.Family, each func(name string, t *table)) {
	for at, t := range k.tables {
		if at.Family == f {
			each(at.Name, t)
		}
	}
}

// element answers who asks for one element.
func (k *Kernel) element(m *netlink.Message, r *request) []byte {
	t, err := k.table(r)
	if err != nil {
		return errorMessage(m.Seq, err, 0)
	}
	s := t.sets[r.text(unix.NFTA_SET_ELEM_LIST_SET)]
	if s == nil {
		return errorMessage(m.Seq, unix.ENOENT, 0)
	}
	for a := attributes.Decode(r.attrs[unix.NFTA_SET_ELEM_LIST_ELEMENTS]); a.Next(); {
		if e, ok := s.elements[id(a.Data)]; ok {
			return message(nil, unix.NFT_MSG_NEWSETELEM, 0, m.Seq, r.family, func(x *attributes.Encoder) { encodeElements(x, r, []nft.Element{e}) })
		}
	}
	return errorMessage(m.Seq, unix.ENOENT, 0)
}

func compareElements(a, b nft.Element) int { return strings.Compare(a.ID(), b.ID()) }

func encodeElements(e *attributes.Encoder, r *request, some []nft.Element) {
	e.String(unix.NFTA_SET_ELEM_LIST_TABLE, r.text(unix.NFTA_SET_ELEM_LIST_TABLE))
	e.String(unix.NFTA_SET_ELEM_LIST_SET, r.text(unix.NFTA_SET_ELEM_LIST_SET))
	list := e.Nest(unix.NFTA_SET_ELEM_LIST_ELEMENTS)
	for _, el := range some {
		nft.EncodeElement(e, el)
	}
	e.End(list)
}

func id(data []byte) string {
	e := nft.DecodeElement(data)
	return e.ID()
}
