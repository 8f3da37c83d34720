// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/causeway-lb/causeway/internal/netlink"
)

const (
	// batch is how many entries are deleted by one datagram: as many refusals fit
	// into a socket's buffer.
	batch = 64
	// noteBatch is how many are noted at a time, which costs a transaction of
	// another subsystem.
	noteBatch = 1024
)

// Deleter deletes entries, many by one datagram. It is not safe for concurrent use.
type Deleter struct {
	socket *netlink.Socket
	note   func([]Entry) error

	seq     uint32
	deleted int
	entries []Entry
	arena   []byte // what entries refer to
	message []byte
}

// OpenDeleter opens a Deleter in the network namespace of the calling thread. note,
// unless nil, is called with entries of one family right before they are deleted;
// its error does not keep them. Close it.
func OpenDeleter(note func([]Entry) error) (*Deleter, error) {
	s, err := open()
	if err != nil {
		return nil, err
	}
	return &Deleter{socket: s, note: note}, nil
}

// Close closes the socket; what was not flushed stays.
func (d *Deleter) Close() { _ = d.socket.Close() }

// Deleted returns how many entries were there and are deleted.
func (d *Deleter) Deleted() int { return d.deleted }

// Add has an entry deleted, by the next Flush at the latest. It takes a copy.
func (d *Deleter) Add(e *Entry) error {
	if len(d.entries) > 0 && familyOf(d.entries[0].Source.Addr()) != familyOf(e.Source.Addr()) {
		if err := d.Flush(); err != nil {
			return err
		}
	}
	own := *e
	own.orig, own.zone, own.id = d.copied(e.orig), d.copied(e.zone), d.copied(e.id)
	d.entries = append(d.entries, own)
	if len(d.entries) < batch || d.note != nil && len(d.entries) < noteBatch {
		return nil
	}
	return d.Flush()
}

func (d *Deleter) copied(b []byte) []byte {
	if b == nil {
		return nil
	}
	start := len(d.arena)
	d.arena = append(d.arena, b...)
	return d.arena[start:len(d.arena):len(d.arena)]
}

// Flush deletes what was added. Errors of single entries, and of noting them, are
// joined; the rest is done all the same.
func (d *Deleter) Flush() error {
	if len(d.entries) == 0 {
		return nil
	}
	var errs []error
	if d.note != nil {
		errs = append(errs, d.note(d.entries))
	}
	for some := range slices.Chunk(d.entries, batch) {
		errs = append(errs, d.remove(some))
	}
	d.entries, d.arena = d.entries[:0], d.arena[:0]
	return errors.Join(errs...)
}

// remove deletes entries by one datagram. The kernel says which of them it
// refuses, and acknowledges the last.
func (d *Deleter) remove(entries []Entry) error {
	d.message = d.message[:0]
	first := d.seq + 1
	for i := range entries {
		d.seq++
		var flags uint16
		if i == len(entries)-1 {
			flags = unix.NLM_F_ACK
		}
		d.message = entries[i].appendRemoval(d.message, d.seq, flags)
	}
	if err := d.socket.Send(d.message); err != nil {
		return err
	}
	d.deleted += len(entries)
	var errs []error
	for {
		datagram, err := d.socket.Receive()
		if err != nil {
			return errors.Join(append(errs, err)...)
		}
		for m, err := range netlink.Messages(datagram) {
			if err != nil {
				return errors.Join(append(errs, err)...)
			}
			i := int(m.Seq - first)
			if m.Type != unix.NLMSG_ERROR || i < 0 || i >= len(entries) {
				continue // of an earlier call
			}
			if errno := m.Errno(); errno != nil {
				d.deleted--
				if !errors.Is(errno, unix.ENOENT) {
					errs = append(errs, fmt.Errorf("delete flow to %s at %s: %w", entries[i].Destination, entries[i].Endpoint, errno))
				}
			}
			if i == len(entries)-1 {
				return errors.Join(errs...)
			}
		}
	}
}

// Key is what a client dials. With an unspecified address it is a port at any of
// this node's addresses of that family.
type Key struct {
	Addr     netip.Addr
	Port     uint16
	Protocol uint8
}

// DeleteDialled deletes the TCP, UDP and SCTP flows that match, of those that dialled
// one of the keys, in the network namespace of the calling thread.
func DeleteDialled(dialled map[Key]bool, match func(*Entry) bool) error {
	d, err := OpenDeleter(nil)
	if err != nil {
		return err
	}
	defer d.Close()
	mine := LocalAddresses()
	var errs []error
	for _, anywhere := range []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
		for _, proto := range []uint8{unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_SCTP} {
			err := List(Filter{Protocol: proto, To: netip.AddrPortFrom(anywhere, 0)}, func(e *Entry) error {
				key := Key{e.Destination.Addr(), e.Destination.Port(), proto}
				if !match(e) || !dialled[key] && !(dialled[Key{anywhere, key.Port, proto}] && (mine[key.Addr] || key.Addr.IsLoopback())) {
					return nil
				}
				return d.Add(e)
			})
			if err = errors.Join(err, d.Flush()); err != nil {
				errs = append(errs, fmt.Errorf("delete flows: %w", err))
			}
		}
	}
	return errors.Join(errs...)
}

// LocalAddresses returns the addresses of this network namespace's interfaces, none
// if they cannot be listed.
func LocalAddresses() map[netip.Addr]bool {
	mine := map[netip.Addr]bool{}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return mine
	}
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			mine[p.Addr().Unmap()] = true
		}
	}
	return mine
}

// AnyTranslated reports whether there is a translated flow of the family that
// anywhere, an unspecified address, is of.
func AnyTranslated(anywhere netip.Addr) (bool, error) {
	found := errors.New("found")
	for _, proto := range []uint8{unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_SCTP} {
		err := List(Filter{Protocol: proto, To: netip.AddrPortFrom(anywhere, 0)}, func(e *Entry) error {
			if e.Translated() {
				return found
			}
			return nil
		})
		if errors.Is(err, found) {
			return true, nil
		}
		if err != nil {
			return false, fmt.Errorf("list flows: %w", err)
		}
	}
	return false, nil
}
