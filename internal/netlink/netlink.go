// SPDX-License-Identifier: Apache-2.0

package netlink

import (
	"encoding/binary"
	"errors"
	"fmt"
	"iter"

	"golang.org/x/sys/unix"
)

// HeaderLen is the length of a message's header (struct nlmsghdr).
const HeaderLen = unix.NLMSG_HDRLEN

// replyTimeout bounds the wait for the kernel's answer, in seconds. A transaction
// of a few hundred thousand elements takes seconds on a slow machine; half a
// minute is a fault.
const replyTimeout = 30

// Config describes a Socket.
type Config struct {
	// Protocol is the NETLINK_* number.
	Protocol int
	// Datagram is the size in bytes of the largest datagram that is received.
	Datagram int
	// Send and Receive are the bytes that the kernel queues each way; 0 leaves its
	// default.
	Send, Receive int
}

// Socket is a netlink socket in the network namespace of the thread that opened
// it. It is not safe for concurrent use.
type Socket struct {
	fd   int
	port uint32
	recv []byte
}

// Open opens a Socket. Close it.
func Open(c Config) (*Socket, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, c.Protocol)
	if err != nil {
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	s := &Socket{fd: fd, recv: make([]byte, c.Datagram)}
	if err := s.setup(c); err != nil {
		return nil, errors.Join(fmt.Errorf("set up netlink socket: %w", err), s.Close())
	}
	return s, nil
}

func (s *Socket) setup(c Config) error {
	if err := unix.Bind(s.fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	name, err := unix.Getsockname(s.fd)
	if err != nil {
		return err
	}
	if own, ok := name.(*unix.SockaddrNetlink); ok {
		s.port = own.Pid
	}
	for _, o := range []struct{ force, plain, size int }{
		{unix.SO_SNDBUFFORCE, unix.SO_SNDBUF, c.Send}, {unix.SO_RCVBUFFORCE, unix.SO_RCVBUF, c.Receive},
	} {
		if o.size == 0 || unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, o.force, o.size) == nil {
			continue
		}
		if err := unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, o.plain, o.size); err != nil {
			return err
		}
	}
	// Explanations beside the errno, since Linux 4.12, and no copy of the request
	// with each answer: either may be absent.
	_ = unix.SetsockoptInt(s.fd, unix.SOL_NETLINK, unix.NETLINK_EXT_ACK, 1)
	_ = unix.SetsockoptInt(s.fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1)
	return unix.SetsockoptTimeval(s.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: replyTimeout})
}

// Close closes the socket.
func (s *Socket) Close() error { return unix.Close(s.fd) }

// Port returns the socket's port id, which the kernel puts on the notifications of
// this socket's changes.
func (s *Socket) Port() uint32 { return s.port }

// Send sends one datagram, which is all parts one behind the other.
func (s *Socket) Send(parts ...[]byte) error {
	_, err := unix.SendmsgBuffers(s.fd, parts, nil, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}, 0)
	return err
}

// Receive returns the next datagram, which is valid until the next call. It
// returns EAGAIN when the kernel does not answer for 30 seconds, ENOBUFS when
// answers were lost.
func (s *Socket) Receive() ([]byte, error) { return s.receive(0) }

func (s *Socket) receive(flags int) ([]byte, error) {
	for {
		n, _, err := unix.Recvfrom(s.fd, s.recv, flags)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return nil, err
		default:
			return s.recv[:n], nil
		}
	}
}

// Drain discards the answers to an earlier request that was given up.
func (s *Socket) Drain() error {
	for {
		_, err := s.receive(unix.MSG_DONTWAIT)
		switch {
		case err == nil, errors.Is(err, unix.ENOBUFS):
		case errors.Is(err, unix.EAGAIN):
			return nil
		default:
			return err
		}
	}
}

// AppendHeader appends the header of a message, whose length is not known before
// EndMessage.
func AppendHeader(b []byte, typ, flags uint16, seq uint32) []byte {
	b = append(b, 0, 0, 0, 0)
	b = binary.NativeEndian.AppendUint16(b, typ)
	b = binary.NativeEndian.AppendUint16(b, unix.NLM_F_REQUEST|flags)
	b = binary.NativeEndian.AppendUint32(b, seq)
	return append(b, 0, 0, 0, 0) // port id: the kernel fills it in
}

// EndMessage completes the message that begins b and is all of it.
func EndMessage(b []byte) { binary.NativeEndian.PutUint32(b, uint32(len(b))) }

// SetSeq gives the message that begins b another sequence number.
func SetSeq(b []byte, seq uint32) { binary.NativeEndian.PutUint32(b[8:], seq) }

// Message is one message. Body is all behind the header.
type Message struct {
	Type, Flags uint16
	Seq         uint32
	Body        []byte
}

// Messages yields the messages of a datagram. It ends with an error at the first
// one that is malformed.
func Messages(b []byte) iter.Seq2[Message, error] {
	return func(yield func(Message, error) bool) {
		for len(b) >= HeaderLen {
			n := int(binary.NativeEndian.Uint32(b))
			if n < HeaderLen || n > len(b) {
				yield(Message{}, fmt.Errorf("netlink message of %d bytes in %d", n, len(b)))
				return
			}
			m := Message{
				Type: binary.NativeEndian.Uint16(b[4:]), Flags: binary.NativeEndian.Uint16(b[6:]),
				Seq: binary.NativeEndian.Uint32(b[8:]), Body: b[HeaderLen:n],
			}
			if !yield(m, nil) {
				return
			}
			b = b[min((n+3)&^3, len(b)):]
		}
	}
}

// Errno returns what an NLMSG_ERROR or NLMSG_DONE says: nil for an acknowledgement.
func (m *Message) Errno() error {
	if len(m.Body) < 4 {
		return nil
	}
	if e := int32(binary.NativeEndian.Uint32(m.Body)); e != 0 {
		return unix.Errno(-e)
	}
	return nil
}
