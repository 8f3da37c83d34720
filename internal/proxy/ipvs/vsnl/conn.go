// SPDX-License-Identifier: Apache-2.0

package vsnl

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os/exec"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/causeway-lb/causeway/internal/proxy/nftables/nfnl"
)

const (
	familyName    = "IPVS"
	familyVersion = 1

	headerLen  = unix.NLMSG_HDRLEN
	genlHdrLen = 4

	// batch is how many changes go in one datagram. Their answers must fit the
	// receive buffer, which holds thousands.
	batch = 128
)

// ErrUnsupported is returned by Dial when the kernel has no IPVS.
var ErrUnsupported = errors.New("kernel has no IPVS: its module ip_vs is neither loaded nor to be found")

// Conn is a netlink socket in the network namespace of the thread that called
// Dial. Not safe for concurrent use.
type Conn struct {
	fd     int
	seq    uint32
	family uint16
	recv   []byte
	send   []byte
}

// Dial opens a socket, loading the kernel's module if need be. Close it.
func Dial() (*Conn, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_GENERIC)
	if err != nil {
		return nil, fmt.Errorf("open generic netlink socket: %w", err)
	}
	c := &Conn{fd: fd, recv: make([]byte, 256<<10)}
	if err := c.setup(); err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	return c, nil
}

func (c *Conn) setup() error {
	if err := unix.Bind(c.fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("bind generic netlink socket: %w", err)
	}
	const buffer = 4 << 20
	for _, o := range [][2]int{{unix.SO_SNDBUFFORCE, unix.SO_SNDBUF}, {unix.SO_RCVBUFFORCE, unix.SO_RCVBUF}} {
		if unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, o[0], buffer) != nil {
			if err := unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, o[1], buffer); err != nil {
				return fmt.Errorf("size generic netlink socket: %w", err)
			}
		}
	}
	// The request is not wanted back with each answer.
	_ = unix.SetsockoptInt(c.fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1)
	if err := unix.SetsockoptTimeval(c.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 30}); err != nil {
		return fmt.Errorf("set time-out of generic netlink socket: %w", err)
	}
	err := c.findFamily()
	if errors.Is(err, unix.ENOENT) {
		// The kernel does not load the module by the family's name. A failure
		// shows as the family's absence.
		_ = exec.Command("modprobe", "ip_vs").Run()
		err = c.findFamily()
	}
	if errors.Is(err, unix.ENOENT) {
		return ErrUnsupported
	}
	return err
}

// Close closes the socket.
func (c *Conn) Close() error { return unix.Close(c.fd) }

// findFamily asks the generic netlink controller for the family's number.
func (c *Conn) findFamily() error {
	m := newMessage(c.send[:0], unix.GENL_ID_CTRL, unix.NLM_F_ACK, unix.CTRL_CMD_GETFAMILY, 2)
	m.text(unix.CTRL_ATTR_FAMILY_NAME, familyName)
	_, err := c.exchange(m.end(), func(_ uint32, body []byte) error {
		nfnl.Attrs(body, func(typ uint16, data []byte) {
			if typ == unix.CTRL_ATTR_FAMILY_ID && len(data) >= 2 {
				c.family = binary.NativeEndian.Uint16(data)
			}
		})
		return nil
	})
	if err != nil {
		return fmt.Errorf("find generic netlink family %s: %w", familyName, err)
	}
	return nil
}

// Do carries out changes in order and returns an error for each, nil where it
// succeeded: ENOENT for what is absent, EEXIST for what is there already, and
// for a scheduler that the kernel does not know, ENOENT.
func (c *Conn) Do(changes []Change) []error {
	errs := make([]error, len(changes))
	for from := 0; from < len(changes); from += batch {
		to := min(from+batch, len(changes))
		c.some(changes[from:to], errs[from:to])
	}
	return errs
}

func (c *Conn) some(changes []Change, errs []error) {
	first := c.seq + 1
	buf := c.send[:0]
	for i := range changes {
		c.seq++
		buf = changes[i].append(buf, c.family, c.seq)
	}
	c.send = buf
	answered := make([]bool, len(changes))
	err := c.roundTrip(buf, len(changes), func(seq uint32, err error) {
		if i := int(seq - first); i >= 0 && i < len(changes) {
			answered[i] = true
			errs[i] = err
		}
	})
	for i := range changes {
		if err != nil && !answered[i] {
			errs[i] = err
		}
		if errs[i] != nil {
			errs[i] = &Error{Change: changes[i], Err: errs[i]}
		}
	}
}

// roundTrip sends messages that ask for acknowledgements and reads n of them.
func (c *Conn) roundTrip(buf []byte, n int, answer func(seq uint32, err error)) error {
	if err := unix.Sendto(c.fd, buf, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("send to IPVS: %w", err)
	}
	low := c.seq - uint32(n) + 1
	for n > 0 {
		err := c.receive(func(typ uint16, seq uint32, body []byte) error {
			if typ != unix.NLMSG_ERROR || seq-low >= uint32(batch) {
				return nil // a late answer to what timed out
			}
			answer(seq, errno(body))
			n--
			return nil
		})
		if err != nil {
			return fmt.Errorf("await IPVS: %w", err)
		}
	}
	return nil
}

// exchange sends one request and calls each with the payload of every answer. It
// returns in how many parts, each whole in itself, these came.
func (c *Conn) exchange(request []byte, each func(cmd uint32, body []byte) error) (parts int, err error) {
	c.send = request
	c.seq++
	seq := c.seq
	binary.NativeEndian.PutUint32(request[8:], seq)
	if err := unix.Sendto(c.fd, request, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return 0, fmt.Errorf("send: %w", err)
	}
	for done := false; !done; {
		payload := false
		err := c.receive(func(typ uint16, got uint32, body []byte) error {
			switch {
			case got != seq:
				return nil
			case typ == unix.NLMSG_DONE:
				done = true
			case typ == unix.NLMSG_ERROR:
				done = true
				return errno(body)
			case len(body) >= genlHdrLen:
				payload = true
				return each(uint32(body[0]), body[genlHdrLen:])
			}
			return nil
		})
		if payload {
			parts++
		}
		if err != nil {
			return parts, err
		}
	}
	return parts, nil
}

// receive reads one datagram and calls each for every message in it.
func (c *Conn) receive(each func(typ uint16, seq uint32, body []byte) error) error {
	n, _, err := unix.Recvfrom(c.fd, c.recv, 0)
	for errors.Is(err, unix.EINTR) {
		n, _, err = unix.Recvfrom(c.fd, c.recv, 0)
	}
	if err != nil {
		return err
	}
	for b := c.recv[:n]; len(b) >= headerLen; {
		size := int(binary.NativeEndian.Uint32(b))
		if size < headerLen || size > len(b) {
			return fmt.Errorf("netlink message of %d bytes in %d", size, len(b))
		}
		typ, seq := binary.NativeEndian.Uint16(b[4:]), binary.NativeEndian.Uint32(b[8:])
		if err := each(typ, seq, b[headerLen:size]); err != nil {
			return err
		}
		b = b[min(align(size), len(b)):]
	}
	return nil
}

func errno(body []byte) error {
	if len(body) < 4 {
		return errors.New("short netlink answer")
	}
	if e := int32(binary.NativeEndian.Uint32(body)); e != 0 {
		return unix.Errno(-e)
	}
	return nil
}

// settleRetries is how often a list is read that others change meanwhile.
const settleRetries = 10

// Read returns all virtual servers of the network namespace.
//
// The kernel gives a list in parts, begins each by counting to where the last one
// ended, and does not mark a list (NLM_F_DUMP_INTR) that somebody changed in
// between: what goes from the front of it makes a part skip some that nobody touched.
// So a list of several parts is read until it is twice the same. Where it never
// is, the last one counts.
func (c *Conn) Read() ([]VirtualServer, error) {
	out, err := settled(func() ([]VirtualServer, int, error) {
		var out []VirtualServer
		m := newMessage(c.send[:0], c.family, unix.NLM_F_DUMP, cmdGetService, familyVersion)
		parts, err := c.exchange(m.end(), func(_ uint32, body []byte) error {
			s, err := decodeService(body)
			out = append(out, s)
			return err
		})
		return out, parts, err
	}, func(s *VirtualServer) Key { return s.Key })
	if err != nil {
		return nil, fmt.Errorf("list virtual servers: %w", err)
	}
	for i := range out {
		if out[i].Reals, err = c.ReadReals(out[i].Key); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// ReadReals returns the real servers of one virtual server, with the
// connections that they have. A missing virtual server has none.
func (c *Conn) ReadReals(of Key) ([]RealServer, error) {
	out, err := settled(func() ([]RealServer, int, error) {
		var out []RealServer
		m := newMessage(c.send[:0], c.family, unix.NLM_F_DUMP, cmdGetDest, familyVersion)
		m.service(of, nil)
		parts, err := c.exchange(m.end(), func(_ uint32, body []byte) error {
			r, err := decodeDest(body, of.family())
			out = append(out, r)
			return err
		})
		return out, parts, err
	}, func(r *RealServer) netip.AddrPort { return r.AddrPort })
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list real servers of %s: %w", of, err)
	}
	return out, nil
}

// settled reads a list, which came in so many parts, until it can be relied on: see
// Conn.Read. What is listed twice is returned once.
func settled[T any, K comparable](read func() (list []T, parts int, err error), key func(*T) K) ([]T, error) {
	var before map[K]bool
	for attempt := 1; ; attempt++ {
		list, parts, err := read()
		if err != nil {
			return nil, err
		}
		now := make(map[K]bool, len(list))
		all := len(list)
		list = slices.DeleteFunc(list, func(item T) bool {
			again := now[key(&item)]
			now[key(&item)] = true
			return again
		})
		spoilt := len(list) < all
		if parts <= 1 || !spoilt && before != nil && maps.Equal(before, now) || attempt >= settleRetries {
			return list, nil
		}
		if before = now; spoilt {
			before = nil
		}
	}
}
