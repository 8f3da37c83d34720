// SPDX-License-Identifier: Apache-2.0

package nfnl

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
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
	fd   int
	seq  uint32
	port uint32
	recv []byte
}

// replyTimeout bounds the wait for the kernel's answer. A commit of a few
// hundred thousand elements takes seconds on a slow machine; half a minute is
// a fault.
const replyTimeout = 30 * time.Second

// Dial opens a socket. Close it.
func Dial() (*Conn, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("open netfilter socket: %w", err)
	}
	c := &Conn{fd: fd, recv: make([]byte, 64<<10)}
	if err := c.setup(); err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	return c, nil
}

func (c *Conn) setup() error {
	if err := unix.Bind(c.fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("bind netfilter socket: %w", err)
	}
	sa, err := unix.Getsockname(c.fd)
	if err != nil {
		return fmt.Errorf("name netfilter socket: %w", err)
	}
	if nl, ok := sa.(*unix.SockaddrNetlink); ok {
		c.port = nl.Pid
	}
	// A transaction is one datagram, so the send buffer bounds it; many
	// refusals may come back, so the receive buffer is generous too.
	for _, o := range []struct{ force, plain, size int }{
		{unix.SO_SNDBUFFORCE, unix.SO_SNDBUF, 512 << 20},
		{unix.SO_RCVBUFFORCE, unix.SO_RCVBUF, 8 << 20},
	} {
		if unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, o.force, o.size) != nil {
			if err := unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, o.plain, o.size); err != nil {
				return fmt.Errorf("size netfilter socket: %w", err)
			}
		}
	}
	// Explanations beside the errno: absent before Linux 4.12, and not needed.
	_ = unix.SetsockoptInt(c.fd, unix.SOL_NETLINK, unix.NETLINK_EXT_ACK, 1)
	_ = unix.SetsockoptInt(c.fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1)
	tv := unix.NsecToTimeval(replyTimeout.Nanoseconds())
	if err := unix.SetsockoptTimeval(c.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
		return fmt.Errorf("set time-out of netfilter socket: %w", err)
	}
	return nil
}

// Close closes the socket.
func (c *Conn) Close() error { return unix.Close(c.fd) }

// Port is the socket's netlink port id, which the kernel puts on the
// notifications of this socket's changes.
func (c *Conn) Port() uint32 { return c.port }

// Commit sends b as one transaction and waits for the verdict. On error the
// kernel has applied nothing of it (unless the error is a time-out); refused
// messages are joined *Errors, at most 10. An empty batch is no error.
func (c *Conn) Commit(b *Batch) error {
	b.closeList()
	if b.err != nil {
		return b.err
	}
	if len(b.ops) == 0 {
		return nil
	}
	first := c.seq + 1
	last := c.seq + uint32(len(b.ops))
	c.seq = last + 1
	b.renumber(first - 1)
	begin := appendMark(nil, unix.NFNL_MSG_BATCH_BEGIN, first-1)
	end := appendMark(nil, unix.NFNL_MSG_BATCH_END, last+1)
	if err := c.drain(); err != nil {
		return err
	}
	_, err := unix.SendmsgBuffers(c.fd, [][]byte{begin, b.buf, end}, nil, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}, 0)
	if err != nil {
		return fmt.Errorf("send transaction of %d bytes: %w", len(b.buf), err)
	}
	return c.verdict(b, first, last)
}

// renumber gives the messages the sequence numbers base+1... and makes the
// last one ask for an acknowledgement.
func (b *Batch) renumber(base uint32) {
	seq := base
	for off := 0; off < len(b.buf); {
		seq++
		binary.NativeEndian.PutUint32(b.buf[off+8:], seq)
		off += int(binary.NativeEndian.Uint32(b.buf[off:]))
	}
	flags := b.buf[b.last+6:]
	binary.NativeEndian.PutUint16(flags, binary.NativeEndian.Uint16(flags)|unix.NLM_F_ACK)
}

func appendMark(buf []byte, typ uint16, seq uint32) []byte {
	buf = appendHeader(buf, typ, unix.NLM_F_REQUEST, seq)
	buf = append(buf, unix.AF_UNSPEC, unix.NFNETLINK_V0, 0, unix.NFNL_SUBSYS_NFTABLES)
	binary.NativeEndian.PutUint32(buf, uint32(len(buf)))
	return buf
}

// drain discards replies of an earlier transaction that timed out.
func (c *Conn) drain() error {
	for {
		_, _, err := unix.Recvfrom(c.fd, c.recv, unix.MSG_DONTWAIT)
		switch {
		case err == nil, errors.Is(err, unix.ENOBUFS), errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EAGAIN):
			return nil
		default:
			return fmt.Errorf("drain netfilter socket: %w", err)
		}
	}
}

// verdict reads replies until the last message's, or one for the whole batch.
func (c *Conn) verdict(b *Batch, first, last uint32) error {
	const maxErrors = 10
	var errs []error
	for {
		msgs, err := c.receive()
		if errors.Is(err, unix.ENOBUFS) {
			// More refusals than the buffer holds: it was refused.
			return errors.Join(append(errs, err)...)
		}
		if err != nil {
			return fmt.Errorf("await transaction: %w", err)
		}
		for off := 0; off+unix.NLMSG_HDRLEN <= len(msgs); {
			m := header(msgs[off:])
			body := msgs[off+unix.NLMSG_HDRLEN : off+int(m.Len)]
			off += align4(int(m.Len))
			if m.Type != unix.NLMSG_ERROR || m.Seq < first-1 || m.Seq > last+1 {
				continue
			}
			e := c.replyError(b, m, body, first)
			if e != nil && len(errs) < maxErrors {
				errs = append(errs, e)
			}
			if m.Seq == last || m.Seq < first || m.Seq > last {
				return errors.Join(errs...)
			}
		}
	}
}

// replyError turns an NLMSG_ERROR into an *Error, nil for an acknowledgement.
func (c *Conn) replyError(b *Batch, m unix.NlMsghdr, body []byte, first uint32) error {
	errno := -int32(binary.NativeEndian.Uint32(body))
	if errno == 0 {
		return nil
	}
	e := &Error{Op: "commit transaction", Err: unix.Errno(errno)}
	const extMsg, extOffset = 1, 2 // NLMSGERR_ATTR_MSG, NLMSGERR_ATTR_OFFS
	var offset uint32
	if m.Flags&unix.NLM_F_ACK_TLVS != 0 && len(body) > 4+unix.NLMSG_HDRLEN {
		Attrs(body[4+unix.NLMSG_HDRLEN:], func(typ uint16, data []byte) {
			switch {
			case typ == extMsg:
				e.Detail = CString(data)
			case typ == extOffset && len(data) == 4:
				offset = binary.NativeEndian.Uint32(data)
			}
		})
	}
	if i := int(m.Seq - first); m.Seq >= first && i < len(b.ops) {
		e.Op = b.ops[i]
		b.blame(e, i, offset)
	}
	return e
}

func (c *Conn) receive() ([]byte, error) {
	for {
		n, _, err := unix.Recvfrom(c.fd, c.recv, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, err
		}
		return c.recv[:n], nil
	}
}

func header(b []byte) unix.NlMsghdr {
	return unix.NlMsghdr{
		Len:   binary.NativeEndian.Uint32(b),
		Type:  binary.NativeEndian.Uint16(b[4:]),
		Flags: binary.NativeEndian.Uint16(b[6:]),
		Seq:   binary.NativeEndian.Uint32(b[8:]),
		Pid:   binary.NativeEndian.Uint32(b[12:]),
	}
}

func align4(n int) int { return (n + 3) &^ 3 }

// Attrs calls f for each attribute in b; data is valid during the call only.
// Malformed rest is ignored.
func Attrs(b []byte, f func(typ uint16, data []byte)) {
	for len(b) >= 4 {
		n := int(binary.NativeEndian.Uint16(b))
		if n < 4 || n > len(b) {
			return
		}
		f(binary.NativeEndian.Uint16(b[2:])&^uint16(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER), b[4:n])
		if align4(n) >= len(b) {
			return
		}
		b = b[align4(n):]
	}
}

// CString is b up to its NUL.
func CString(b []byte) string {
	for i, c := range b {
		if c == 0 {
			return string(b[:i])
		}
	}
	return string(b)
}

// bigEndian32 is the number in an attribute, 0 if it is cut short.
func bigEndian32(data []byte) uint32 {
	if len(data) < 4 {
		return 0
	}
	return binary.BigEndian.Uint32(data)
}
