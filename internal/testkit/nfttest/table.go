// SPDX-License-Identifier: Apache-2.0

package nfttest

import (
	"errors"
	"maps"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/causeway-lb/causeway/internal/netlink"
	"github.com/causeway-lb/causeway/internal/netlink/attributes"
	"github.com/causeway-lb/causeway/internal/netlink/nft"
)

// Attributes that x/sys lacks, and verdicts that lead to a chain.
const (
	setDescConcat, setFieldLen = 2, 1
	setConcat                  = 0x80
	nftJump, nftGoto           = 0xfffffffd, 0xfffffffc
)

// errNothing says that there was nothing to do, which is no error.
var errNothing = errors.New("nothing to do")

// table is copied by each transaction that changes it, of what it holds as much as
// is changed: the former one comes back when the transaction is refused.
type table struct {
	flags  uint32
	chains map[string]*chain
	sets   map[string]*set
	own    map[any]bool // the chains and sets that the transaction has copied or made
}

func newTable() *table {
	return &table{chains: map[string]*chain{}, sets: map[string]*set{}, own: map[any]bool{}}
}

func (t *table) clone() *table {
	return &table{flags: t.flags, chains: maps.Clone(t.chains), sets: maps.Clone(t.sets), own: map[any]bool{}}
}

// chain returns a chain to be changed, nil if there is none.
func (t *table) chain(name string) *chain {
	c := t.chains[name]
	if c != nil && !t.own[c] {
		copied := *c
		copied.rules = slices.Clone(c.rules)
		c = &copied
		t.chains[name], t.own[c] = c, true
	}
	return c
}

// set returns a set to be changed, nil if there is none.
func (t *table) set(name string) *set {
	s := t.sets[name]
	if s != nil && !t.own[s] {
		copied := *s
		copied.elements = maps.Clone(s.elements)
		s = &copied
		t.sets[name], t.own[s] = s, true
	}
	return s
}

type chain struct {
	hook, kind string // as they came; "" for a regular chain
	policy     uint32
	rules      []rule
}

func (c *chain) encode(e *attributes.Encoder, table, name string) {
	e.String(unix.NFTA_CHAIN_TABLE, table)
	e.String(unix.NFTA_CHAIN_NAME, name)
	if c.hook != "" {
		e.Text(unix.NFTA_CHAIN_HOOK|unix.NLA_F_NESTED, c.hook)
		e.BE32(unix.NFTA_CHAIN_POLICY, c.policy)
		e.Text(unix.NFTA_CHAIN_TYPE, c.kind)
	}
}

type rule struct {
	exprs, userData string
	chains, sets    []string // that it names
}

func (t *table) newChain(r *request) error {
	name := r.text(unix.NFTA_CHAIN_NAME)
	c := &chain{hook: string(r.attrs[unix.NFTA_CHAIN_HOOK]), kind: string(r.attrs[unix.NFTA_CHAIN_TYPE]), policy: 1}
	if p := r.attrs[unix.NFTA_CHAIN_POLICY]; p != nil {
		c.policy = attributes.BE32(p)
	}
	old := t.chain(name)
	switch {
	case old == nil:
		t.chains[name], t.own[c] = c, true
	case r.flags&unix.NLM_F_EXCL != 0:
		return unix.EEXIST
	case c.hook != "" && (c.hook != old.hook || c.kind != old.kind):
		return unix.EOPNOTSUPP
	case c.hook != "":
		old.policy = c.policy
	}
	return nil
}

func (t *table) deleteChain(name string) error {
	if t.chains[name] == nil {
		return unix.ENOENT
	}
	if t.leadsTo(name) {
		return unix.EBUSY
	}
	delete(t.chains, name)
	return nil
}

// leadsTo reports whether a rule of another chain, or an element, names the chain.
func (t *table) leadsTo(name string) bool {
	for other, c := range t.chains {
		if other != name && slices.ContainsFunc(c.rules, func(r rule) bool { return slices.Contains(r.chains, name) }) {
			return true
		}
	}
	for _, s := range t.sets {
		for _, e := range s.elements {
			if e.Value == nft.Goto(name) {
				return true
			}
		}
	}
	return false
}

func (t *table) flushChain(name string) error {
	c := t.chain(name)
	switch {
	case c == nil:
		return unix.ENOENT
	case len(c.rules) == 0:
		return errNothing
	}
	c.rules = nil
	return nil
}

func (t *table) newRule(r *request) error {
	c := t.chain(r.text(unix.NFTA_RULE_CHAIN))
	if c == nil {
		return unix.ENOENT
	}
	added := rule{exprs: string(r.attrs[unix.NFTA_RULE_EXPRESSIONS]), userData: string(r.attrs[unix.NFTA_RULE_USERDATA])}
	for a := attributes.Decode(r.attrs[unix.NFTA_RULE_EXPRESSIONS]); a.Next(); {
		added.refer(a.Data)
	}
	for _, name := range added.chains {
		if t.chains[name] == nil {
			return unix.ENOENT
		}
	}
	for _, name := range added.sets {
		if t.sets[name] == nil {
			return unix.ENOENT
		}
	}
	c.rules = append(c.rules, added)
	return nil
}

// refer notes what an expression names.
func (r *rule) refer(expression []byte) {
	name, data := "", []byte(nil)
	for a := attributes.Decode(expression); a.Next(); {
		switch a.Type {
		case unix.NFTA_EXPR_NAME:
			name = attributes.String(a.Data)
		case unix.NFTA_EXPR_DATA:
			data = a.Data
		}
	}
	for a := attributes.Decode(data); a.Next(); {
		switch {
		case name == "lookup" && a.Type == unix.NFTA_LOOKUP_SET, name == "dynset" && a.Type == unix.NFTA_DYNSET_SET_NAME:
			r.sets = append(r.sets, attributes.String(a.Data))
		case name == "immediate" && a.Type == unix.NFTA_IMMEDIATE_DATA:
			for v := attributes.Decode(a.Data); v.Next(); {
				if v.Type == unix.NFTA_DATA_VERDICT {
					r.verdict(v.Data)
				}
			}
		}
	}
}

func (r *rule) verdict(b []byte) {
	code, to := uint32(0), ""
	for a := attributes.Decode(b); a.Next(); {
		switch a.Type {
		case unix.NFTA_VERDICT_CODE:
			code = attributes.BE32(a.Data)
		case unix.NFTA_VERDICT_CHAIN:
			to = attributes.String(a.Data)
		}
	}
	if code == nftJump || code == nftGoto {
		r.chains = append(r.chains, to)
	}
}

// shape is what two sets of one name must agree in.
type shape struct {
	flags, keyType, keyLen, dataType, dataLen, size uint32
	fields                                          string
}

type set struct {
	shape
	elements map[string]nft.Element
}

func (s *set) encode(e *attributes.Encoder, table, name string) {
	e.String(unix.NFTA_SET_TABLE, table)
	e.String(unix.NFTA_SET_NAME, name)
	e.BE32(unix.NFTA_SET_FLAGS, s.flags)
	e.BE32(unix.NFTA_SET_KEY_TYPE, s.keyType)
	e.BE32(unix.NFTA_SET_KEY_LEN, s.keyLen)
	if s.flags&unix.NFT_SET_MAP != 0 {
		e.BE32(unix.NFTA_SET_DATA_TYPE, s.dataType)
		e.BE32(unix.NFTA_SET_DATA_LEN, s.dataLen)
	}
}

func (t *table) newSet(r *request) error {
	number := func(typ uint16) uint32 { return attributes.BE32(r.attrs[typ]) }
	s := shape{
		flags: number(unix.NFTA_SET_FLAGS), keyType: number(unix.NFTA_SET_KEY_TYPE), keyLen: number(unix.NFTA_SET_KEY_LEN),
		dataType: number(unix.NFTA_SET_DATA_TYPE), dataLen: number(unix.NFTA_SET_DATA_LEN),
	}
	for a := attributes.Decode(r.attrs[unix.NFTA_SET_DESC]); a.Next(); {
		switch a.Type {
		case unix.NFTA_SET_DESC_SIZE:
			s.size = attributes.BE32(a.Data)
		case setDescConcat:
			s.fields = string(a.Data)
		}
	}
	if s.keyLen == 0 || s.keyLen > 64 {
		return unix.EINVAL
	}
	name := r.text(unix.NFTA_SET_NAME)
	if old := t.sets[name]; old != nil {
		if r.flags&unix.NLM_F_EXCL != 0 || old.shape != s {
			return unix.EEXIST
		}
		return nil
	}
	added := &set{shape: s, elements: map[string]nft.Element{}}
	t.sets[name], t.own[added] = added, true
	return nil
}

func (t *table) deleteSet(name string) error {
	if t.sets[name] == nil {
		return unix.ENOENT
	}
	for _, c := range t.chains {
		if slices.ContainsFunc(c.rules, func(r rule) bool { return slices.Contains(r.sets, name) }) {
			return unix.EBUSY
		}
	}
	delete(t.sets, name)
	return nil
}

// changeElements adds or deletes elements, all if none is listed.
func (t *table) changeElements(m *netlink.Message, r *request, remove bool) (offset int, err error) {
	s := t.set(r.text(unix.NFTA_SET_ELEM_LIST_SET))
	if s == nil {
		return 0, unix.ENOENT
	}
	list, listed := r.attrs[unix.NFTA_SET_ELEM_LIST_ELEMENTS]
	if !listed {
		switch {
		case !remove:
			return 0, unix.EINVAL
		case len(s.elements) == 0:
			return 0, errNothing
		}
		clear(s.elements)
		return 0, nil
	}
	nothing := true
	offset = netlink.HeaderLen + len(m.Body) - len(list) // it is the last attribute
	for a := attributes.Decode(list); a.Next(); {
		e := nft.DecodeElement(a.Data)
		if remove {
			err = s.remove(e)
		} else {
			err = s.add(t, e, r.flags&unix.NLM_F_EXCL != 0)
		}
		if err != nil && !errors.Is(err, errNothing) {
			return offset, err
		}
		nothing = nothing && err != nil
		const header = 4
		offset += (header + len(a.Data) + 3) &^ 3
	}
	if nothing {
		return 0, errNothing
	}
	return 0, nil
}

func (s *set) remove(e nft.Element) error {
	if len(e.Key) != s.padded() {
		return unix.EINVAL
	}
	id := e.ID()
	if s.flags&setConcat != 0 {
		// A range is found by its first key, whatever its end is said to be.
		id = s.overlapping(nft.Element{Key: e.Key})
	}
	if _, there := s.elements[id]; !there {
		return unix.ENOENT
	}
	delete(s.elements, id)
	return nil
}

// overlapping returns the ID of an element that has a key in common with e, "" if
// there is none.
func (s *set) overlapping(e nft.Element) string {
	for id, other := range s.elements {
		if s.overlap(e, other) {
			return id
		}
	}
	return ""
}

// padded is the length of a key as it is encoded: a lone type is padded too.
func (s *set) padded() int { return int(s.keyLen+3) &^ 3 }

func (s *set) add(t *table, e nft.Element, exclusive bool) error {
	isMap := s.flags&unix.NFT_SET_MAP != 0
	chain, verdict := strings.CutPrefix(e.Value, nft.Goto(""))
	switch {
	case len(e.Key) != s.padded() && len(e.Key) != int(s.keyLen), e.End && s.flags&unix.NFT_SET_INTERVAL == 0,
		isMap == (e.Value == "") && !e.End:
		return unix.EINVAL
	case verdict && chain != "" && t.chains[chain] == nil:
		return unix.ENOENT
	}
	if old, there := s.elements[e.ID()]; there {
		if exclusive || old.Value != e.Value {
			return unix.EEXIST
		}
		return errNothing
	}
	if s.size > 0 && len(s.elements) >= int(s.size) {
		return unix.ENFILE
	}
	if s.flags&setConcat != 0 && s.overlapping(e) != "" {
		return unix.EEXIST
	}
	s.elements[e.ID()] = e
	return nil
}

// overlap reports whether two ranges over a concatenation have a key in common.
func (s *set) overlap(a, b nft.Element) bool {
	at := 0
	for f := attributes.Decode([]byte(s.fields)); f.Next(); {
		n := 0
		for l := attributes.Decode(f.Data); l.Next(); {
			if l.Type == setFieldLen {
				n = int(attributes.BE32(l.Data)+3) &^ 3
			}
		}
		last := func(e nft.Element) string {
			if e.KeyEnd == "" {
				return e.Key[at : at+n]
			}
			return e.KeyEnd[at : at+n]
		}
		if n == 0 || at+n > len(a.Key) || at+n > len(b.Key) {
			return false
		}
		if last(a) < b.Key[at:at+n] || last(b) < a.Key[at:at+n] {
			return false
		}
		at += n
	}
	return at > 0
}
