// SPDX-License-Identifier: Apache-2.0

package nfnl

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
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
		c.seq++
		binary.NativeEndian.PutUint32(req.buf[8:], c.seq)
		if err := c.drain(); err != nil {
			return err
		}
		if err := unix.Sendto(c.fd, req.buf, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
			return fmt.Errorf("ask for dump: %w", err)
		}
		err := c.readDump(c.seq, each)
		if !errors.Is(err, ErrInterrupted) {
			return err
		}
	}
	return ErrInterrupted
}

func (c *Conn) readDump(seq uint32, each func([]byte)) error {
	interrupted := false
	for {
		msgs, err := c.receive()
		if err != nil {
			return fmt.Errorf("read dump: %w", err)
		}
		for off := 0; off+unix.NLMSG_HDRLEN <= len(msgs); {
			m := header(msgs[off:])
			if int(m.Len) < unix.NLMSG_HDRLEN || off+int(m.Len) > len(msgs) {
				return fmt.Errorf("read dump: message of %d bytes in %d", m.Len, len(msgs)-off)
			}
			body := msgs[off+unix.NLMSG_HDRLEN : off+int(m.Len)]
			off += align4(int(m.Len))
			if m.Seq != seq {
				continue
			}
			if m.Flags&unix.NLM_F_DUMP_INTR != 0 {
				interrupted = true
			}
			switch m.Type {
			case unix.NLMSG_DONE:
				if interrupted {
					return ErrInterrupted
				}
				return nil
			case unix.NLMSG_ERROR:
				errno := -int32(binary.NativeEndian.Uint32(body))
				if errno == int32(unix.EINTR) {
					return ErrInterrupted
				}
				if errno != 0 {
					return unix.Errno(errno)
				}
			default:
				if len(body) >= nfgenmsgLen {
					each(body[nfgenmsgLen:])
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
		Attrs(b, func(typ uint16, data []byte) {
			switch typ {
			case unix.NFTA_TABLE_NAME:
				name = CString(data)
			case unix.NFTA_TABLE_FLAGS:
				flags = bigEndian32(data)
			}
		})
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
		func(b *Batch) { b.attrString(unix.NFTA_RULE_TABLE, t.Name) },
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

func decodeChain(b []byte) (ch *ReadChain, table string) {
	ch = &ReadChain{}
	typ := ""
	Attrs(b, func(t uint16, data []byte) {
		switch t {
		case unix.NFTA_CHAIN_TABLE:
			table = CString(data)
		case unix.NFTA_CHAIN_NAME:
			ch.Name = CString(data)
		case unix.NFTA_CHAIN_TYPE:
			typ = CString(data)
		case unix.NFTA_CHAIN_POLICY:
			ch.PolicyDrop = bigEndian32(data) == nfDrop
		case unix.NFTA_CHAIN_HOOK:
			ch.Hook = &Hook{}
			Attrs(data, func(t uint16, data []byte) {
				switch t {
				case unix.NFTA_HOOK_HOOKNUM:
					ch.Hook.Num = bigEndian32(data)
				case unix.NFTA_HOOK_PRIORITY:
					ch.Hook.Priority = int32(bigEndian32(data))
				}
			})
		}
	})
	if ch.Hook != nil {
		ch.Hook.Type = typ
	}
	return ch, table
}

func decodeRule(b []byte) (table, chain string, r ReadRule) {
	Attrs(b, func(t uint16, data []byte) {
		switch t {
		case unix.NFTA_RULE_TABLE:
			table = CString(data)
		case unix.NFTA_RULE_CHAIN:
			chain = CString(data)
		case unix.NFTA_RULE_EXPRESSIONS:
			r.Exprs = string(data)
		case unix.NFTA_RULE_USERDATA:
			r.UserData = string(data)
		}
	})
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
		func(b *Batch) { b.attrString(unix.NFTA_SET_TABLE, t.Name) },
		func() { clear(sets) },
		func(b []byte) {
			var s ReadSet
			Attrs(b, func(typ uint16, data []byte) {
				switch typ {
				case unix.NFTA_SET_NAME:
					s.Name = CString(data)
				case unix.NFTA_SET_FLAGS:
					s.Flags = bigEndian32(data)
				case unix.NFTA_SET_KEY_TYPE:
					s.KeyType = bigEndian32(data)
				case unix.NFTA_SET_KEY_LEN:
					s.KeyLen = bigEndian32(data)
				case unix.NFTA_SET_DATA_TYPE:
					s.DataType = bigEndian32(data)
				case unix.NFTA_SET_DATA_LEN:
					s.DatLen = bigEndian32(data)
				}
			})
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
				b.attrString(unix.NFTA_SET_ELEM_LIST_TABLE, t.Name)
				b.attrString(unix.NFTA_SET_ELEM_LIST_SET, set)
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
	Attrs(answer, func(typ uint16, data []byte) {
		if typ == unix.NFTA_GEN_ID {
			gen = bigEndian32(data)
		}
	})
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
	c.seq++
	binary.NativeEndian.PutUint32(req.buf[8:], c.seq)
	if err := c.drain(); err != nil {
		return nil, err
	}
	if err := unix.Sendto(c.fd, req.buf, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, fmt.Errorf("ask: %w", err)
	}
	for {
		msgs, err := c.receive()
		if err != nil {
			return nil, err
		}
		if len(msgs) < unix.NLMSG_HDRLEN+nfgenmsgLen {
			continue
		}
		m := header(msgs)
		if m.Seq != c.seq || int(m.Len) > len(msgs) || int(m.Len) < unix.NLMSG_HDRLEN+nfgenmsgLen {
			continue
		}
		if m.Type != unix.NLMSG_ERROR {
			return msgs[unix.NLMSG_HDRLEN+nfgenmsgLen : m.Len], nil
		}
		if errno := -int32(binary.NativeEndian.Uint32(msgs[unix.NLMSG_HDRLEN:])); errno != 0 {
			return nil, unix.Errno(errno)
		}
	}
}

// readElements calls each for the elements of one message, and says whether
// all of them were new.
func readElements(b []byte, each func(*RawElement) bool) bool {
	whole := true
	var e RawElement
	Attrs(b, func(typ uint16, data []byte) {
		if typ != unix.NFTA_SET_ELEM_LIST_ELEMENTS {
			return
		}
		Attrs(data, func(_ uint16, data []byte) {
			decodeElement(data, &e)
			whole = each(&e) && whole
		})
	})
	return whole
}

func decodeElement(b []byte, e *RawElement) {
	*e = RawElement{}
	Attrs(b, func(typ uint16, data []byte) {
		switch typ {
		case unix.NFTA_SET_ELEM_KEY:
			e.Key = decodeData(data)
		case setElemKeyEnd:
			e.KeyEnd = decodeData(data)
		case unix.NFTA_SET_ELEM_DATA:
			e.Value = decodeData(data)
		case unix.NFTA_SET_ELEM_FLAGS:
			e.End = bigEndian32(data)&unix.NFT_SET_ELEM_INTERVAL_END != 0
		}
	})
}

func decodeData(b []byte) []byte {
	var v []byte
	Attrs(b, func(typ uint16, data []byte) {
		switch typ {
		case unix.NFTA_DATA_VALUE:
			v = data
		case unix.NFTA_DATA_VERDICT:
			v = decodeVerdict(data)
		}
	})
	return v
}

func decodeVerdict(b []byte) []byte {
	code, chain := uint32(nfDrop), ""
	Attrs(b, func(typ uint16, data []byte) {
		switch typ {
		case unix.NFTA_VERDICT_CODE:
			code = bigEndian32(data)
		case unix.NFTA_VERDICT_CHAIN:
			chain = CString(data)
		}
	})
	switch code {
	case nfDrop:
		return []byte(Drop)
	case nftGoto:
		return []byte(Goto(chain))
	}
	return []byte(otherVerdict)
}
