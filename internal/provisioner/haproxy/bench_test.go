// SPDX-License-Identifier: Apache-2.0

package haproxy

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/causeway-lb/causeway/internal/alloc"
	"github.com/causeway-lb/causeway/internal/provisioner"
	"github.com/causeway-lb/causeway/internal/testkit"
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
		// Nothing here tries to connect to a server for longer.
		deleteAfter: time.Second,
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
	testkit.Eventually(t, patience, "HAProxy answers", func() error {
		_, err := b.config.Runtime.Do(t.Context(), "show info")
		return err
	})
}

func (b *bench) kill() {
	_ = b.cmd.Process.Kill()
	_ = b.cmd.Wait()
}

// patience is how long HAProxy may take to do as it is told.
const patience = 15 * time.Second

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

// testNodePort is where fake nodes answer.
var testNodePort = basePort() + 20

// serve gives a Service with one port an address, and serves it there.
func (b *bench) serve(t *testing.T, p *Provisioner, nodes []provisioner.Node, change func(*provisioner.Desired)) (netip.Addr, provisioner.Result) {
	t.Helper()
	req := provisioner.Request{
		Owner: alloc.Owner{Namespace: "ns", Name: "web", UID: "1"}, Families: []corev1.IPFamily{corev1.IPv4Protocol},
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
