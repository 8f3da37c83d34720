// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"encoding/binary"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/causeway-lb/causeway/internal/netlink/attributes"
)

// Refusals gives the messages that the kernel refused, nil if err is anything
// else: then it is not known whether the transaction was applied.
func Refusals(err error) []*Error {
	switch e := err.(type) { //nolint:errorlint // this is what unwraps
	case *Error:
		return []*Error{e}
	case interface{ Unwrap() []error }:
		var all []*Error
		for _, part := range e.Unwrap() {
			some := Refusals(part)
			if some == nil {
				return nil
			}
			all = append(all, some...)
		}
		return all
	case interface{ Unwrap() error }:
		return Refusals(e.Unwrap())
	}
	return nil
}

// blame notes which elements e is about, if message i adds elements: the one
// at offset in the message, where the kernel says so, else all of them.
func (b *Batch) blame(e *Error, i int, offset uint32) {
	msg := b.message(i)
	if binary.NativeEndian.Uint16(msg[4:]) != unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWSETELEM {
		return
	}
	e.Table.Family = Family(msg[unix.NLMSG_HDRLEN])
	for a := attributes.Decode(msg[unix.NLMSG_HDRLEN+nfgenmsgLen:]); a.Next(); {
		switch a.Type {
		case unix.NFTA_SET_ELEM_LIST_TABLE:
			e.Table.Name = attributes.String(a.Data)
		case unix.NFTA_SET_ELEM_LIST_SET:
			e.Set = attributes.String(a.Data)
		case unix.NFTA_SET_ELEM_LIST_ELEMENTS:
			for n := attributes.Decode(a.Data); n.Next(); {
				e.Elements = append(e.Elements, DecodeElement(n.Data))
			}
		}
	}
	if int(offset) >= len(msg) {
		return
	}
	first := true
	for a := attributes.Decode(msg[offset:]); a.Next(); {
		// Older kernels count from the start of the transaction: what is not one
		// of the elements is not believed.
		if el := DecodeElement(a.Data); first && slices.Contains(e.Elements, el) {
			e.Elements = []Element{el}
		}
		first = false
	}
}

// DecodeElement returns the element that an attribute of a list of elements holds.
func DecodeElement(data []byte) Element {
	var raw RawElement
	decodeElement(data, &raw)
	return raw.Element()
}

// message gives message i.
func (b *Batch) message(i int) []byte {
	off := 0
	for ; i > 0; i-- {
		off += int(binary.NativeEndian.Uint32(b.enc.Buf[off:]))
	}
	return b.enc.Buf[off : off+int(binary.NativeEndian.Uint32(b.enc.Buf[off:]))]
}
