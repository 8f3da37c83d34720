// SPDX-License-Identifier: Apache-2.0

package modes

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/causeway-lb/causeway/internal/proxy/backend"
	"github.com/causeway-lb/causeway/internal/proxy/ipvs"
	"github.com/causeway-lb/causeway/internal/proxy/model"
	"github.com/causeway-lb/causeway/internal/proxy/nstest"
)

func TestMain(m *testing.M) { nstest.Main(m) }

const frontend, endpoint = "10.96.0.10:80", "10.244.1.2:8080"

// Every change of modes: while it happens and after, connections that were
// open go on and new ones succeed; in the end only the new mode's objects are
// there.
func TestChangeModes(t *testing.T) {
	nstest.Require(t, "ip", "iptables-restore", "ip6tables-restore")
	client := newNetwork(t)
	kinds := Kinds(Configs{IPVS: ipvs.Config{DrainInterval: 50 * time.Millisecond}})
	tried := []Mode{NFTables, IPTables, IPVS}
	probe, err := kinds[IPVS].Open()
	var lacks *backend.UnsupportedError
	switch {
	case errors.As(err, &lacks) && !nstest.InVM():
		nstest.AlsoInVM(t) // for the changes with ipvs
		tried = tried[:2]
	case err != nil:
		t.Fatal(err)
	default:
		probe.Close()
	}
	for _, from := range tried {
		for _, to := range tried {
			if from == to {
				continue
			}
			t.Run(fmt.Sprintf("%s to %s", from, to), func(t *testing.T) { change(t, client, kinds, from, to) })
		}
	}
}

func change(t *testing.T, client *nstest.NS, kinds map[Mode]Kind, from, to Mode) {
	old := inUse(t, kinds, from)
	long := dial(t, client)
	long.echo(t, "before")
	stop, failed := load(client)
	if err := old.Close(); err != nil {
		t.Fatal(err)
	}
	next := inUse(t, kinds, to)
	long.echo(t, "after the change")
	dial(t, client).close()
	for range 3 {
		mustSync(t, next)
		long.echo(t, "later")
	}
	stop <- struct{}{}
	if n := <-failed; n != nil {
		t.Errorf("new connections during the change: %v", n)
	}
	long.close()
	deadline := time.Now().Add(30 * time.Second)
	for len(next.Remaining()) > 0 {
		if time.Now().After(deadline) {
			t.Fatalf("objects of %v are still there", next.Remaining())
		}
		mustSync(t, next)
		time.Sleep(20 * time.Millisecond)
	}
	if ask := kinds[from].Present; ask != nil {
		if present, err := ask(); present || err != nil {
			t.Errorf("objects of %s present: %v, error %v", from, present, err)
		}
	}
	dial(t, client).close()
	if err := next.Cleanup(t.Context()); err != nil {
		t.Error(err)
	}
	if err := next.Close(); err != nil {
		t.Error(err)
	}
}

func inUse(t *testing.T, kinds map[Mode]Kind, mode Mode) *Chooser {
	t.Helper()
	c, err := New(Config{Mode: mode, Kinds: kinds})
	if err != nil {
		t.Fatal(err)
	}
	mustSync(t, c)
	if c.Name() != string(mode) {
		t.Fatalf("mode %s in use, want %s", c.Name(), mode)
	}
	return c
}

func mustSync(t *testing.T, c *Chooser) {
	t.Helper()
	target := &model.Target{Endpoints: []model.Endpoint{{AddrPort: netip.MustParseAddrPort(endpoint), Local: true, Weight: 1}}}
	at := netip.MustParseAddrPort(frontend)
	svc := &model.Service{
		Name: types.NamespacedName{Namespace: "default", Name: "web"},
		Frontends: []model.Frontend{{
			Key: model.Key{Addr: at.Addr(), Port: at.Port(), Protocol: model.TCP}, Inside: target, Outside: target,
		}},
	}
	d := model.Desired{
		Node:     model.Node{Name: "node-1", PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24")}},
		Services: map[types.NamespacedName]*model.Service{svc.Name: svc},
	}
	if _, err := c.Sync(t.Context(), d, nil); err != nil {
		t.Fatal(err)
	}
}

// newNetwork makes the test's namespace a node between a client and a Pod that
// echoes lines.
func newNetwork(t *testing.T) *nstest.NS {
	t.Helper()
	node, client, pod := nstest.Self(t), nstest.NewNS(t), nstest.NewNS(t)
	nstest.Cable(t, node, "eth0", client, "eth0")
	nstest.Cable(t, node, "pod", pod, "eth0")
	prefix := netip.MustParsePrefix
	node.Address(t, "eth0", prefix("192.0.2.11/24"))
	client.Address(t, "eth0", prefix("192.0.2.100/24"))
	node.Address(t, "pod", prefix("10.244.1.1/24"))
	pod.Address(t, "eth0", prefix("10.244.1.2/24"))
	client.Route(t, prefix("10.96.0.0/16"), netip.MustParseAddr("192.0.2.11"), "eth0")
	pod.Route(t, prefix("0.0.0.0/0"), netip.MustParseAddr("10.244.1.1"), "eth0")
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o644); err != nil {
		t.Fatal(err)
	}
	var listener net.Listener
	pod.Must(t, func() error {
		var err error
		listener, err = net.Listen("tcp4", endpoint)
		return err
	})
	t.Cleanup(func() { listener.Close() })
	go serve(listener)
	return client
}

func serve(listener net.Listener) {
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

const patience = 10 * time.Second

func open(client *nstest.NS) (*connection, error) {
	var conn net.Conn
	err := client.Do(func() (err error) {
		conn, err = net.DialTimeout("tcp4", frontend, patience)
		return err
	})
	if err != nil {
		return nil, err
	}
	return &connection{conn, bufio.NewReader(conn)}, nil
}

func dial(t *testing.T, client *nstest.NS) *connection {
	t.Helper()
	c, err := open(client)
	if err != nil {
		t.Fatal(err)
	}
	c.echo(t, "hello")
	return c
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

func (c *connection) echo(t *testing.T, text string) {
	t.Helper()
	if err := c.say(text); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
}

func (c *connection) close() { _ = c.Close() }

// load opens connections one after the other until stop; failed then gives the
// failures, nil if there were none.
func load(client *nstest.NS) (stop chan struct{}, failed chan error) {
	stop, failed = make(chan struct{}), make(chan error, 1)
	go func() {
		var errs []error
		for n := 0; ; n++ {
			select {
			case <-stop:
				if n == 0 {
					errs = append(errs, errors.New("not one was made"))
				}
				failed <- errors.Join(errs...)
				return
			default:
			}
			c, err := open(client)
			if err == nil {
				err = c.say("short")
				c.close()
			}
			if err != nil {
				errs = append(errs, fmt.Errorf("connection %d: %w", n, err))
			}
			time.Sleep(2 * time.Millisecond)
		}
	}()
	return stop, failed
}
