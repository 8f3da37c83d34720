// SPDX-License-Identifier: Apache-2.0

package ipvs

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/types"

	"github.com/causeway-lb/causeway/internal/netlink/ipvs"
	"github.com/causeway-lb/causeway/internal/proxy/model"
	"github.com/causeway-lb/causeway/internal/testkit/backendtest"
	"github.com/causeway-lb/causeway/internal/testkit/nstest"
)

// network is a client, the node under test, which is the test's own namespace,
// and two Pods on it that say their names.
type network struct {
	node, client *nstest.NS
}

const (
	nodeIP, clientIP    = "198.51.100.11", "198.51.100.100"
	addrA, addrB        = "10.9.1.2:8080", "10.9.1.3:8080"
	elsewhere           = "10.9.2.2:8080" // nobody has it
	clusterIP, nodePort = "10.96.9.1", 30080
	patience            = 10 * time.Second
)

func newNetwork(t *testing.T) *network {
	t.Helper()
	nstest.Require(t, "ip")
	n := &network{node: nstest.Self(t), client: nstest.NewNS(t)}
	prefix := netip.MustParsePrefix
	nstest.Cable(t, n.node, "ipvs-lan", n.client, "eth0")
	n.node.Address(t, "ipvs-lan", prefix(nodeIP+"/24"))
	n.client.Address(t, "eth0", prefix(clientIP+"/24"))
	n.client.Route(t, prefix("10.96.9.0/24"), netip.MustParseAddr(nodeIP), "eth0")
	for name, at := range map[string]string{"A": addrA, "B": addrB} {
		pod, addr := nstest.NewNS(t), netip.MustParseAddrPort(at).Addr()
		cable := "ipvs-" + strings.ToLower(name)
		nstest.Cable(t, n.node, cable, pod, "eth0")
		gateway := netip.MustParseAddr("169.254.1.1")
		pod.Address(t, "eth0", netip.PrefixFrom(addr, 32))
		n.node.Address(t, cable, netip.PrefixFrom(gateway, 32))
		n.node.Route(t, netip.PrefixFrom(addr, 32), netip.Addr{}, cable)
		pod.Route(t, netip.PrefixFrom(gateway, 32), netip.Addr{}, "eth0")
		pod.Route(t, prefix("0.0.0.0/0"), gateway, "eth0")
		serve(t, pod, name)
	}
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o644); err != nil {
		t.Fatal(err)
	}
	return n
}

// serve greets TCP and UDP clients with its name and the source that it sees.
// Over TCP it then echoes lines; "bye" has it close first.
func serve(t *testing.T, pod *nstest.NS, name string) {
	t.Helper()
	var l net.Listener
	var u net.PacketConn
	pod.Must(t, func() (err error) {
		if l, err = net.Listen("tcp4", ":8080"); err == nil {
			u, err = net.ListenPacket("udp4", ":8080")
		}
		return err
	})
	t.Cleanup(func() { _ = u.Close() })
	go func() {
		buf := make([]byte, 64)
		for {
			_, from, err := u.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = u.WriteTo([]byte(name), from)
		}
	}()
	nstest.Serve(t, l, func(c *net.TCPConn) {
		from, _, _ := net.SplitHostPort(c.RemoteAddr().String())
		fmt.Fprintln(c, name, from)
		for lines := bufio.NewScanner(c); lines.Scan() && lines.Text() != "bye"; {
			fmt.Fprintln(c, lines.Text())
		}
	})
}

// session is a connection through a Service.
type session struct {
	net.Conn
	in *bufio.Reader
	// who answered, and the source that it saw.
	who, source string
}

// dial connects from a port of the client, 0 for any.
func (n *network) dial(to string, port int, patience time.Duration) (*session, error) {
	var c net.Conn
	err := n.client.Do(func() (err error) {
		d := net.Dialer{LocalAddr: &net.TCPAddr{Port: port}, FallbackDelay: -1, Control: reuseAddress}
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		c, err = d.DialContext(ctx, "tcp4", to)
		return err
	})
	if err != nil {
		return nil, err
	}
	s := &session{Conn: c, in: bufio.NewReader(c)}
	_ = c.SetDeadline(time.Now().Add(patience))
	greeting, err := s.in.ReadString('\n')
	if err != nil {
		_ = c.Close()
		return nil, err
	}
	_, err = fmt.Sscan(greeting, &s.who, &s.source)
	return s, err
}

func reuseAddress(_, _ string, raw syscall.RawConn) (err error) {
	return raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) })
}

func (n *network) mustDial(t *testing.T, to string, port int) *session {
	t.Helper()
	s, err := n.dial(to, port, patience)
	if err != nil {
		t.Fatalf("dial %s from port %d: %v", to, port, err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// echo says a line and wants it back.
func (s *session) echo() error {
	_ = s.SetDeadline(time.Now().Add(patience))
	if _, err := fmt.Fprintln(s, "hello"); err != nil {
		return err
	}
	_, err := s.in.ReadString('\n')
	return err
}

// bye has the server close first, so that the client can use its port again at
// once, and IPVS remembers the connection for two minutes.
func (s *session) bye(t *testing.T) {
	t.Helper()
	_ = s.SetDeadline(time.Now().Add(patience))
	if _, err := fmt.Fprintln(s, "bye"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, s.in); err != nil {
		t.Fatal(err)
	}
	_ = s.Close()
}

// retransmitted counts the segments that had to be sent again, the first one
// among them.
func (s *session) retransmitted(t *testing.T) (n uint32) {
	t.Helper()
	raw, err := s.Conn.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	_ = raw.Control(func(fd uintptr) {
		var info *unix.TCPInfo
		if info, err = unix.GetsockoptTCPInfo(int(fd), unix.SOL_TCP, unix.TCP_INFO); err == nil {
			n = info.Total_retrans
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

var webName = types.NamespacedName{Namespace: "default", Name: "web"}

// web is a Service with a ClusterIP and a NodePort.
func web(p model.Protocol, inside, outside *model.Target) *model.Service {
	return &model.Service{Name: webName, Frontends: []model.Frontend{
		{Key: model.Key{Addr: netip.MustParseAddr(clusterIP), Port: 80, Protocol: p}, Kind: model.ClusterIP, Inside: inside, Outside: inside},
		{Key: model.Key{Addr: netip.IPv4Unspecified(), Port: nodePort, Protocol: p}, Kind: model.NodePort, Inside: inside, Outside: outside},
	}}
}

// target has endpoints "address:port" or "address:port=weight".
func target(endpoints ...string) *model.Target {
	t := &model.Target{Action: model.Reject}
	for _, e := range endpoints {
		at, weight, _ := strings.Cut(e, "=")
		ep := model.Endpoint{AddrPort: netip.MustParseAddrPort(at), Weight: 1, Local: at != elsewhere}
		if weight != "" {
			_, _ = fmt.Sscan(weight, &ep.Weight)
		}
		t.Action, t.Endpoints = model.Forward, append(t.Endpoints, ep)
	}
	return t
}

// apply syncs one Service, as a change.
func apply(t *testing.T, b *Backend, svc *model.Service) {
	t.Helper()
	d := model.Desired{
		Node:     model.Node{PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.9.1.0/24")}},
		Services: map[types.NamespacedName]*model.Service{svc.Name: svc},
	}
	if _, err := backendtest.Sync(t.Context(), b, d, []types.NamespacedName{svc.Name}); err != nil {
		t.Fatal(err)
	}
}

// remove syncs that the Service has gone.
func remove(t *testing.T, b *Backend) {
	t.Helper()
	if _, err := backendtest.Sync(t.Context(), b, model.Desired{Node: b.node}, []types.NamespacedName{webName}); err != nil {
		t.Fatal(err)
	}
}

// reals are the real servers of the ClusterIP's virtual server in the kernel,
// by address and with their weights.
func reals(t *testing.T, b *Backend, p model.Protocol) map[string]uint32 {
	t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	list, err := b.servers.ReadReals(ipvs.Key{Addr: netip.MustParseAddr(clusterIP), Port: 80, Protocol: uint8(p)})
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]uint32{}
	for _, r := range list {
		out[r.String()] = r.Weight
	}
	return out
}
