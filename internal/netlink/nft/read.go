// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/causeway-lb/causeway/internal/netlink"
	"github.com/causeway-lb/causeway/internal/netlink/attributes"
)

// readRetries is how often an inconsistent dump is begun again, and settleRetries
// how often one is during which others wrote.
const readRetries, settleRetries = 20, 10

// dump asks for a list and calls each with the attributes of every message.
// reset is called before each attempt, as a change meanwhile spoils a dump.
func (c *Conn) dump(get uint16, f Family, attrs func(*Batch), reset func(), each func([]byte)) error {
	var req Batch
	for range readRetries {
		reset()
		req.Reset()
		off := req.begin(get, unix.NLM_F_DUMP, f, "")
		if attrs != nil {
			attrs(&req)
		}
		req.end(off)
		if err := c.request(&req); err != nil {
			return fmt.Errorf("ask for dump: %w", err)
		}
		err := c.readDump(c.seq, each)
		if !errors.Is(err, ErrInterrupted) {
			return err
		}
	}
	return ErrInterrupted
}

// request sends a request that is no transaction.
func (c *Conn) request(req *Batch) error {
	c.seq++
	netlink.SetSeq(req.enc.Buf, c.seq)
	return c.send(req.enc.Buf)
}

func (c *Conn) readDump(seq uint32, each func([]byte)) error {
	interrupted := false
	for {
		datagram, err := c.socket.Receive()
		if err != nil {
			return fmt.Errorf("read dump: %w", err)
		}
		for m, err := range netlink.Messages(datagram) {
			if err != nil {
				return fmt.Errorf("read dump: %w", err)
			}
			if m.Seq != seq {
				continue
			}
			interrupted = interrupted || m.Flags&unix.NLM_F_DUMP_INTR != 0
			switch m.Type {
			case unix.NLMSG_DONE:
				if interrupted {
					return ErrInterrupted
				}
				return nil
			case unix.NLMSG_ERROR:
				err := m.Errno()
				if errors.Is(err, unix.EINTR) {
					return ErrInterrupted
				}
				if err != nil {
					return err
				}
			default:
				if len(m.Body) >= nfgenmsgLen {
					each(m.Body[nfgenmsgLen:])
				}
			}
		}
	}
}

// Tables lists the tables of a family by name.
func (c *Conn) Tables(f Family) ([]string, error) {
	var names []string
	err := c.tables(f, func() { names = nil }, func(name string, _ uint32) { names = append(names, name) })
	if err != nil {
		return nil, fmt.Errorf("list tables: %w", err)
	}
	return names, nil
}

// Dormant says whether t exists, and whether its hooks are switched off.
func (c *Conn) Dormant(t Table) (exists, dormant bool, err error) {
	err = c.tables(t.Family, func() { exists, dormant = false, false }, func(name string, flags uint32) {
		if name == t.Name {
			exists, dormant = true, flags&unix.NFT_TABLE_F_DORMANT != 0
		}
	})
	if err != nil {
		return false, false, fmt.Errorf("look for table %s: %w", t, err)
	}
	return exists, dormant, nil
}

// tables gives each table of a family with its flags, all again after again.
func (c *Conn) tables(f Family, again func(), found func(name string, flags uint32)) error {
	return c.dump(unix.NFT_MSG_GETTABLE, f, nil, again, func(b []byte) {
		name, flags := "", uint32(0)
		for a := attributes.Decode(b); a.Next(); {
			switch a.Type {
			case unix.NFTA_TABLE_NAME:
				name = attributes.String(a.Data)
			case unix.NFTA_TABLE_FLAGS:
				flags = attributes.BE32(a.Data)
			}
		}
		found(name, flags)
	})
}

// ReadChain is a chain as the kernel has it.
type ReadChain struct {
	Name string
	Hook *Hook
	// PolicyDrop says that what no rule decides on is dropped.
	PolicyDrop bool
	// Rules are the raw NFTA_RULE_EXPRESSIONS and the comment of each rule, in
	// order.
	Rules []ReadRule
}

// ReadRule is a rule as the kernel has it.
type ReadRule struct {
	Exprs    string
	UserData string
}

// ChainNames reads which chains a table has; a missing one has none.
func (c *Conn) ChainNames(t Table) ([]string, error) {
	var names []string
	err := c.dump(unix.NFT_MSG_GETCHAIN, t.Family, nil, func() { names = nil }, func(b []byte) {
		if ch, table := decodeChain(b); table == t.Name {
			names = append(names, ch.Name)
		}
	})
	if err != nil {
		return nil, fmt.Errorf("list chains of %s: %w", t, err)
	}
	return names, nil
}

// Chains reads all chains of a table, with their rules. A missing table has
// none.
func (c *Conn) Chains(t Table) (map[string]*ReadChain, error) {
	chains := map[string]*ReadChain{}
	err := c.dump(unix.NFT_MSG_GETCHAIN, t.Family, nil, func() { clear(chains) }, func(b []byte) {
		ch, table := decodeChain(b)
		if table == t.Name {
			chains[ch.Name] = ch
		}
	})
	if err != nil {
		return nil, fmt.Errorf("list chains of %s: %w", t, err)
	}
	err = c.dump(unix.NFT_MSG_GETRULE, t.Family,
		func(b *Batch) { b.enc.String(unix.NFTA_RULE_TABLE, t.Name) },
		func() {
			for _, ch := range chains {
				ch.Rules = nil
			}
		},
		func(b []byte) {
			table, chain, r := decodeRule(b)
			if ch := chains[chain]; ch != nil && table == t.Name {
				ch.Rules = append(ch.Rules, r)
			}
		})
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return nil, fmt.Errorf("list rules of %s: %w", t, err)
	}
	return chains, nil
}

// Fingerprint returns what tells a table's chains and rules from others; "" if there
// are none.
func Fingerprint(chains map[string]*ReadChain) string {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(chains)) {
		c := chains[name]
		fmt.Fprintf(&b, "%s\n", name)
		if c.Hook != nil {
			fmt.Fprintf(&b, "%+v\n", *c.Hook)
		}
		for _, r := range c.Rules {
			fmt.Fprintf(&b, "%d %d\n", len(r.Exprs), len(r.UserData))
			b.WriteString(r.Exprs)
			b.WriteString(r.UserData)
		}
	}
	return b.String()
}

func decodeChain(b []byte) (ch *ReadChain, table string) {
	ch = &ReadChain{}
	typ := ""
	for a := attributes.Decode(b); a.Next(); {
		switch a.Type {
		case unix.NFTA_CHAIN_TABLE:
			table = attributes.String(a.Data)
		case unix.NFTA_CHAIN_NAME:
			ch.Name = attributes.String(a.Data)
		case unix.NFTA_CHAIN_TYPE:
			typ = attributes.String(a.Data)
		case unix.NFTA_CHAIN_POLICY:
			ch.PolicyDrop = attributes.BE32(a.Data) == nfDrop
		case unix.NFTA_CHAIN_HOOK:
			ch.Hook = &Hook{}
			for n := attributes.Decode(a.Data); n.Next(); {
				switch n.Type {
				case unix.NFTA_HOOK_HOOKNUM:
					ch.Hook.Num = attributes.BE32(n.Data)
				case unix.NFTA_HOOK_PRIORITY:
					ch.Hook.Priority = int32(attributes.BE32(n.Data))
				}
			}
		}
	}
	if ch.Hook != nil {
		ch.Hook.Type = typ
	}
	return ch, table
}

func decodeRule(b []byte) (table, chain string, r ReadRule) {
	for a := attributes.Decode(b); a.Next(); {
		switch a.Type {
		case unix.NFTA_RULE_TABLE:
			table = attributes.String(a.Data)
		case unix.NFTA_RULE_CHAIN:
			chain = attributes.String(a.Data)
		case unix.NFTA_RULE_EXPRESSIONS:
			r.Exprs = string(a.Data)
		case unix.NFTA_RULE_USERDATA:
			r.UserData = string(a.Data)
		}
	}
	return table, chain, r
}

// ReadSet is a set's definition as the kernel has it.
type ReadSet struct {
	Name             string
	Flags            uint32
	KeyType, KeyLen  uint32
	DataType, DatLen uint32
}

// Same says whether the kernel's set is what s asks for.
func (r ReadSet) Same(s Set) bool {
	const shown = unix.NFT_SET_MAP | unix.NFT_SET_INTERVAL | unix.NFT_SET_EVAL | unix.NFT_SET_TIMEOUT
	want := ReadSet{Name: s.Name, Flags: s.flags() & shown, KeyType: typesMagic(s.Key), KeyLen: keyLenAttr(s.Key)}
	if len(s.Data) > 0 {
		want.DataType, want.DatLen = typesMagic(s.Data), keyLenAttr(s.Data)
	}
	r.Flags &= shown
	if s.Data != nil && s.Data[0] == TypeVerdict {
		want.DatLen, r.DatLen = 0, 0
	}
	return r == want
}

// Sets reads the definitions of a table's named sets and maps. A missing
// table has none.
func (c *Conn) Sets(t Table) (map[string]ReadSet, error) {
	sets := map[string]ReadSet{}
	err := c.dump(unix.NFT_MSG_GETSET, t.Family,
		func(b *Batch) { b.enc.String(unix.NFTA_SET_TABLE, t.Name) },
		func() { clear(sets) },
		func(b []byte) {
			var s ReadSet
			for a := attributes.Decode(b); a.Next(); {
				switch a.Type {
				case unix.NFTA_SET_NAME:
					s.Name = attributes.String(a.Data)
				case unix.NFTA_SET_FLAGS:
					s.Flags = attributes.BE32(a.Data)
				case unix.NFTA_SET_KEY_TYPE:
					s.KeyType = attributes.BE32(a.Data)
				case unix.NFTA_SET_KEY_LEN:
					s.KeyLen = attributes.BE32(a.Data)
				case unix.NFTA_SET_DATA_TYPE:
					s.DataType = attributes.BE32(a.Data)
				case unix.NFTA_SET_DATA_LEN:
					s.DatLen = attributes.BE32(a.Data)
				}
			}
			sets[s.Name] = s
		})
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return nil, fmt.Errorf("list sets of %s: %w", t, err)
	}
	return sets, nil
}

// RawElement is an Element as the kernel gives it. Its bytes are valid during
// the call only.
type RawElement struct {
	Key, KeyEnd, Value []byte
	End                bool
}

// Element copies e.
func (e *RawElement) Element() Element {
	return Element{Key: string(e.Key), KeyEnd: string(e.KeyEnd), Value: string(e.Value), End: e.End}
}

// Elements reads a set and calls each once for every element. A missing set
// has none. See ReadElements for what happens while others write.
func (c *Conn) Elements(t Table, set string, each func(Element)) error {
	have := map[Element]bool{}
	_, err := c.ReadElements(t, set, func() { clear(have) }, func(raw *RawElement) bool {
		e := raw.Element()
		again := have[e]
		have[e] = true
		return !again
	})
	if err != nil {
		return err
	}
	for e := range have {
		each(e)
	}
	return nil
}

// ReadElements is Elements without a copy, for large sets. begin is called before
// every attempt: what each was given until then does not count. each returns
// false for an element that it was given before in the same attempt.
//
// The kernel does not always say that a dump was spoilt. While it moves a large
// set to a larger table, which it does in the background after it has grown, a
// dump skips some elements and repeats as many others: one with an element
// twice is read again. And each part of a dump begins by counting to where the
// last one ended, so elements that others take out meanwhile make it skip some
// that nobody touches: if the generation of the rules is another one
// afterwards, it is read again too.
//
// settled is false if others wrote during each of the attempts. What each was
// given in the last one was there, but elements may be missing.
func (c *Conn) ReadElements(t Table, set string, begin func(), each func(*RawElement) bool) (settled bool, err error) {
	for attempt := range readRetries {
		before, err := c.Generation()
		if err != nil {
			return false, err
		}
		whole := true
		err = c.dump(unix.NFT_MSG_GETSETELEM, t.Family,
			func(b *Batch) {
				b.enc.String(unix.NFTA_SET_ELEM_LIST_TABLE, t.Name)
				b.enc.String(unix.NFTA_SET_ELEM_LIST_SET, set)
			},
			func() { whole = true; begin() },
			func(b []byte) { whole = readElements(b, each) && whole })
		if errors.Is(err, unix.ENOENT) {
			return true, nil
		}
		if err != nil {
			return false, fmt.Errorf("read set %s %s: %w", t, set, err)
		}
		after, err := c.Generation()
		switch {
		case err != nil:
			return false, err
		case whole && before == after:
			return true, nil
		case whole && attempt >= settleRetries:
			return false, nil
		}
		time.Sleep(time.Duration(attempt+1) * 5 * time.Millisecond)
	}
	return false, fmt.Errorf("read set %s %s: %w", t, set, ErrInterrupted)
}

// Generation is the number of the present rule set of the network namespace:
// every transaction, whoever makes it, has another one.
func (c *Conn) Generation() (uint32, error) {
	var req Batch
	off := req.begin(unix.NFT_MSG_GETGEN, 0, Family(unix.NFPROTO_UNSPEC), "")
	req.end(off)
	answer, err := c.ask(&req)
	if err != nil {
		return 0, fmt.Errorf("read generation: %w", err)
	}
	var gen uint32
	for a := attributes.Decode(answer); a.Next(); {
		if a.Type == unix.NFTA_GEN_ID {
			gen = attributes.BE32(a.Data)
		}
	}
	return gen, nil
}

// Element reads one element of a set without ranges. ok is false if there is none
// with that key, or no such set.
func (c *Conn) Element(t Table, set, key string) (e Element, ok bool, err error) {
	var req Batch
	req.element(unix.NFT_MSG_GETSETELEM, t, set, Element{Key: key})
	req.closeList()
	answer, err := c.ask(&req)
	if errors.Is(err, unix.ENOENT) {
		return Element{}, false, nil
	}
	if err != nil {
		return Element{}, false, fmt.Errorf("read element of %s %s: %w", t, set, err)
	}
	readElements(answer, func(raw *RawElement) bool {
		e, ok = raw.Element(), true
		return true
	})
	return e, ok, nil
}

// ask sends a request, which asks for one thing and not for a list, and returns
// the attributes of the answer, valid until the next call.
func (c *Conn) ask(req *Batch) ([]byte, error) {
	if err := c.request(req); err != nil {
		return nil, fmt.Errorf("ask: %w", err)
	}
	for {
		datagram, err := c.socket.Receive()
		if err != nil {
			return nil, err
		}
		for m, err := range netlink.Messages(datagram) {
			switch {
			case err != nil:
				return nil, err
			case m.Seq != c.seq || len(m.Body) < nfgenmsgLen:
			case m.Type != unix.NLMSG_ERROR:
				return m.Body[nfgenmsgLen:], nil
			default:
				if err := m.Errno(); err != nil {
					return nil, err
				}
			}
		}
	}
}

// readElements calls each for the elements of one message, and says whether
// all of them were new.
func readElements(b []byte, each func(*RawElement) bool) bool {
	whole := true
	var e RawElement
	for a := attributes.Decode(b); a.Next(); {
		if a.Type != unix.NFTA_SET_ELEM_LIST_ELEMENTS {
			continue
		}
		for n := attributes.Decode(a.Data); n.Next(); {
			decodeElement(n.Data, &e)
			whole = each(&e) && whole
		}
	}
	return whole
}

func decodeElement(b []byte, e *RawElement) {
	*e = RawElement{}
	for a := attributes.Decode(b); a.Next(); {
		switch a.Type {
		case unix.NFTA_SET_ELEM_KEY:
			e.Key = decodeData(a.Data)
		case setElemKeyEnd:
			e.KeyEnd = decodeData(a.Data)
		case unix.NFTA_SET_ELEM_DATA:
			e.Value = decodeData(a.Data)
		case unix.NFTA_SET_ELEM_FLAGS:
			e.End = attributes.BE32(a.Data)&unix.NFT_SET_ELEM_INTERVAL_END != 0
		}
	}
}

func decodeData(b []byte) []byte {
	var v []byte
	for a := attributes.Decode(b); a.Next(); {
		switch a.Type {
		case unix.NFTA_DATA_VALUE:
			v = a.Data
		case unix.NFTA_DATA_VERDICT:
			v = decodeVerdict(a.Data)
		}
	}
	return v
}

func decodeVerdict(b []byte) []byte {
	code, chain := uint32(nfDrop), ""
	for a := attributes.Decode(b); a.Next(); {
		switch a.Type {
		case unix.NFTA_VERDICT_CODE:
			code = attributes.BE32(a.Data)
		case unix.NFTA_VERDICT_CHAIN:
			chain = attributes.String(a.Data)
		}
	}
	switch code {
	case nfDrop:
		return []byte(Drop)
	case nftGoto:
		return []byte(Goto(chain))
	}
	return []byte(otherVerdict)
}
