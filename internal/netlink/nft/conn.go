// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/causeway-lb/causeway/internal/netlink"
	"github.com/causeway-lb/causeway/internal/netlink/attributes"
)

// Error is one message of a transaction that the kernel refused.
type Error struct {
	// Op says what was asked, for example "add elements of ip causeway services".
	Op string
	// Err is the errno.
	Err error
	// Detail is the kernel's own explanation, if it gave one.
	Detail string
	// Table, Set and Elements are what was to be added, if it was elements: the
	// one that the kernel names (since Linux 6.0), or else those of the message.
	Table    Table
	Set      string
	Elements []Element
}

func (e *Error) Error() string {
	if e.Detail != "" {
		return e.Op + ": " + e.Err.Error() + " (" + e.Detail + ")"
	}
	return e.Op + ": " + e.Err.Error()
}

func (e *Error) Unwrap() error { return e.Err }

// ErrInterrupted is returned by reads that raced with a change too often.
var ErrInterrupted = errors.New("read nf_tables: rules changed while being read")

// Conn is a netlink socket in the network namespace of the thread that called
// Dial. Not safe for concurrent use.
type Conn struct {
	socket Socket
	seq    uint32
}

// Socket is what a Conn needs of a netlink.Socket; nfttest has one without a
// kernel.
type Socket interface {
	Send(parts ...[]byte) error
	Receive() ([]byte, error)
	Drain() error
	Port() uint32
	Close() error
}

// Dial opens a socket. Close it.
func Dial() (*Conn, error) {
	// A transaction is one datagram, so the send buffer bounds it; many refusals
	// may come back, so the receive buffer is generous too.
	s, err := netlink.Open(netlink.Config{Protocol: unix.NETLINK_NETFILTER, Datagram: 64 << 10, Send: 512 << 20, Receive: 8 << 20})
	if err != nil {
		return nil, fmt.Errorf("connect to nf_tables: %w", err)
	}
	return NewConn(s), nil
}

// NewConn returns a Conn over a socket, which it closes.
func NewConn(s Socket) *Conn { return &Conn{socket: s} }

// Close closes the socket.
func (c *Conn) Close() error { return c.socket.Close() }

// Port is the socket's netlink port id, which the kernel puts on the
// notifications of this socket's changes.
func (c *Conn) Port() uint32 { return c.socket.Port() }

// Commit sends b as one transaction and waits for the verdict. On error the
// kernel has applied nothing of it (unless the error is a time-out); refused
// messages are joined *Errors, at most 10. An empty batch is no error.
func (c *Conn) Commit(b *Batch) error {
	b.closeList()
	if err := b.problem(); err != nil {
		return err
	}
	if len(b.ops) == 0 {
		return nil
	}
	first := c.seq + 1
	last := c.seq + uint32(len(b.ops))
	c.seq = last + 1
	b.renumber(first - 1)
	begin := appendMark(unix.NFNL_MSG_BATCH_BEGIN, first-1)
	end := appendMark(unix.NFNL_MSG_BATCH_END, last+1)
	if err := c.send(begin, b.enc.Buf, end); err != nil {
		return fmt.Errorf("send transaction of %d bytes: %w", len(b.enc.Buf), err)
	}
	return c.verdict(b, first, last)
}

// send sends a request, before which answers to one that timed out are discarded.
func (c *Conn) send(parts ...[]byte) error {
	if err := c.socket.Drain(); err != nil {
		return fmt.Errorf("drain netfilter socket: %w", err)
	}
	return c.socket.Send(parts...)
}

// renumber gives the messages the sequence numbers base+1... and makes the
// last one ask for an acknowledgement.
func (b *Batch) renumber(base uint32) {
	seq := base
	for buf := b.enc.Buf; len(buf) > 0; buf = buf[binary.NativeEndian.Uint32(buf):] {
		seq++
		netlink.SetSeq(buf, seq)
	}
	flags := b.enc.Buf[b.last+6:]
	binary.NativeEndian.PutUint16(flags, binary.NativeEndian.Uint16(flags)|unix.NLM_F_ACK)
}

func appendMark(typ uint16, seq uint32) []byte {
	buf := netlink.AppendHeader(nil, typ, 0, seq)
	buf = append(buf, unix.AF_UNSPEC, unix.NFNETLINK_V0, 0, unix.NFNL_SUBSYS_NFTABLES)
	netlink.EndMessage(buf)
	return buf
}

// verdict reads replies until the last message's, or one for the whole batch.
func (c *Conn) verdict(b *Batch, first, last uint32) error {
	const maxErrors = 10
	var errs []error
	for {
		datagram, err := c.socket.Receive()
		if errors.Is(err, unix.ENOBUFS) {
			// More refusals than the buffer holds: it was refused.
			return errors.Join(append(errs, err)...)
		}
		if err != nil {
			return fmt.Errorf("await transaction: %w", err)
		}
		for m, err := range netlink.Messages(datagram) {
			if err != nil {
				return fmt.Errorf("await transaction: %w", err)
			}
			if m.Type != unix.NLMSG_ERROR || m.Seq < first-1 || m.Seq > last+1 {
				continue
			}
			if e := replyError(b, m, first); e != nil && len(errs) < maxErrors {
				errs = append(errs, e)
			}
			if m.Seq == last || m.Seq < first || m.Seq > last {
				return errors.Join(errs...)
			}
		}
	}
}

// replyError turns an NLMSG_ERROR into an *Error, nil for an acknowledgement.
func replyError(b *Batch, m netlink.Message, first uint32) error {
	errno := m.Errno()
	if errno == nil {
		return nil
	}
	e := &Error{Op: "commit transaction", Err: errno}
	const extMsg, extOffset = 1, 2 // NLMSGERR_ATTR_MSG, NLMSGERR_ATTR_OFFS
	var offset uint32
	if m.Flags&unix.NLM_F_ACK_TLVS != 0 && len(m.Body) > 4+netlink.HeaderLen {
		for a := attributes.Decode(m.Body[4+netlink.HeaderLen:]); a.Next(); {
			switch a.Type {
			case extMsg:
				e.Detail = attributes.String(a.Data)
			case extOffset:
				offset = attributes.Uint32(a.Data)
			}
		}
	}
	if i := int(m.Seq - first); m.Seq >= first && i < len(b.ops) {
		e.Op = b.ops[i]
		b.blame(e, i, offset)
	}
	return e
}
