// SPDX-License-Identifier: Apache-2.0

package announcetest

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/causeway-lb/causeway/internal/announce"
	"github.com/causeway-lb/causeway/internal/announce/l2/wire"
	"github.com/causeway-lb/causeway/internal/announce/members"
	"github.com/causeway-lb/causeway/internal/lab/network"
	"github.com/causeway-lb/causeway/internal/lab/reexec"
)

// echoPort is where nodes echo UDP and TCP on the announced addresses.
const echoPort = 7007

const goodbye = "goodbye"

// made numbers the namespaces of this process.
var made atomic.Int64

// Options of a LAN.
type Options struct {
	Nodes     int
	Addresses []netip.Addr
	// Management returns gossip a network of its own.
	Management bool
	// Partition makes a second segment with a client of its own, to which nodes
	// can be moved.
	Partition bool
	// LAN has membership use memberlist's defaults for local networks.
	LAN bool
	// Log shows the announcers' logs on the standard error.
	Log bool
	// Echo puts the addresses on every node's loopback and echoes there.
	Echo bool
}

// LAN is a bridge with nodes and a client.
type LAN struct {
	Nodes  []*Host
	Client *network.Namespace
	// Far is a client on the other side of a partition; nil without
	// Options.Partition.
	Far *network.Namespace

	opts    Options
	hub     *network.Namespace
	command Command
	closers []func()

	mu     sync.Mutex
	events []Event
}

// Host is a node of the LAN.
type Host struct {
	Name string
	MAC  wire.MAC // of eth0
	Net  *network.Namespace

	lan    *LAN
	port   string // of the bridge
	inSync bool
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	exited chan struct{}
}

// New makes the LAN without starting announcers. It needs root. Close it.
func New(opts Options) (*LAN, error) {
	l, err := build(opts)
	if err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// build returns what there is also with an error.
func build(opts Options) (*LAN, error) {
	l := &LAN{opts: opts}
	l.command = Command{Keys: [][]byte{bytes.Repeat([]byte{7}, members.KeyLength)}, LAN: opts.LAN, Log: opts.Log}
	for _, a := range opts.Addresses {
		l.command.Addresses = append(l.command.Addresses, Address{Addr: a})
	}
	var err error
	if l.hub, err = l.namespace("hub"); err != nil {
		return l, err
	}
	if err := l.hub.AddBridge("lan"); err != nil {
		return l, err
	}
	if opts.Management {
		if err := l.hub.AddBridge("mgmt"); err != nil {
			return l, err
		}
	}
	for i := range opts.Nodes {
		if err := l.addNode(i); err != nil {
			return l, err
		}
	}
	if l.Client, err = l.namespace("client"); err != nil {
		return l, err
	}
	err = l.plug(l.Client, "eth0", "client", "lan", wire.MAC{2, 0, 0, 0, 0, 0x99},
		netip.MustParsePrefix("192.0.2.100/24"), netip.MustParsePrefix("2001:db8:0:1::100/64"))
	if err != nil || !opts.Partition {
		return l, err
	}
	if err := l.hub.AddBridge("far"); err != nil {
		return l, err
	}
	if l.Far, err = l.namespace("far"); err != nil {
		return l, err
	}
	return l, l.plug(l.Far, "eth0", "far-client", "far", wire.MAC{2, 0, 0, 0, 0, 0x98},
		netip.MustParsePrefix("192.0.2.101/24"), netip.MustParsePrefix("2001:db8:0:1::101/64"))
}

func (l *LAN) namespace(name string) (*network.Namespace, error) {
	n, err := network.New(fmt.Sprintf("announce-%d-%d-%s", os.Getpid(), made.Add(1), name))
	if err == nil {
		l.closers = append(l.closers, func() { _ = n.Delete() })
	}
	return n, err
}

// plug returns a namespace an interface on a bridge.
func (l *LAN) plug(n *network.Namespace, name, port, bridge string, mac wire.MAC, prefixes ...netip.Prefix) error {
	err := network.Connect(network.End{Namespace: n, Name: name, MAC: net.HardwareAddr(mac[:])}, network.End{Namespace: l.hub, Name: port})
	if err != nil {
		return err
	}
	if err := errors.Join(l.hub.Plug(port, bridge), n.Up(name)); err != nil {
		return err
	}
	for _, p := range prefixes {
		if err := n.AddAddress(name, p); err != nil {
			return err
		}
	}
	return nil
}

func (l *LAN) addNode(i int) error {
	h := &Host{Name: fmt.Sprintf("node-%d", i+1), lan: l, inSync: true, port: fmt.Sprintf("node-%d", i+1)}
	h.MAC = wire.MAC{2, 0, 0, 0, 1, byte(i + 1)}
	var err error
	if h.Net, err = l.namespace(h.Name); err != nil {
		return err
	}
	v4 := netip.AddrFrom4([4]byte{192, 0, 2, byte(11 + i)})
	v6 := netip.MustParseAddr(fmt.Sprintf("2001:db8:0:1::%d", 11+i))
	if err := l.plug(h.Net, "eth0", h.port, "lan", h.MAC, netip.PrefixFrom(v4, 24), netip.PrefixFrom(v6, 64)); err != nil {
		return err
	}
	internal := []netip.Addr{v4, v6}
	if l.opts.Management {
		internal = []netip.Addr{netip.AddrFrom4([4]byte{198, 51, 100, byte(11 + i)})}
		if err := l.plug(h.Net, "eth1", fmt.Sprintf("mgmt-%d", i+1), "mgmt", wire.MAC{2, 0, 0, 0, 2, byte(i + 1)}, netip.PrefixFrom(internal[0], 24)); err != nil {
			return err
		}
	}
	l.command.Nodes = append(l.command.Nodes, Node{Name: h.Name, InternalIPs: internal})
	l.Nodes = append(l.Nodes, h)
	if l.opts.Echo {
		return h.echo(l.opts.Addresses)
	}
	return nil
}

// Attach returns the node another interface on the LAN, without an address.
func (h *Host) Attach(name string) error {
	mac := h.MAC
	mac[3] = 3 // eth0 has 0, the management network 2
	return h.lan.plug(h.Net, name, h.port+"-"+name, "lan", mac)
}

// echo answers UDP and, line by line, TCP on addresses with the node's name and
// what was sent. A client that sends no more gets a goodbye.
func (h *Host) echo(addresses []netip.Addr) error {
	if err := h.Net.Sysctl("net/ipv4/conf/all/arp_ignore", "1"); err != nil {
		return err
	}
	for _, a := range addresses {
		if err := h.Net.AddAddress("lo", netip.PrefixFrom(a, a.BitLen())); err != nil {
			return err
		}
		var conn net.PacketConn
		var listener net.Listener
		err := h.Net.Do(func() (err error) {
			at := netip.AddrPortFrom(a, echoPort).String()
			if conn, err = net.ListenPacket("udp", at); err != nil {
				return err
			}
			listener, err = net.Listen("tcp", at)
			return err
		})
		if err != nil {
			return err
		}
		h.lan.closers = append(h.lan.closers, func() { conn.Close() }, func() { listener.Close() })
		go h.echoLines(listener)
		go func() {
			buf := make([]byte, 64)
			for {
				n, from, err := conn.ReadFrom(buf)
				if err != nil {
					return
				}
				_, _ = conn.WriteTo(append([]byte(h.Name+" "), buf[:n]...), from)
			}
		}()
	}
	return nil
}

func (h *Host) echoLines(listener net.Listener) {
	for {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		go func() {
			defer conn.Close()
			for lines := bufio.NewScanner(conn); lines.Scan(); {
				if _, err := fmt.Fprintln(conn, h.Name, lines.Text()); err != nil {
					return
				}
			}
			_, _ = fmt.Fprintln(conn, h.Name, goodbye)
		}()
	}
}

// Close kills the announcers and removes the namespaces.
func (l *LAN) Close() {
	for _, h := range l.Nodes {
		h.Kill()
	}
	for _, c := range slices.Backward(l.closers) {
		c()
	}
}

// Start starts the announcers of all nodes that have none.
func (l *LAN) Start() error {
	for _, h := range l.Nodes {
		if err := h.Start(); err != nil {
			return err
		}
	}
	return nil
}

// Start starts the node's announcer, if there is none.
func (h *Host) Start() error {
	if h.cmd != nil {
		return nil
	}
	cmd := reexec.Command(entry)
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := h.Net.Start(cmd); err != nil {
		return fmt.Errorf("start announcer of %s: %w", h.Name, err)
	}
	h.cmd, h.stdin, h.exited = cmd, stdin, make(chan struct{})
	go func() {
		h.lan.read(stdout)
		_ = cmd.Wait()
		close(h.exited)
	}()
	return h.tell()
}

// read takes an announcer's events until it ends.
func (l *LAN) read(r io.Reader) {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var e Event
		if json.Unmarshal(lines.Bytes(), &e) != nil {
			continue
		}
		l.mu.Lock()
		l.events = append(l.events, e)
		l.mu.Unlock()
	}
}

// tell sends the node its state of the cluster.
func (h *Host) tell() error {
	if h.cmd == nil {
		return nil
	}
	c := h.lan.command
	i := slices.IndexFunc(c.Nodes, func(n Node) bool { return n.Name == h.Name })
	c.Node, c.Gossip, c.InSync = h.Name, netip.AddrPortFrom(c.Nodes[i].InternalIPs[0], members.Port), h.inSync
	b, err := json.Marshal(c)
	if err != nil {
		return err
	}
	_, err = h.stdin.Write(append(b, '\n'))
	return err
}

// Change edits the state of the cluster and sends it to every node.
func (l *LAN) Change(edit func(*Command)) error { return l.Spread(0, edit) }

// Spread is Change, but with a pause between the nodes.
func (l *LAN) Spread(pause time.Duration, edit func(*Command)) error {
	edit(&l.command)
	var errs []error
	for i, h := range l.Nodes {
		if i > 0 {
			time.Sleep(pause)
		}
		errs = append(errs, h.tell())
	}
	return errors.Join(errs...)
}

// InSync sets whether the node's kernel is in sync.
func (h *Host) InSync(yes bool) error {
	h.inSync = yes
	return h.tell()
}

// JoinSuppressed joins the two segments, without Options.Partition there is one
// only, by ports that suppress ARP and NDP as those of an EVPN do: questions get
// through, probes and announcements do not.
func (l *LAN) JoinSuppressed() error {
	err := network.Connect(network.End{Namespace: l.hub, Name: "join-lan"}, network.End{Namespace: l.hub, Name: "join-far"})
	if err != nil {
		return err
	}
	for port, bridge := range map[string]string{"join-lan": "lan", "join-far": "far"} {
		if err := l.hub.Plug(port, bridge); err != nil {
			return err
		}
		link, err := l.hub.Links().LinkByName(port)
		if err != nil {
			return err
		}
		if err := l.hub.Links().LinkSetBrNeighSuppress(link, true); err != nil {
			return fmt.Errorf("suppress on port %s: %w", port, err)
		}
	}
	return nil
}

// Freeze keeps the announcer from running until Thaw.
func (h *Host) Freeze() error { return h.cmd.Process.Signal(syscall.SIGSTOP) }

// Thaw undoes Freeze.
func (h *Host) Thaw() error { return h.cmd.Process.Signal(syscall.SIGCONT) }

// Port is the name of the node's port of the LAN's bridge.
func (h *Host) Port() string { return h.port }

// Hub is the namespace of the bridges.
func (l *LAN) Hub() *network.Namespace { return l.hub }

// Running reports whether the node has an announcer.
func (h *Host) Running() bool { return h.cmd != nil }

// Kill ends the announcer with SIGKILL and waits until it is gone.
func (h *Host) Kill() { h.end(func() { _ = h.cmd.Process.Kill() }) }

// Stop ends the announcer with SIGTERM and waits until it has handed over.
func (h *Host) Stop() { h.end(func() { _ = h.cmd.Process.Signal(os.Interrupt) }) }

func (h *Host) end(how func()) {
	if h.cmd == nil {
		return
	}
	how()
	<-h.exited
	h.stdin.Close()
	h.cmd = nil
}

// Cut takes the node off the LAN without its noticing.
func (h *Host) Cut() error { return h.lan.hub.Unplug(h.port) }

// Mend undoes Cut and Away.
func (h *Host) Mend() error {
	if err := h.lan.hub.Unplug(h.port); err != nil {
		return err
	}
	return h.lan.hub.Plug(h.port, "lan")
}

// Away moves the node to the other segment.
func (h *Host) Away() error {
	if err := h.lan.hub.Unplug(h.port); err != nil {
		return err
	}
	return h.lan.hub.Plug(h.port, "far")
}

// CutGossip takes the node off the management network.
func (h *Host) CutGossip() error { return h.lan.hub.Unplug("mgmt-" + h.Name[5:]) }

// MendGossip undoes CutGossip.
func (h *Host) MendGossip() error { return h.lan.hub.Plug("mgmt-"+h.Name[5:], "mgmt") }

// Events returns what has been said since the given time.
func (l *LAN) Events(since time.Time) []Event {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []Event
	for _, e := range l.events {
		if e.At.After(since) {
			out = append(out, e)
		}
	}
	return out
}

// Last returns each node's last report on an address, by node.
func (l *LAN) Last(a netip.Addr) map[string]announce.Report {
	out := map[string]announce.Report{}
	for _, e := range l.Events(time.Time{}) {
		if e.Report != nil && e.Report.Address == a {
			out[e.Node] = *e.Report
		}
	}
	return out
}

// Node returns the node with a hardware address, or nil.
func (l *LAN) Node(mac wire.MAC) *Host {
	for _, h := range l.Nodes {
		if h.MAC == mac {
			return h
		}
	}
	return nil
}
