// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/causeway-lb/causeway/internal/proxy/model"
)

const (
	headerLen = 16      // of a netlink message
	bufferLen = 1 << 15 // the most that the kernel puts into one part of a dump
	// patience bounds the wait for the kernel, which answers at once.
	patience = 30
	// batch is how many entries are deleted by one call: as many refusals fit into
	// a socket's buffer. Resets are noted for more at a time, as each time is a
	// transaction of nf_tables.
	batch, resetBatch = 64, 1024
)

// socket is one to ctnetlink in the network namespace of the calling thread. Its
// buffer is used again for each message.
type socket struct {
	fd  int
	buf []byte
}

func openSocket() (*socket, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("open socket to connection tracking: %w", err)
	}
	err = errors.Join(
		unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}),
		unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: patience}),
	)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("prepare socket to connection tracking: %w", err), unix.Close(fd))
	}
	return &socket{fd: fd, buf: make([]byte, bufferLen)}, nil
}

func (s *socket) close() { _ = unix.Close(s.fd) }

func (s *socket) send(b []byte) error {
	return unix.Sendto(s.fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
}

// receive calls each with the messages that come, and answered with the kernel's
// answers to those that were sent, by their numbers, until one of the two ends it.
// Without answered the first answer does, or the end of a dump.
func (s *socket) receive(each func(seq uint32, body []byte) error, answered func(seq uint32, err unix.Errno) (done bool)) error {
	for {
		n, _, err := unix.Recvfrom(s.fd, s.buf, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("hear of connection tracking: %w", err)
		}
		done, err := messages(s.buf[:n], each, answered)
		if done || err != nil {
			return err
		}
	}
}

// messages walks over what one call has received.
func messages(b []byte, each func(seq uint32, body []byte) error, answered func(seq uint32, err unix.Errno) (done bool)) (done bool, err error) {
	for len(b) >= headerLen {
		n := int(binary.NativeEndian.Uint32(b))
		if n < headerLen || n > len(b) {
			return true, fmt.Errorf("connection tracking sent a message of %d bytes in %d", n, len(b))
		}
		typ, seq, body := binary.NativeEndian.Uint16(b[4:]), binary.NativeEndian.Uint32(b[8:]), b[headerLen:n]
		b = b[min((n+3)&^3, len(b)):]
		switch typ {
		case unix.NLMSG_NOOP:
		case unix.NLMSG_DONE, unix.NLMSG_ERROR:
			var errno unix.Errno
			if len(body) >= 4 {
				errno = unix.Errno(-int32(binary.NativeEndian.Uint32(body)))
			}
			switch {
			case answered != nil:
				if answered(seq, errno) {
					return true, nil
				}
			case errno != 0:
				return true, errno
			default:
				return true, nil
			}
		default:
			if each == nil {
				continue
			}
			if err := each(seq, body); err != nil {
				return true, err
			}
		}
	}
	return false, nil
}

// ender deletes entries, many by one call.
type ender struct {
	socket  *socket
	refuser *refuser // nil: clients are told nothing
	deleted int

	seq     uint32
	fam     model.Family
	entries []entry
	arena   []byte // what entries refer to
	message []byte
}

func openEnder() (*ender, error) {
	s, err := openSocket()
	if err != nil {
		return nil, err
	}
	return &ender{socket: s}, nil
}

func (e *ender) close() { e.socket.close() }

// add has an entry deleted, by the next flush at the latest.
func (e *ender) add(fam model.Family, en *entry) error {
	if e.fam != fam {
		if err := e.flush(); err != nil {
			return err
		}
		e.fam = fam
	}
	own := *en // with its own copy of what names it
	own.orig, own.zone, own.id = e.copied(en.orig), e.copied(en.zone), e.copied(en.id)
	e.entries = append(e.entries, own)
	if len(e.entries) < batch || e.refuser != nil && len(e.entries) < resetBatch {
		return nil
	}
	return e.flush()
}

func (e *ender) copied(b []byte) []byte {
	if b == nil {
		return nil
	}
	start := len(e.arena)
	e.arena = append(e.arena, b...)
	return e.arena[start:len(e.arena):len(e.arena)]
}

// flush deletes what was added.
func (e *ender) flush() error {
	if len(e.entries) == 0 {
		return nil
	}
	var errs []error
	if e.refuser != nil {
		// First, so that no segment passes in between.
		if err := e.refuser.refuse(e.fam, e.entries); err != nil {
			errs = append(errs, fmt.Errorf("have clients reset: %w", err))
		}
	}
	for some := range slices.Chunk(e.entries, batch) {
		errs = append(errs, e.remove(some))
	}
	e.entries, e.arena = e.entries[:0], e.arena[:0]
	return errors.Join(errs...)
}

// remove deletes entries by one call. The kernel says which of them it refuses,
// and acknowledges the last.
func (e *ender) remove(entries []entry) error {
	e.message = e.message[:0]
	first := e.seq + 1
	for i := range entries {
		e.seq++
		var flags uint16
		if i == len(entries)-1 {
			flags = unix.NLM_F_ACK
		}
		e.message = entries[i].appendRemoval(e.message, e.fam, e.seq, flags)
	}
	if err := e.socket.send(e.message); err != nil {
		return err
	}
	e.deleted += len(entries)
	var errs []error
	err := e.socket.receive(nil, func(seq uint32, errno unix.Errno) bool {
		i := seq - first
		if int(i) >= len(entries) {
			return false // of an earlier call
		}
		if errno != 0 {
			e.deleted--
		}
		if errno != 0 && errno != unix.ENOENT {
			errs = append(errs, fmt.Errorf("delete flow to %s at %s: %w", entries[i].destination, entries[i].endpoint, errno))
		}
		return int(i) == len(entries)-1
	})
	return errors.Join(append(errs, err)...)
}
