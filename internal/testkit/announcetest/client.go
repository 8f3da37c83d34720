// SPDX-License-Identifier: Apache-2.0

package announcetest

import (
	"bufio"
	"cmp"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mdlayher/packet"

	"github.com/causeway-lb/causeway/internal/announce/l2/arp"
	"github.com/causeway-lb/causeway/internal/announce/l2/ndp"
	"github.com/causeway-lb/causeway/internal/announce/l2/wire"
	"github.com/causeway-lb/causeway/internal/lab/network"
)

// Answer is a reply to a question.
type Answer struct {
	Address netip.Addr
	MAC     wire.MAC
	At      time.Time
}

// Asker asks who has an address, with frames of its own making, as a host on
// the LAN that is none of ours. Close it.
type Asker struct {
	mac    wire.MAC
	v4, v6 *packet.Conn
	wg     sync.WaitGroup

	mu       sync.Mutex
	answers  []Answer
	remember map[netip.Addr]wire.MAC
}

// NewAsker opens an Asker on eth0 of a client's namespace.
func NewAsker(n *network.Namespace) (*Asker, error) { return NewAskerOn(n, "eth0") }

// NewAskerOn opens one on any interface.
func NewAskerOn(n *network.Namespace, name string) (*Asker, error) {
	index, err := n.Index(name)
	if err != nil {
		return nil, err
	}
	hw, err := n.MAC(name)
	if err != nil {
		return nil, err
	}
	a := &Asker{mac: wire.MAC(hw), remember: map[netip.Addr]wire.MAC{}}
	ifi := &net.Interface{Index: index, HardwareAddr: hw}
	err = n.Do(func() (err error) {
		if a.v4, err = packet.Listen(ifi, packet.Raw, arp.EtherType, nil); err != nil {
			return err
		}
		a.v6, err = packet.Listen(ifi, packet.Raw, ndp.EtherType, nil)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open asker: %w", err)
	}
	a.wg.Go(func() { a.receive(a.v4, arp.Protocol{}) })
	a.wg.Go(func() { a.receive(a.v6, ndp.Protocol{}) })
	return a, nil
}

// Close ends the Asker.
func (a *Asker) Close() {
	a.v4.Close()
	a.v6.Close()
	a.wg.Wait()
}

func (a *Asker) receive(c *packet.Conn, p wire.Protocol) {
	buf := make([]byte, 2048)
	for {
		n, _, err := c.ReadFrom(buf)
		if err != nil {
			return
		}
		now := time.Now()
		p.Parse(buf[:n], func(m wire.Message) {
			a.recall(p, m)
			if m.Kind == wire.Advertisement && m.To == a.mac {
				a.mu.Lock()
				a.answers = append(a.answers, Answer{m.Address, m.From, now})
				a.mu.Unlock()
			}
		})
	}
}

// Question sends one question and returns the time at which it left.
func (a *Asker) Question(address netip.Addr) (time.Time, error) {
	at := time.Now()
	return at, a.send(address, question(address, a.mac))
}

// Tagged sends one question in a frame of a VLAN (IEEE 802.1Q), 0 for one that has
// a priority only.
func (a *Asker) Tagged(address netip.Addr, vlan uint16) (time.Time, error) {
	at, frame := time.Now(), question(address, a.mac)
	tag := binary.BigEndian.AppendUint16([]byte{0x81, 0x00}, 5<<13|vlan)
	return at, a.send(address, slices.Concat(frame[:12], tag, frame[12:]))
}

// Send sends a frame as it is.
func (a *Asker) Send(frame []byte) error {
	_, err := a.v4.WriteTo(frame, &packet.Addr{HardwareAddr: frame[:6]})
	return err
}

// Remember answers questions and probes about an address with a hardware address,
// as a switch does that has learned it, until the function that it returns is called.
func (a *Asker) Remember(address netip.Addr, mac wire.MAC) (stop func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.remember[address] = mac
	return func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		delete(a.remember, address)
	}
}

// recall sends what Remember promises.
func (a *Asker) recall(p wire.Protocol, m wire.Message) {
	a.mu.Lock()
	mac, ok := a.remember[m.Address]
	a.mu.Unlock()
	if ok && m.Kind != wire.Advertisement {
		_ = a.send(m.Address, p.Answer(m, mac, wire.Seal{}))
	}
}

// Flood sends questions about an address, perMilli of them each millisecond, from
// a hardware address that is not the Asker's, until stop is closed.
func (a *Asker) Flood(address netip.Addr, from wire.MAC, perMilli int, stop <-chan struct{}) error {
	frame := question(address, from)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-stop:
			return nil
		case <-tick.C:
		}
		for range perMilli {
			if err := a.send(address, frame); err != nil {
				return err
			}
		}
	}
}

// Claim says that address is at a hardware address, as a host without the gossip
// key can.
func (a *Asker) Claim(address netip.Addr, at wire.MAC) error {
	if address.Is4() {
		return a.send(address, arp.Packet{
			EthernetTo: wire.Broadcast, EthernetFrom: a.mac, Op: arp.OpRequest,
			SenderMAC: at, SenderAddr: address, TargetAddr: address,
		}.Frame())
	}
	return a.send(address, ndp.Packet{
		EthernetTo: wire.MAC{0x33, 0x33, 0, 0, 0, 1}, EthernetFrom: a.mac,
		Source: address, Dest: netip.MustParseAddr("ff02::1"),
		Type: ndp.TypeAdvertisement, Override: true, Target: address, LinkLayer: at,
	}.Frame())
}

// question is a frame with which a host asks everyone who has an address.
func question(address netip.Addr, from wire.MAC) []byte {
	if address.Is4() {
		return arp.Packet{
			EthernetTo: wire.Broadcast, EthernetFrom: from, Op: arp.OpRequest,
			SenderMAC: from, SenderAddr: netip.MustParseAddr("192.0.2.100"), TargetAddr: address,
		}.Frame()
	}
	group := ndp.SolicitedNode(address)
	return ndp.Packet{
		EthernetTo: wire.MAC{0x33, 0x33, 0xff, group.As16()[13], group.As16()[14], group.As16()[15]}, EthernetFrom: from,
		Source: netip.MustParseAddr("2001:db8:0:1::100"), Dest: group,
		Type: ndp.TypeSolicitation, Target: address, LinkLayer: from,
	}.Frame()
}

func (a *Asker) send(address netip.Addr, frame []byte) error {
	conn := a.v4
	if address.Is6() {
		conn = a.v6
	}
	_, err := conn.WriteTo(frame, &packet.Addr{HardwareAddr: frame[:6]})
	return err
}

// Answers returns the answers about address since a time, and forgets older ones
// about it.
func (a *Asker) Answers(address netip.Addr, since time.Time) []Answer {
	a.mu.Lock()
	defer a.mu.Unlock()
	var out []Answer
	a.answers = slices.DeleteFunc(a.answers, func(r Answer) bool {
		if r.Address != address {
			return false
		}
		if r.At.After(since) {
			out = append(out, r)
		}
		return true
	})
	return out
}

// Ask asks once and returns the distinct hosts that answer within wait.
func (a *Asker) Ask(address netip.Addr, wait time.Duration) ([]wire.MAC, error) {
	at, err := a.Question(address)
	if err != nil {
		return nil, err
	}
	time.Sleep(wait)
	var out []wire.MAC
	for _, r := range a.Answers(address, at) {
		if !slices.Contains(out, r.MAC) {
			out = append(out, r.MAC)
		}
	}
	return out, nil
}

// Echo is an answer of a node's echo server.
type Echo struct {
	Node string
	Sent time.Time // when the datagram left that was echoed
	At   time.Time
}

// lastEcho is after how long without another an echo that is missing is lost.
const lastEcho = 200 * time.Millisecond

// Stream sends a datagram to an address every interval until stop is closed, and
// returns all echoes. The kernel of the client's namespace resolves the address.
func (l *LAN) Stream(address netip.Addr, interval time.Duration, stop <-chan struct{}) (sent int, echoes []Echo, err error) {
	var conn net.Conn
	err = l.Client.Do(func() (err error) {
		conn, err = net.Dial("udp", netip.AddrPortFrom(address, echoPort).String())
		return err
	})
	if err != nil {
		return 0, nil, err
	}
	var wg sync.WaitGroup
	var received atomic.Int64
	wg.Go(func() {
		buf := make([]byte, 128)
		for {
			n, err := conn.Read(buf)
			if err != nil {
				if strings.Contains(err.Error(), "closed") {
					return
				}
				continue // an ICMP error for an earlier datagram
			}
			node, at, _ := strings.Cut(string(buf[:n]), " ")
			var nano int64
			if _, err := fmt.Sscan(at, &nano); err == nil {
				echoes = append(echoes, Echo{node, time.Unix(0, nano), time.Now()})
				received.Add(1)
			}
		}
	})
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for running := true; running; {
		select {
		case <-stop:
			running = false
		case <-tick.C:
			if _, err := fmt.Fprintf(conn, "%d", time.Now().UnixNano()); err == nil {
				sent++
			}
		}
	}
	last, at := received.Load(), time.Now()
	for last < int64(sent) && time.Since(at) < lastEcho {
		time.Sleep(time.Millisecond)
		if now := received.Load(); now != last {
			last, at = now, time.Now()
		}
	}
	conn.Close()
	wg.Wait()
	return sent, echoes, nil
}

// Connection is an open TCP connection from the client to an address.
type Connection struct {
	conn  net.Conn
	lines *bufio.Scanner
}

// Connect opens one. Close it.
func (l *LAN) Connect(address netip.Addr) (*Connection, error) {
	c := &Connection{}
	err := l.Client.Do(func() (err error) {
		c.conn, err = net.DialTimeout("tcp", netip.AddrPortFrom(address, echoPort).String(), 10*time.Second)
		return err
	})
	if err != nil {
		return nil, err
	}
	c.lines = bufio.NewScanner(c.conn)
	return c, nil
}

// Ask sends a line and returns the name of the node that answers.
func (c *Connection) Ask() (node string, err error) {
	const hello = "hello"
	if _, err := fmt.Fprintln(c.conn, hello); err != nil {
		return "", err
	}
	return c.read(hello)
}

// Finish closes the connection in one direction and returns the name of the node
// that has noticed and says goodbye.
func (c *Connection) Finish() (node string, err error) {
	if err := c.conn.(*net.TCPConn).CloseWrite(); err != nil {
		return "", err
	}
	return c.read(goodbye)
}

func (c *Connection) read(want string) (node string, err error) {
	if err := c.conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return "", err
	}
	if !c.lines.Scan() {
		return "", cmp.Or(c.lines.Err(), io.EOF)
	}
	node, text, _ := strings.Cut(c.lines.Text(), " ")
	if text != want {
		return node, fmt.Errorf("answer %q", c.lines.Text())
	}
	return node, nil
}

// Close ends the connection.
func (c *Connection) Close() { _ = c.conn.Close() }
