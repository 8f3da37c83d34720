// SPDX-License-Identifier: Apache-2.0

package modes

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/causeway-lb/causeway/internal/proxy/model"
	"github.com/causeway-lb/causeway/internal/testkit"
	"github.com/causeway-lb/causeway/internal/testkit/nstest"
)

// What every change is made under.
const (
	longConnections = 100
	newPerSecond    = 200
	// dialers open new connections, each one after the other: enough of them
	// that the rate holds while some wait.
	dialers = 40
)

const (
	frontend, endpoint, endpoint2 = "10.96.0.10:80", "10.244.1.2:8080", "10.244.1.4:8080"
	patience                      = 20 * time.Second
	// resend is when a client that resends a datagram gives up waiting.
	resend = 500 * time.Millisecond
)

// dial is a frontend, as a client dials it: kind of frontend, network of package
// net, and address.
type dial struct {
	kind          model.Kind
	network, addr string
}

func (d dial) String() string { return fmt.Sprintf("%s %s %s", d.kind, d.network, d.addr) }

// mixed are all kinds of frontends, by both families and two protocols.
var mixed = func() []dial {
	var out []dial
	for _, protocol := range []struct{ name, port, node string }{{"tcp", "80", "30080"}, {"udp", "53", "30053"}} {
		for _, at := range []struct {
			kind   model.Kind
			v4, v6 string
		}{
			{model.ClusterIP, "10.96.0.10", "fd00:10:96::10"},
			{model.LoadBalancerIP, "203.0.113.200", "2001:db8:3::200"},
			{model.ExternalIP, "198.51.100.77", "2001:db8:4::77"},
			{model.NodePort, "192.0.2.11", "2001:db8:2::11"},
		} {
			port := protocol.port
			if at.kind == model.NodePort {
				port = protocol.node
			}
			out = append(out, dial{at.kind, protocol.name + "4", net.JoinHostPort(at.v4, port)},
				dial{at.kind, protocol.name + "6", net.JoinHostPort(at.v6, port)})
		}
	}
	return out
}()

// only are the frontends of one Service of IPv4, which is all that others serve here.
var only = []dial{{model.ClusterIP, "tcp4", frontend}}

// endpoints of mixed, by network.
var endpoints = map[string][]string{
	"tcp4": {endpoint, endpoint2}, "tcp6": {"[fd00:10:244:1::2]:8080", "[fd00:10:244:1::4]:8080"},
	"udp4": {"10.244.1.2:5353", "10.244.1.4:5353"}, "udp6": {"[fd00:10:244:1::2]:5353", "[fd00:10:244:1::4]:5353"},
}

// network is a node, which is the test's own namespace, between a client, a
// Pod that is one, and a Pod that echoes lines and datagrams.
type network struct {
	clients map[string]*nstest.NS
	// perSecond are new connections and requests by UDP of a load.
	perSecond int
	// dials are what a load dials in turn.
	dials []dial
	// resends has clients send a datagram again that got no answer.
	resends bool
	// sockets are the endpoints'.
	sockets []syscall.Conn
	// lostPort is the next port of a client that is not heard.
	lostPort int
}

func newNetwork(t *testing.T) *network {
	t.Helper()
	node, client, pod, caller := nstest.Self(t), nstest.NewNS(t), nstest.NewNS(t), nstest.NewNS(t)
	nstest.Cable(t, node, "eth0", client, "eth0")
	nstest.Cable(t, node, "pod", pod, "eth0")
	nstest.Cable(t, node, "caller", caller, "eth0")
	prefix, addr := netip.MustParsePrefix, netip.MustParseAddr
	node.Address(t, "eth0", prefix("192.0.2.11/24"))
	client.Address(t, "eth0", prefix("192.0.2.100/24"))
	node.Route(t, prefix("0.0.0.0/0"), addr("192.0.2.100"), "eth0")
	node.Address(t, "eth0", prefix("2001:db8:2::11/64"))
	client.Address(t, "eth0", prefix("2001:db8:2::100/64"))
	node.Route(t, prefix("::/0"), addr("2001:db8:2::100"), "eth0")
	for _, to := range []string{"10.96.0.0/16", "203.0.113.0/24", "198.51.100.0/24"} {
		client.Route(t, prefix(to), addr("192.0.2.11"), "eth0")
	}
	for _, to := range []string{"fd00:10:96::/112", "2001:db8:3::/64", "2001:db8:4::/64"} {
		client.Route(t, prefix(to), addr("2001:db8:2::11"), "eth0")
	}
	for _, p := range []struct {
		ns          *nstest.NS
		link, where string
	}{
		{pod, "pod", "10.244.1.2/32"}, {pod, "pod", "10.244.1.4/32"}, {caller, "caller", "10.244.1.3/32"},
		{pod, "pod", "fd00:10:244:1::2/128"}, {pod, "pod", "fd00:10:244:1::4/128"}, {caller, "caller", "fd00:10:244:1::3/128"},
	} {
		p.ns.Address(t, "eth0", prefix(p.where))
		node.Route(t, prefix(p.where), netip.Addr{}, p.link)
	}
	for _, ns := range []*nstest.NS{pod, caller} {
		ns.Route(t, prefix("169.254.1.1/32"), netip.Addr{}, "eth0")
		ns.Route(t, prefix("0.0.0.0/0"), addr("169.254.1.1"), "eth0")
		ns.Route(t, prefix("::/0"), addr("fe80::1"), "eth0")
	}
	for _, link := range []string{"pod", "caller"} {
		node.Address(t, link, prefix("169.254.1.1/32"))
		node.Address(t, link, prefix("fe80::1/64"))
	}
	for _, forward := range []string{"ipv4/ip_forward", "ipv6/conf/all/forwarding"} {
		if err := os.WriteFile("/proc/sys/net/"+forward, []byte("1"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	n := &network{clients: map[string]*nstest.NS{"client": client, "node": node, "Pod": caller}, perSecond: newPerSecond, dials: mixed, lostPort: lostPorts}
	for network, all := range endpoints {
		for _, at := range all {
			pod.Must(t, func() error { return n.answer(t, network, at) })
		}
	}
	return n
}

// answer echoes what comes to an endpoint in the namespace of the calling thread.
func (n *network) answer(t *testing.T, network, at string) error {
	if strings.HasPrefix(network, "tcp") {
		var plain net.ListenConfig
		plain.SetMultipathTCP(false) // such a socket takes no filter
		listener, err := plain.Listen(t.Context(), network, at)
		if err == nil {
			t.Cleanup(func() { listener.Close() })
			n.sockets = append(n.sockets, listener.(*net.TCPListener))
			go echo(listener)
		}
		return err
	}
	socket, err := net.ListenPacket(network, at)
	if err == nil {
		t.Cleanup(func() { socket.Close() })
		n.sockets = append(n.sockets, socket.(*net.UDPConn))
		go echoDatagrams(socket)
	}
	return err
}

func echoDatagrams(socket net.PacketConn) {
	buffer := make([]byte, 64)
	for {
		n, from, err := socket.ReadFrom(buffer)
		if err != nil {
			return
		}
		_, _ = socket.WriteTo(buffer[:n], from)
	}
}

func echo(listener net.Listener) {
	for {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		go func() {
			defer conn.Close()
			lines := bufio.NewScanner(conn)
			for lines.Scan() {
				if _, err := fmt.Fprintln(conn, lines.Text()); err != nil {
					return
				}
			}
		}()
	}
}

// connection is one through the Service.
type connection struct {
	net.Conn
	in *bufio.Reader
}

// open dials from the namespace of the calling thread.
func open(to dial) (*connection, error) {
	conn, err := net.DialTimeout(to.network, to.addr, patience)
	if err != nil {
		return nil, err
	}
	return &connection{conn, bufio.NewReader(conn)}, nil
}

func (c *connection) say(text string) error {
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if _, err := fmt.Fprintln(c, text); err != nil {
		return err
	}
	got, err := c.in.ReadString('\n')
	if err == nil && got != text+"\n" {
		return fmt.Errorf("%q echoed as %q", text, got)
	}
	return err
}

// short is a connection that says one thing, or a request by UDP.
func short(to dial, resends bool) error {
	c, err := open(to)
	if err != nil {
		return err
	}
	defer c.Close()
	if strings.HasPrefix(to.network, "tcp") {
		return c.say("short")
	}
	buffer, wait := make([]byte, 64), patience
	if resends {
		wait = resend
	}
	for begun := time.Now(); ; {
		if _, err := c.Write([]byte("short")); err != nil {
			return err
		}
		if err := c.SetReadDeadline(time.Now().Add(wait)); err != nil {
			return err
		}
		_, err := c.Read(buffer)
		if err == nil || !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(begun) > patience {
			return err
		}
	}
}

// load is traffic while something changes: connections that stay open and say
// something now and then, and new ones all the time.
type load struct {
	stop   chan struct{}
	wait   sync.WaitGroup
	made   atomic.Int64
	long   []*connection
	froms  []string // of long
	mu     sync.Mutex
	failed []error
	slow   time.Duration // the longest that a new connection took
	ended  map[*connection]error
}

// start opens the long connections, and returns when new ones succeed.
func (n *network) start(t *testing.T) *load {
	t.Helper()
	l := &load{stop: make(chan struct{}), ended: map[*connection]error{}}
	froms := []string{"client", "client", "node", "Pod"}
	streams := slices.DeleteFunc(slices.Clone(n.dials), func(d dial) bool { return !strings.HasPrefix(d.network, "tcp") })
	for i := range longConnections {
		from, to := froms[i%len(froms)], streams[i/len(froms)%len(streams)]
		n.clients[from].Must(t, func() error {
			c, err := open(to)
			if err != nil {
				return fmt.Errorf("from the %s to %s: %w", from, to, err)
			}
			l.long, l.froms = append(l.long, c), append(l.froms, from)
			return c.say("hello")
		})
	}
	for i, c := range l.long {
		l.wait.Go(func() { l.keep(c, l.froms[i]) })
	}
	for i := range dialers {
		from := froms[i%len(froms)]
		l.wait.Go(func() { _ = n.clients[from].Do(func() error { l.dial(from, n, i); return nil }) })
	}
	t.Cleanup(func() { l.end() })
	l.more(t, 20)
	return l
}

// keep says something on a long connection until it ends or the load does.
func (l *load) keep(c *connection, from string) {
	for i := 0; l.pause(100 * time.Millisecond); i++ {
		if err := c.say(fmt.Sprint(from, i)); err != nil {
			l.mu.Lock()
			l.ended[c] = fmt.Errorf("from the %s: %w", from, err)
			l.mu.Unlock()
			return
		}
	}
}

// dial opens its share of the new connections, one to each frontend in turn.
func (l *load) dial(from string, n *network, first int) {
	tick := time.NewTicker(time.Second * dialers / time.Duration(n.perSecond))
	defer tick.Stop()
	for i := first; l.pause(0); i++ {
		to := n.dials[i%len(n.dials)]
		begun := time.Now()
		err := short(to, n.resends)
		l.made.Add(1)
		l.mu.Lock()
		l.slow = max(l.slow, time.Since(begun))
		if err != nil {
			l.failed = append(l.failed, fmt.Errorf("from the %s to %s: %w", from, to, err))
		}
		l.mu.Unlock()
		select {
		case <-tick.C:
		case <-l.stop:
		}
	}
}

func (l *load) pause(d time.Duration) bool {
	select {
	case <-l.stop:
		return false
	case <-time.After(d):
		return true
	}
}

// more waits until so many more new connections were tried.
func (l *load) more(t *testing.T, n int64) {
	t.Helper()
	until := l.made.Load() + n
	testkit.Eventually(t, 2*patience, fmt.Sprintf("%d new connections", n), func() error {
		if left := until - l.made.Load(); left > 0 {
			l.mu.Lock()
			defer l.mu.Unlock()
			return fmt.Errorf("%d are missing; failed: %w", left, errors.Join(l.failed...))
		}
		return nil
	})
}

func (l *load) end() {
	select {
	case <-l.stop:
		return
	default:
	}
	close(l.stop)
	l.wait.Wait()
	for _, c := range l.long {
		_ = c.Close()
	}
}

// verify ends the load: no new connection has failed; no long one has ended, or
// all have, by a reset, if reset says so.
func (l *load) verify(t *testing.T, reset bool) {
	t.Helper()
	l.end()
	t.Logf("%d new connections, the slowest took %v; %d of %d long ones ended", l.made.Load(), l.slow, len(l.ended), len(l.long))
	if len(l.failed) > 0 {
		t.Errorf("%d of %d new connections failed:\n%v", len(l.failed), l.made.Load(), errors.Join(l.failed...))
	}
	if reset && len(l.ended) != len(l.long) {
		t.Errorf("%d of %d long connections ended, want all", len(l.ended), len(l.long))
	}
	for _, err := range l.ended {
		if !reset {
			t.Errorf("%d of %d long connections ended, one %v", len(l.ended), len(l.long), err)
			return
		}
		if !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("a long connection ended %v, want a reset", err)
			return
		}
	}
}
