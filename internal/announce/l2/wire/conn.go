// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mdlayher/packet"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// receiveBuffer is the socket's, in bytes: room for a burst of about 5,000
// small frames.
const receiveBuffer = 4 << 20

// Config is what a Conn needs.
type Config struct {
	// Interface to listen on, by index.
	Interface int
	// MAC of that interface.
	MAC MAC
	// Protocol spoken.
	Protocol Protocol
	// Seal returns the seal for frames of a kind about an address, and Reply that for
	// the answer to a Question or Probe; nil for none.
	Seal  func(Kind, netip.Addr) Seal
	Reply func(Message) Seal
	// Hear is called for the Advertisements and Probes that Listen lets through, whether
	// answered or not. Messages from MAC itself are left out. It must not block.
	Hear func(Message)
}

// Counters are what a Conn has done since it was opened.
type Counters struct {
	Questions, Answers, Limited, Sent uint64
}

// Conn is an open packet socket. Its methods are safe for concurrent use.
type Conn struct {
	cfg    Config
	pc     *packet.Conn
	limits *limits

	mu         sync.RWMutex
	answering  map[netip.Addr]struct{}
	asked      map[netip.Addr]struct{}
	advertised map[netip.Addr]struct{}

	askers sync.Mutex // of recent
	recent recent

	questions, answers, limited, sent atomic.Uint64
}

// Open opens the socket, deaf: nothing is heard before Listen. It needs
// CAP_NET_RAW. Call Run to serve it and Close to end it.
func Open(cfg Config) (*Conn, error) {
	if cfg.Seal == nil {
		cfg.Seal = func(Kind, netip.Addr) Seal { return Seal{} }
	}
	if cfg.Reply == nil {
		cfg.Reply = func(Message) Seal { return Seal{} }
	}
	filter, err := bpf.Assemble([]bpf.Instruction{Reject()})
	if err != nil {
		return nil, fmt.Errorf("assemble filter: %w", err)
	}
	pc, err := packet.Listen(&net.Interface{Index: cfg.Interface, HardwareAddr: cfg.MAC[:]},
		packet.Raw, int(cfg.Protocol.EtherType()), &packet.Config{Filter: filter})
	if err != nil {
		return nil, fmt.Errorf("open %s socket on interface %d: %w", cfg.Protocol.Name(), cfg.Interface, err)
	}
	c := &Conn{
		cfg:       cfg,
		pc:        pc,
		limits:    newLimits(),
		answering: map[netip.Addr]struct{}{},
		recent:    recent{hosts: map[askedBy]lately{}},
	}
	c.enlargeBuffer()
	return c, nil
}

// enlargeBuffer is best effort: a smaller buffer works, but drops in bursts.
func (c *Conn) enlargeBuffer() {
	c.control(func(fd int) {
		if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer) != nil {
			_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, receiveBuffer)
		}
	})
}

// control calls do with the socket, unless that is closed.
func (c *Conn) control(do func(fd int)) {
	if raw, err := c.pc.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { do(int(fd)) })
	}
}

// Close ends Run and releases the socket.
func (c *Conn) Close() error { return c.pc.Close() }

// Counters returns the counts so far.
func (c *Conn) Counters() Counters {
	return Counters{c.questions.Load(), c.answers.Load(), c.limited.Load(), c.sent.Load()}
}

// Listen replaces the sets of addresses that the socket is woken for, in the
// kernel's filter and here: asked are those about which Questions and Probes
// are wanted, which must include those that are answered; advertised are those of
// which Advertisements are wanted.
func (c *Conn) Listen(asked, advertised []netip.Addr) error {
	askedSet, targets := c.set(asked)
	advertisedSet, sources := c.set(advertised)
	program := append(c.own(), c.cfg.Protocol.Filter(targets, sources)...)
	filter, err := bpf.Assemble(program)
	if err != nil {
		return fmt.Errorf("assemble filter of %d instructions: %w", len(program), err)
	}
	c.mu.Lock()
	c.asked, c.advertised = askedSet, advertisedSet
	c.mu.Unlock()
	if err := c.pc.SetBPF(filter); err != nil {
		return fmt.Errorf("attach filter of %d instructions: %w", len(filter), err)
	}
	return nil
}

// own rejects what belongs to an interface on top of this one: a packet socket
// is given the frames of its VLANs and macvlans, too. And what belongs to no
// interface of this node, as its own ARP and NDP do: frames to other hosts, and
// those of VLANs for which there is no interface. The kernel has taken their tag
// off, whether it came in the frame or as metadata, so that nothing but the packet's
// type shows it. A frame of VLAN 0 has a priority only and is like an untagged one.
func (c *Conn) own() []bpf.Instruction {
	return []bpf.Instruction{
		bpf.LoadExtension{Num: bpf.ExtInterfaceIndex},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(c.cfg.Interface), SkipFalse: 2},
		bpf.LoadExtension{Num: bpf.ExtType},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.PACKET_OTHERHOST, SkipTrue: 1},
		Reject(),
	}
}

func (c *Conn) set(addresses []netip.Addr) (map[netip.Addr]struct{}, []Range) {
	keys := make([]uint32, 0, len(addresses))
	set := make(map[netip.Addr]struct{}, len(addresses))
	for _, a := range addresses {
		keys = append(keys, c.cfg.Protocol.Key(a))
		set[a] = struct{}{}
	}
	return set, Ranges(keys, MaxRanges)
}

// Bound reports whether the socket still has its interface. Once that has been
// deleted nothing is received, even if another one was made with the same
// index. The kernel reports it like an interface that goes down, and
// it does so before it takes the interface away: ask again later.
func (c *Conn) Bound() (bound bool) {
	c.control(func(fd int) {
		at, err := unix.Getsockname(fd)
		link, ok := at.(*unix.SockaddrLinklayer)
		bound = err == nil && ok && link.Ifindex == c.cfg.Interface
	})
	return bound
}

// Unread reports whether a frame waits to be received: then this process is behind,
// and silence says nothing about others.
func (c *Conn) Unread() bool {
	waiting := 0
	c.control(func(fd int) { waiting, _ = unix.IoctlGetInt(fd, unix.SIOCINQ) })
	return waiting > 0
}

// Answer starts or stops answering Questions and Probes about address.
func (c *Conn) Answer(address netip.Addr, on bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if on {
		c.answering[address] = struct{}{}
	} else {
		delete(c.answering, address)
	}
}

// Probe sends one probe for address, to everyone if to is zero.
func (c *Conn) Probe(address netip.Addr, to MAC) error {
	return c.send(c.cfg.Protocol.Probe(address, c.cfg.MAC, to, c.cfg.Seal(Probe, address)))
}

// Question asks everyone who has address, as the host asker. It is sealed like a
// Probe, and answered like one.
func (c *Conn) Question(address, asker netip.Addr) error {
	return c.send(c.cfg.Protocol.Question(address, asker, c.cfg.MAC, c.cfg.Seal(Probe, address)))
}

// Tell informs one host alone that address is here.
func (c *Conn) Tell(address netip.Addr, to MAC) error {
	return c.reply(Message{Kind: Probe, Address: address, From: to, To: c.cfg.MAC, Asker: netip.IPv4Unspecified()})
}

// reply answers m, which this host has made up.
func (c *Conn) reply(m Message) error {
	return c.send(c.cfg.Protocol.Answer(m, c.cfg.MAC, c.cfg.Seal(Advertisement, m.Address)))
}

// Remind answers the hosts that asked for address lately once more, whichever node
// answered them then: where announcements do not come through their entries are old.
func (c *Conn) Remind(address netip.Addr) error {
	c.askers.Lock()
	asked := c.recent.of(time.Now(), address)
	c.askers.Unlock()
	var errs []error
	for _, m := range asked {
		errs = append(errs, c.reply(m))
	}
	return errors.Join(errs...)
}

// Announce informs every host on the link that address is here.
func (c *Conn) Announce(address netip.Addr) error {
	var errs []error
	for _, frame := range c.cfg.Protocol.Announce(address, c.cfg.MAC, c.cfg.Seal(Advertisement, address)) {
		errs = append(errs, c.send(frame))
	}
	return errors.Join(errs...)
}

func (c *Conn) send(frame []byte) error {
	c.sent.Add(1)
	if _, err := c.pc.WriteTo(frame, &packet.Addr{HardwareAddr: frame[:6]}); err != nil {
		return fmt.Errorf("send %s frame on interface %d: %w", c.cfg.Protocol.Name(), c.cfg.Interface, err)
	}
	return nil
}

// Run receives until ctx ends or the socket fails, for instance because the
// interface is gone. It closes the socket.
func (c *Conn) Run(ctx context.Context) error {
	defer c.pc.Close()
	stop := context.AfterFunc(ctx, func() { c.pc.Close() })
	defer stop()
	buf := make([]byte, 2048)
	for {
		n, _, err := c.pc.ReadFrom(buf)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.ENETDOWN) && c.Bound():
			continue // said once each time the interface goes down
		case err != nil:
			return fmt.Errorf("receive %s on interface %d: %w", c.cfg.Protocol.Name(), c.cfg.Interface, err)
		}
		c.cfg.Protocol.Parse(buf[:n], c.handle)
	}
}

func (c *Conn) handle(m Message) {
	if m.From == c.cfg.MAC || m.From.IsGroup() {
		return
	}
	c.mu.RLock()
	_, answer := c.answering[m.Address]
	_, wanted := c.asked[m.Address]
	if m.Kind == Advertisement {
		_, wanted = c.advertised[m.Address]
	}
	c.mu.RUnlock()
	if !wanted {
		return
	}
	// A frame to another host's address is seen while the interface is
	// promiscuous; it is not ours to answer.
	if answer && m.Kind != Advertisement && (m.To.IsGroup() || m.To == c.cfg.MAC) {
		c.answer(m)
	}
	if m.Kind != Question {
		c.cfg.Hear(m)
	} else if m.Seal.IsZero() { // not one of ours
		c.askers.Lock()
		c.recent.note(time.Now(), m)
		c.askers.Unlock()
	}
}

func (c *Conn) answer(m Message) {
	c.questions.Add(1)
	if !c.limits.allow(m.From) {
		c.limited.Add(1)
		return
	}
	c.answers.Add(1)
	_ = c.send(c.cfg.Protocol.Answer(m, c.cfg.MAC, c.cfg.Reply(m))) // the asker asks again
}
