// SPDX-License-Identifier: Apache-2.0

package haproxy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/causeway-lb/causeway/internal/alloc"
	"github.com/causeway-lb/causeway/internal/provisioner"
	"github.com/causeway-lb/causeway/internal/provisioner/conformance"
)

// Each test has its own /28 of the loopback network for HAProxy and its nodes,
// so that nothing leaves the machine and tests do not meet.
var network atomic.Uint32

// bench is an HAProxy, running, and addresses for nodes.
type bench struct {
	config               Config
	net                  uint32
	binary, file, socket string
	cmd                  *exec.Cmd
}

func newBench(t *testing.T) *bench {
	t.Helper()
	binary, err := exec.LookPath("haproxy")
	if err != nil {
		if os.Getenv("REQUIRE_KERNEL") == "1" {
			t.Fatal("haproxy is not installed: apt-get install haproxy")
		}
		t.Skip("haproxy is not installed: apt-get install haproxy")
	}
	dir, err := os.MkdirTemp("", "ha") // t.TempDir's names are too long for a Unix socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	b := &bench{net: network.Add(1), binary: binary, file: filepath.Join(dir, "haproxy.cfg"), socket: filepath.Join(dir, "admin.sock")}
	base := basePort()
	b.config = Config{
		Class: "example.com/haproxy", MapFile: filepath.Join(dir, "causeway.map"), Slots: 12,
		Addresses: []netip.Addr{b.addr(1), b.addr(2), b.addr(3), b.addr(4)},
		Ports:     []alloc.PortRange{{First: base, Last: base + 9}},
		Runtime:   Socket{Network: "unix", Address: b.socket},
	}
	for file, text := range map[string]string{b.file: b.config.Render(Socket{Network: "unix", Address: b.socket}), b.config.MapFile: ""} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	b.run(t)
	t.Cleanup(b.kill)
	return b
}

func (b *bench) addr(n byte) netip.Addr { return netip.AddrFrom4([4]byte{127, 77, byte(b.net), n}) }

// port is the i-th that HAProxy is bound to.
func (b *bench) port(i uint16) uint16 { return b.config.Ports[0].First + i }

// run starts HAProxy and waits until its runtime interface answers.
func (b *bench) run(t *testing.T) {
	t.Helper()
	var out bytes.Buffer
	b.cmd = exec.Command(b.binary, "-db", "-f", b.file)
	b.cmd.Stdout, b.cmd.Stderr = &out, &out
	b.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := b.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "HAProxy answers", func() error {
		_, err := b.config.Runtime.Do(t.Context(), "show info")
		return err
	})
}

func (b *bench) kill() {
	_ = b.cmd.Process.Kill()
	_ = b.cmd.Wait()
}

// eventually waits for something to come true.
func eventually(t *testing.T, what string, check func() error) {
	t.Helper()
	var err error
	for deadline := time.Now().Add(15 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if err = check(); err == nil {
			return
		}
	}
	t.Fatalf("%s: %v", what, err)
}

func TestConformance(t *testing.T) {
	base := basePort()
	at := func(n byte) netip.Addr { return netip.AddrFrom4([4]byte{127, 77, 1, n}) }
	conformance.Run(t, conformance.Subject{
		Setup: func(t *testing.T) func(*testing.T, *conformance.Cluster) provisioner.Provisioner {
			network.Store(0) // one HAProxy at a time: every case has the same addresses
			config := newBench(t).config
			return func(t *testing.T, c *conformance.Cluster) provisioner.Provisioner {
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

// basePort is the first of this process's ports for HAProxy, so that two test
// runs on one machine do not meet.
func basePort() uint16 { return 20000 + uint16(os.Getpid()%200)*50 }

func start(t *testing.T, c Config) *Provisioner {
	t.Helper()
	p, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// node is a fake node: it answers at a NodePort with its name.
func (b *bench) node(t *testing.T, name string, n byte, nodePort uint16) provisioner.Node {
	t.Helper()
	b.listen(t, b.addr(n), nodePort, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, name) })
	return provisioner.Node{Name: name, Addresses: []netip.Addr{b.addr(n)}, ReadyEndpoints: 1}
}

func (b *bench) listen(t *testing.T, a netip.Addr, port uint16, handler http.HandlerFunc) {
	t.Helper()
	l, err := net.Listen("tcp", netip.AddrPortFrom(a, port).String())
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: handler, ReadHeaderTimeout: time.Second}
	done := make(chan struct{})
	go func() { defer close(done); _ = server.Serve(l) }()
	t.Cleanup(func() { _ = server.Close(); <-done })
}

// ask makes one connection through HAProxy.
func ask(t *testing.T, a netip.Addr, port uint16) (string, error) {
	client := &http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+netip.AddrPortFrom(a, port).String(), nil)
	if err != nil {
		return "", err
	}
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return string(body), err
}

// answers are the nodes that answer n connections.
func answers(t *testing.T, a netip.Addr, port uint16, n int) map[string]int {
	out := map[string]int{}
	for range n {
		who, err := ask(t, a, port)
		if err != nil {
			who = "error"
		}
		out[who]++
	}
	return out
}

const testNodePort = 31080

// served is a Service with one port, given an address and served.
func (b *bench) serve(t *testing.T, p *Provisioner, nodes []provisioner.Node, change func(*provisioner.Desired)) (netip.Addr, provisioner.Result) {
	t.Helper()
	req := provisioner.Request{
		Owner: provisioner.Owner{Namespace: "ns", Name: "web", UID: "1"}, Families: []corev1.IPFamily{corev1.IPv4Protocol},
		Policy: corev1.IPFamilyPolicySingleStack, Ports: []provisioner.Port{{Protocol: corev1.ProtocolTCP, Port: b.port(0)}},
	}
	held, err := p.Allocate(t.Context(), req)
	if err != nil || held.Unmet != nil {
		t.Fatalf("allocate: %+v, %v", held, err)
	}
	want := provisioner.Desired{
		Owner: req.Owner, Addresses: held.Addresses, Nodes: nodes,
		Ports: []provisioner.ServicePort{{Name: "http", Port: req.Ports[0], NodePort: testNodePort}},
	}
	if change != nil {
		change(&want)
	}
	result, err := p.Ensure(t.Context(), want)
	if err != nil {
		t.Fatalf("ensure: %v", err)
	}
	return held.Addresses[0], result
}

func TestNodesComeAndGo(t *testing.T) {
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
	eventually(t, "both nodes answer", both(2))

	_, result := b.serve(t, p, nodes[:1], nil)
	if got := answers(t, b.addr(1), b.port(0), 20); got["node-1"] != 20 {
		t.Errorf("without node-2: %v", got)
	}
	if result.Conditions[0].Status != "True" || !strings.Contains(result.Conditions[0].Message, "1 of 1 servers") {
		t.Errorf("condition: %+v", result.Conditions)
	}
	third := b.node(t, "node-3", 13, testNodePort)
	b.serve(t, p, append(nodes, third), nil)
	eventually(t, "three nodes answer", both(3))

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
		eventually(t, "the server is deleted", func() error {
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
	eventually(t, "served", answered)
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
			eventually(t, "harmed", func() error {
				if answered() == nil {
					return errors.New("it is served all the same")
				}
				return nil
			})
			if _, err := p.Runtime.Do(t.Context(), "show info"); err != nil {
				t.Fatal(err)
			}
			b.serve(t, p, nodes, nil)
			eventually(t, "repaired", answered)
		})
	}
	t.Run("strays are removed", func(t *testing.T) {
		b.do(t, "add map "+b.config.MapFile+" 127.77.0.99:1 causeway-cluster-9")
		b.do(t, "add server causeway-cluster-9/ghost 127.0.0.9:9")
		b.serve(t, p, nodes, nil)
		have, err := readState(t.Context(), p.Runtime, p.MapFile)
		if err != nil || len(have.keys) != 1 || len(have.servers["causeway-cluster-9"]) > 0 {
			t.Errorf("%+v, %v", have, err)
		}
	})
}

// backend is where the map leads the first port of the first address now.
func (b *bench) backend(t *testing.T) string {
	t.Helper()
	have, err := readState(t.Context(), b.config.Runtime, b.config.MapFile)
	if err != nil {
		t.Fatal(err)
	}
	return have.keys[netip.AddrPortFrom(b.addr(1), b.port(0)).String()]
}

func (b *bench) do(t *testing.T, command string) {
	t.Helper()
	if answer, err := b.config.Runtime.Do(t.Context(), command); err != nil {
		t.Fatalf("%s: %s, %v", command, answer, err)
	}
}

func TestPolicyLocalFollowsTheHealthCheckNodePort(t *testing.T) {
	const healthPort = 31999
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
	eventually(t, "three to one, by endpoints", func() error {
		if got := answers(t, b.addr(1), b.port(0), 40); got["node-1"] != 30 || got["node-2"] != 10 {
			return fmt.Errorf("answers: %v", got)
		}
		return nil
	})
	here.Store(false)
	eventually(t, "only the node with endpoints answers", func() error {
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
	eventually(t, "served", func() error { _, err := ask(t, b.addr(1), b.port(0)); return err })
	if err := p.Remove(t.Context(), provisioner.Owner{Namespace: "ns", Name: "web"}); err != nil {
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
	if err := p.Remove(t.Context(), provisioner.Owner{Namespace: "ns", Name: "stranger"}); err != nil {
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
		Owner: provisioner.Owner{Namespace: "ns", Name: "web", UID: "1"}, Policy: corev1.IPFamilyPolicyRequireDualStack,
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
		eventually(t, fmt.Sprintf("%s answers", a), func() error {
			if got, err := ask(t, a, b.port(0)); err != nil || got != who {
				return fmt.Errorf("got %q, %v", got, err)
			}
			return nil
		})
	}
}
