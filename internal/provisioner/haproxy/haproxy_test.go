// SPDX-License-Identifier: Apache-2.0

package haproxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/causeway-lb/causeway/internal/alloc"
	"github.com/causeway-lb/causeway/internal/provisioner"
	"github.com/causeway-lb/causeway/internal/testkit"
	"github.com/causeway-lb/causeway/internal/testkit/provisionertest"
)

func TestConformance(t *testing.T) {
	base := basePort()
	at := func(n byte) netip.Addr { return netip.AddrFrom4([4]byte{127, 77, 1, n}) }
	provisionertest.Run(t, provisionertest.Subject{
		Setup: func(t *testing.T) func(*testing.T, *provisionertest.Cluster) provisioner.Provisioner {
			network.Store(0) // one HAProxy at a time: every case has the same addresses
			config := newBench(t).config
			return func(t *testing.T, c *provisionertest.Cluster) provisioner.Provisioner {
				config.Holders = func(context.Context) ([]Holder, error) {
					var out []Holder
					for _, s := range c.Services() {
						out = append(out, Holder{Owner: s.Request.Owner, Addresses: s.Request.Current, Ports: s.Request.Ports})
					}
					return out, nil
				}
				return start(t, config)
			}
		},
		Ports: []uint16{base, base + 1, base + 2}, Family: corev1.IPv4Protocol, Spare: at(3), Outside: netip.MustParseAddr("192.0.2.1"),
		Nodes: []provisioner.Node{{Name: "node-1", Addresses: []netip.Addr{at(11)}}},
	})
}

func TestNodeChanges(t *testing.T) {
	b := newBench(t)
	p := start(t, b.config)
	nodes := []provisioner.Node{b.node(t, "node-1", 11, testNodePort), b.node(t, "node-2", 12, testNodePort)}
	both := func(n int) func() error {
		return func() error {
			if got := answers(t, b.addr(1), b.port(0), 10); len(got) != n || got["error"] > 0 {
				return fmt.Errorf("answers: %v, want of %d nodes", got, n)
			}
			return nil
		}
	}
	if a, _ := b.serve(t, p, nodes, nil); a != b.addr(1) {
		t.Fatalf("given %s, want %s", a, b.addr(1))
	}
	testkit.Eventually(t, patience, "both nodes answer", both(2))

	_, result := b.serve(t, p, nodes[:1], nil)
	if got := answers(t, b.addr(1), b.port(0), 20); got["node-1"] != 20 {
		t.Errorf("without node-2: %v", got)
	}
	if result.Conditions[0].Status != "True" || !strings.Contains(result.Conditions[0].Message, "1 of 1 servers") {
		t.Errorf("condition: %+v", result.Conditions)
	}
	third := b.node(t, "node-3", 13, testNodePort)
	b.serve(t, p, append(nodes, third), nil)
	testkit.Eventually(t, patience, "three nodes answer", both(3))

	t.Run("connections outlive the removal of their node", func(t *testing.T) {
		// A connection to each node, kept open, then all nodes but one go.
		conn, err := net.Dial("tcp", netip.AddrPortFrom(b.addr(1), b.port(0)).String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		fmt.Fprint(conn, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
		buf := make([]byte, 4096)
		n, err := conn.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		who := string(buf[n-6 : n])
		var rest []provisioner.Node
		for _, node := range append(nodes, third) {
			if node.Name != who {
				rest = append(rest, node)
			}
		}
		b.serve(t, p, rest, nil)
		if got := answers(t, b.addr(1), b.port(0), 10); got[who] > 0 || got["error"] > 0 {
			t.Errorf("new connections after %s has gone: %v", who, got)
		}
		fmt.Fprint(conn, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
		if n, err = conn.Read(buf); err != nil || string(buf[n-6:n]) != who {
			t.Errorf("the open connection: %q, %v", buf[:n], err)
		}
		_, result := b.serve(t, p, rest, nil)
		if result.RequeueAfter > settling {
			t.Errorf("comes again after %v though a connection is open", result.RequeueAfter)
		}
		conn.Close()
		testkit.Eventually(t, patience, "the server is deleted", func() error {
			_, result := b.serve(t, p, rest, nil)
			if result.RequeueAfter <= settling {
				return fmt.Errorf("still comes again after %v", result.RequeueAfter)
			}
			return nil
		})
	})
}

func TestDriftIsRepaired(t *testing.T) {
	b := newBench(t)
	p := start(t, b.config)
	nodes := []provisioner.Node{b.node(t, "node-1", 11, testNodePort)}
	answered := func() error { _, err := ask(t, b.addr(1), b.port(0)); return err }
	b.serve(t, p, nodes, nil)
	testkit.Eventually(t, patience, "served", answered)
	key := netip.AddrPortFrom(b.addr(1), b.port(0)).String()
	for name, harm := range map[string]func(t *testing.T){
		"map emptied":     func(t *testing.T) { b.do(t, "clear map "+b.config.MapFile) },
		"led elsewhere":   func(t *testing.T) { b.do(t, "set map "+b.config.MapFile+" "+key+" causeway-cluster-7") },
		"server disabled": func(t *testing.T) { b.do(t, "set server "+b.backend(t)+"/node-1 state maint") },
		"wrong address":   func(t *testing.T) { b.do(t, "set server "+b.backend(t)+"/node-1 addr 127.0.0.9 port 9") },
		"no weight":       func(t *testing.T) { b.do(t, "set server "+b.backend(t)+"/node-1 weight 0") },
		"restarted":       func(t *testing.T) { b.kill(); b.run(t) },
	} {
		t.Run(name, func(t *testing.T) {
			harm(t)
			testkit.Eventually(t, patience, "harmed", func() error {
				if answered() == nil {
					return errors.New("it is served all the same")
				}
				return nil
			})
			if _, err := p.Runtime.Do(t.Context(), "show info"); err != nil {
				t.Fatal(err)
			}
			b.serve(t, p, nodes, nil)
			testkit.Eventually(t, patience, "repaired", answered)
		})
	}
	t.Run("added and not yet checked, as a controller leaves it that dies in between", func(t *testing.T) {
		silent := provisioner.Node{Name: "node-9", Addresses: []netip.Addr{b.addr(19)}}
		b.do(t, fmt.Sprintf("add server %s/%s %s:%d %s", b.backend(t), silent.Name, b.addr(19), testNodePort, healthCheck))
		b.serve(t, p, append(nodes, silent), nil)
		testkit.Eventually(t, patience, "only the node that answers is up", func() error {
			have, err := readState(t.Context(), p.Runtime, p.MapFile)
			if err != nil {
				return err
			}
			if s := have.servers[b.backend(t)][silent.Name]; s.up || s.leaving {
				return fmt.Errorf("node-9: %+v", s)
			}
			return nil
		})
		b.serve(t, p, nodes, nil)
	})
	t.Run("strays are removed", func(t *testing.T) {
		b.do(t, "add map "+b.config.MapFile+" 127.77.0.99:1 causeway-cluster-9")
		b.do(t, "add server causeway-cluster-9/ghost 127.0.0.9:9")
		testkit.Eventually(t, patience, "the key and the server are gone", func() error {
			b.serve(t, p, nodes, nil)
			have, err := readState(t.Context(), p.Runtime, p.MapFile)
			if err != nil || len(have.keys) != 1 || len(have.servers["causeway-cluster-9"]) > 0 {
				return fmt.Errorf("%+v, %w", have, err)
			}
			return nil
		})
	})
}

func TestPolicyLocalFollowsTheHealthCheckNodePort(t *testing.T) {
	healthPort := testNodePort + 1
	b := newBench(t)
	p := start(t, b.config)
	nodes := []provisioner.Node{b.node(t, "node-1", 11, testNodePort), b.node(t, "node-2", 12, testNodePort)}
	var here atomic.Bool // whether node-2 has an endpoint
	here.Store(true)
	b.listen(t, b.addr(11), healthPort, func(http.ResponseWriter, *http.Request) {})
	b.listen(t, b.addr(12), healthPort, func(w http.ResponseWriter, _ *http.Request) {
		if !here.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})
	nodes[0].ReadyEndpoints = 3
	local := func(d *provisioner.Desired) { d.LocalPolicy, d.HealthCheckNodePort = true, healthPort }
	b.serve(t, p, nodes, local)
	testkit.Eventually(t, patience, "three to one, by endpoints", func() error {
		if got := answers(t, b.addr(1), b.port(0), 40); got["node-1"] != 30 || got["node-2"] != 10 {
			return fmt.Errorf("answers: %v", got)
		}
		return nil
	})
	here.Store(false)
	testkit.Eventually(t, patience, "only the node with endpoints answers", func() error {
		if got := answers(t, b.addr(1), b.port(0), 10); got["node-1"] != 10 {
			return fmt.Errorf("answers: %v", got)
		}
		return nil
	})
}

func TestRemoveAndPortErrors(t *testing.T) {
	b := newBench(t)
	p := start(t, b.config)
	nodes := []provisioner.Node{b.node(t, "node-1", 11, testNodePort)}
	unbound := provisioner.Port{Protocol: corev1.ProtocolTCP, Port: b.port(10)}
	unready := provisioner.Port{Protocol: corev1.ProtocolTCP, Port: b.port(0)}
	_, result := b.serve(t, p, nodes, func(d *provisioner.Desired) {
		d.Ports[0].NodePort = 0
		d.Ports = append(d.Ports, provisioner.ServicePort{Name: "far", Port: unbound, NodePort: testNodePort})
	})
	if got := result.Ingress[0].PortErrors; len(got) != 2 || got[unbound] != PortNotBound || got[unready] != NoNodePort {
		t.Errorf("errors of ports: %v", got)
	}
	b.serve(t, p, nodes, nil)
	testkit.Eventually(t, patience, "served", func() error { _, err := ask(t, b.addr(1), b.port(0)); return err })
	if err := p.Remove(t.Context(), alloc.Owner{Namespace: "ns", Name: "web"}); err != nil {
		t.Fatal(err)
	}
	if who, err := ask(t, b.addr(1), b.port(0)); err == nil {
		t.Errorf("after removal %s answers", who)
	}
}

func TestUnreachable(t *testing.T) {
	p := start(t, Config{
		Class: "c", Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1")}, Ports: []alloc.PortRange{{First: 80, Last: 80}},
		Runtime: Socket{Network: "unix", Address: filepath.Join(t.TempDir(), "nobody.sock")},
	})
	if _, err := p.Ensure(t.Context(), provisioner.Desired{}); err == nil {
		t.Error("an HAProxy that is not there is configured")
	}
	if err := p.Remove(t.Context(), alloc.Owner{Namespace: "ns", Name: "stranger"}); err != nil {
		t.Errorf("remove a stranger: %v", err)
	}
}

func TestIPv6(t *testing.T) {
	b := newBench(t)
	b.kill()
	six := netip.IPv6Loopback()
	b.config.Addresses = append(b.config.Addresses, six)
	if err := os.WriteFile(b.file, []byte(b.config.Render(Socket{Network: "unix", Address: b.socket})), 0o600); err != nil {
		t.Fatal(err)
	}
	b.run(t)
	b.listen(t, six, testNodePort, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "six") })
	nodes := []provisioner.Node{b.node(t, "node-1", 11, testNodePort)}
	nodes[0].Addresses = append(nodes[0].Addresses, six)
	p := start(t, b.config)
	req := provisioner.Request{
		Owner: alloc.Owner{Namespace: "ns", Name: "web", UID: "1"}, Policy: corev1.IPFamilyPolicyRequireDualStack,
		Families: []corev1.IPFamily{corev1.IPv6Protocol, corev1.IPv4Protocol}, Ports: []provisioner.Port{{Protocol: corev1.ProtocolTCP, Port: b.port(0)}},
	}
	held, err := p.Allocate(t.Context(), req)
	if err != nil || held.Unmet != nil || len(held.Addresses) != 2 || held.Addresses[0] != six {
		t.Fatalf("allocate: %+v, %v", held, err)
	}
	if _, err := p.Ensure(t.Context(), provisioner.Desired{
		Owner: req.Owner, Addresses: held.Addresses, Nodes: nodes,
		Ports: []provisioner.ServicePort{{Port: req.Ports[0], NodePort: testNodePort}},
	}); err != nil {
		t.Fatal(err)
	}
	for a, who := range map[netip.Addr]string{six: "six", held.Addresses[1]: "node-1"} {
		testkit.Eventually(t, patience, fmt.Sprintf("%s answers", a), func() error {
			got, err := ask(t, a, b.port(0))
			if err == nil && got != who {
				err = fmt.Errorf("%s answers, want %s", got, who)
			}
			return err
		})
	}
}
