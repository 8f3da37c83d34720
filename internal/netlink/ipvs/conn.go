// SPDX-License-Identifier: Apache-2.0

package ipvs

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os/exec"
	"slices"

	genl "github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/causeway-lb/causeway/internal/netlink"
)

const (
	familyVersion = 1
	genlHdrLen    = 4

	// batch is how many changes go in one datagram. Their answers must fit the
	// receive buffer, which holds thousands.
	batch = 128
)

// ErrUnsupported is returned by Dial when the kernel has no IPVS.
var ErrUnsupported = errors.New("kernel has no IPVS: its module ip_vs is neither loaded nor to be found")

// Conn is a netlink socket in the network namespace of the thread that called
// Dial. Not safe for concurrent use.
type Conn struct {
	socket *netlink.Socket
	seq    uint32
	family uint16
	send   []byte
}

// Dial opens a socket, loading the kernel's module if need be. Close it.
func Dial() (*Conn, error) {
	family, err := genl.GenlFamilyGet("IPVS")
	if errors.Is(err, unix.ENOENT) {
		// The kernel does not load the module by the family's name. A failure
		// shows as the family's absence.
		_ = exec.Command("modprobe", "ip_vs").Run()
		family, err = genl.GenlFamilyGet("IPVS")
	}
	if errors.Is(err, unix.ENOENT) {
		return nil, ErrUnsupported
	}
	if err != nil {
		return nil, fmt.Errorf("find generic netlink family of IPVS: %w", err)
	}
	s, err := netlink.Open(netlink.Config{Protocol: unix.NETLINK_GENERIC, Datagram: 256 << 10, Send: 4 << 20, Receive: 4 << 20})
	if err != nil {
		return nil, fmt.Errorf("connect to IPVS: %w", err)
	}
	return &Conn{socket: s, family: family.ID}, nil
}

// Close closes the socket.
func (c *Conn) Close() error { return c.socket.Close() }

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
	if err := c.socket.Send(buf); err != nil {
		return fmt.Errorf("send to IPVS: %w", err)
	}
	low := c.seq - uint32(n) + 1
	for n > 0 {
		datagram, err := c.socket.Receive()
		if err != nil {
			return fmt.Errorf("await IPVS: %w", err)
		}
		for m, err := range netlink.Messages(datagram) {
			if err != nil {
				return fmt.Errorf("await IPVS: %w", err)
			}
			if m.Type != unix.NLMSG_ERROR || m.Seq-low >= uint32(batch) {
				continue // a late answer to what timed out
			}
			answer(m.Seq, m.Errno())
			n--
		}
	}
	return nil
}

// list asks for a list and calls each with the payload of every answer. It
// returns in how many parts, each whole in itself, these came.
func (c *Conn) list(cmd uint8, of *Key, each func(body []byte) error) (parts int, err error) {
	c.seq++
	m := newMessage(c.send[:0], c.family, unix.NLM_F_DUMP, cmd, c.seq)
	if of != nil {
		m.service(*of, nil)
	}
	c.send = m.end()
	if err := c.socket.Send(c.send); err != nil {
		return 0, fmt.Errorf("send: %w", err)
	}
	for {
		datagram, err := c.socket.Receive()
		if err != nil {
			return parts, err
		}
		payload := false
		for m, err := range netlink.Messages(datagram) {
			switch {
			case err != nil:
				return parts, err
			case m.Seq != c.seq:
			case m.Type == unix.NLMSG_DONE, m.Type == unix.NLMSG_ERROR:
				return parts, m.Errno()
			case len(m.Body) >= genlHdrLen:
				if !payload {
					parts++
				}
				payload = true
				if err := each(m.Body[genlHdrLen:]); err != nil {
					return parts, err
				}
			}
		}
	}
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
		parts, err := c.list(cmdGetService, nil, func(body []byte) error {
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
		parts, err := c.list(cmdGetDest, &of, func(body []byte) error {
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
