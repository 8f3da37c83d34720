// SPDX-License-Identifier: Apache-2.0

package userspace

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"k8s.io/apimachinery/pkg/types"

	"github.com/causeway-lb/causeway/internal/proxy/model"
	"github.com/causeway-lb/causeway/internal/testkit"
	"github.com/causeway-lb/causeway/internal/testkit/backendtest"
	"github.com/causeway-lb/causeway/internal/testkit/nstest"
)

const (
	frontendAddr = "10.96.0.10"
	podA, podB   = "10.244.1.2:8080", "10.244.1.3:8080"
	patience     = 10 * time.Second
)

var web = types.NamespacedName{Namespace: "default", Name: "web"}

// desired is one Service with one frontend.
func desired(proto model.Protocol, affinity time.Duration, endpoints ...string) model.Desired {
	target := &model.Target{Affinity: affinity}
	var serving []netip.AddrPort
	for _, e := range endpoints {
		ep := netip.MustParseAddrPort(e)
		target.Endpoints = append(target.Endpoints, model.Endpoint{AddrPort: ep, Local: true, Weight: 1})
		serving = append(serving, ep)
	}
	if len(endpoints) == 0 {
		target = &model.Target{Action: model.Reject}
	}
	key := model.Key{Addr: netip.MustParseAddr(frontendAddr), Port: 80, Protocol: proto}
	svc := &model.Service{Name: web, Frontends: []model.Frontend{{Key: key, Inside: target, Outside: target, Serving: serving}}}
	return model.Desired{Services: map[types.NamespacedName]*model.Service{web: svc}}
}

// newNode gives a Backend on a node whose Pods are on its loopback interface.
func newNode(t *testing.T, cfg Config) *Backend {
	t.Helper()
	b := newTestBackend(t, cfg)
	nstest.Everywhere(t)
	for _, pod := range []string{podA, podB} {
		nstest.Loopback(t, netip.MustParseAddrPort(pod).Addr().String()+"/32")
	}
	return b
}

func mustSync(t *testing.T, b *Backend, d model.Desired, changed ...types.NamespacedName) {
	t.Helper()
	if _, err := backendtest.Sync(t.Context(), b, d, changed); err != nil {
		t.Fatal(err)
	}
}

// listen has serve take every connection at an address.
func listen(t *testing.T, at string, serve func(*net.TCPConn)) {
	t.Helper()
	l, err := net.Listen("tcp4", at)
	if err != nil {
		t.Fatal(err)
	}
	nstest.Serve(t, l, serve)
}

func dial(t *testing.T, network string) net.Conn {
	t.Helper()
	c, err := net.DialTimeout(network, frontendAddr+":80", patience)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return c
}

// mustBeReset dials; the reset may come before the dialler notices that it is
// connected.
func mustBeReset(t *testing.T, what string) {
	t.Helper()
	c, err := net.DialTimeout("tcp4", frontendAddr+":80", patience)
	if err == nil {
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(patience))
		_, err = io.ReadAll(c)
	}
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("%s: %v, want a reset", what, err)
	}
}

func readAll(t *testing.T, c io.Reader) string {
	t.Helper()
	b, err := io.ReadAll(c)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// Each direction carries all of its bytes and ends alone.
func TestHalfClose(t *testing.T) {
	b := newNode(t, Config{})
	sent := make([]byte, 8<<20)
	for i := range sent {
		sent[i] = byte(rand.Uint32())
	}
	got := make(chan []byte, 1)
	listen(t, podA, func(c *net.TCPConn) {
		all, _ := io.ReadAll(c) // ends by the client's half-close only
		got <- all
		_, _ = c.Write(all)
	})
	mustSync(t, b, desired(model.TCP, 0, podA))
	c := dial(t, "tcp4").(*net.TCPConn)
	if _, err := c.Write(sent); err != nil {
		t.Fatal(err)
	}
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(sent, <-got) {
		t.Error("the endpoint got other bytes than were sent")
	}
	if readAll(t, c) != string(sent) {
		t.Error("the client got other bytes than were sent")
	}
}

// A reset, unlike an end, reaches the other side as one.
func TestResetIsPassedOn(t *testing.T) {
	b := newNode(t, Config{})
	listen(t, podA, func(c *net.TCPConn) {
		_, _ = io.WriteString(c, "half of it")
		_, _ = c.Read(make([]byte, 1))
		_ = c.SetLinger(0)
	})
	mustSync(t, b, desired(model.TCP, 0, podA))
	c := dial(t, "tcp4")
	if _, err := io.WriteString(c, "?"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(c); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("read ended with %v, want a reset", err)
	}
}

func TestRoundRobinFollowsWeights(t *testing.T) {
	b := newNode(t, Config{})
	listen(t, podA, nstest.Say("A"))
	listen(t, podB, nstest.Say("B"))
	d := desired(model.TCP, 0, podA, podB)
	d.Services[web].Frontends[0].Inside.Endpoints[0].Weight = 3
	mustSync(t, b, d)
	var order strings.Builder
	for range 8 {
		order.WriteString(readAll(t, dial(t, "tcp4")))
	}
	if a := strings.Count(order.String(), "A"); a != 6 || strings.Contains(order.String(), "BB") {
		t.Errorf("order %s, want A three times as often as B, interleaved", &order)
	}
}

// An endpoint that refuses costs no connection while another one answers.
func TestRefusingEndpointIsPassedOver(t *testing.T) {
	b := newNode(t, Config{})
	listen(t, podB, nstest.Say("B"))
	mustSync(t, b, desired(model.TCP, 0, podA, podB))
	for range 4 {
		if got := readAll(t, dial(t, "tcp4")); got != "B" {
			t.Fatalf("got %q, want B", got)
		}
	}
	mustSync(t, b, desired(model.TCP, 0, podA), web)
	mustBeReset(t, "with no endpoint that answers")
}

// Connections that are open go on when their endpoint, and even their
// frontend, is no longer for new ones.
func TestConnectionsOutliveTheirEndpoint(t *testing.T) {
	b := newNode(t, Config{})
	listen(t, podA, func(c *net.TCPConn) { _, _ = io.Copy(c, c) })
	listen(t, podB, nstest.Say("B"))
	mustSync(t, b, desired(model.TCP, 0, podA))
	c := dial(t, "tcp4")
	echo := func(when string) {
		t.Helper()
		buf := make([]byte, 5)
		if _, err := io.WriteString(c, "hello"); err != nil {
			t.Fatalf("%s: %v", when, err)
		}
		if _, err := io.ReadFull(c, buf); err != nil || string(buf) != "hello" {
			t.Fatalf("%s: %q, %v", when, buf, err)
		}
	}
	echo("at first")
	mustSync(t, b, desired(model.TCP, 0, podB), web)
	echo("without its endpoint")
	if got := readAll(t, dial(t, "tcp4")); got != "B" {
		t.Errorf("a new connection got %q, want B", got)
	}
	mustSync(t, b, desired(model.TCP, 0), web)
	echo("without any endpoint")
	if _, err := net.DialTimeout("tcp4", frontendAddr+":80", patience); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("a new connection: %v, want it refused", err)
	}
}

// With ResetTCP connections end whose endpoint is gone, whose client is not admitted
// any more, or whose Service is gone; those of others go on, as does what another
// Service takes over.
func TestResetTCP(t *testing.T) {
	restricted := func(to string) model.Desired {
		d := desired(model.TCP, 0, podA, podB)
		f := &d.Services[web].Frontends[0]
		f.Restricted, f.SourceRanges = true, []netip.Prefix{netip.MustParsePrefix(to)}
		return d
	}
	handed := desired(model.TCP, 0, podA)
	other := *handed.Services[web]
	other.Name.Name = "other"
	handed.Services = map[types.NamespacedName]*model.Service{other.Name: &other}
	for _, tc := range []struct {
		name  string
		reset bool
		after model.Desired
		ends  bool
	}{
		{"its endpoint stays", true, desired(model.TCP, 0, podA, podB), false},
		{"its endpoint is gone", true, desired(model.TCP, 0, podB), true},
		{"its client is excluded", true, restricted("203.0.113.0/24"), true},
		{"its client is excluded, and is not to be reset", false, restricted("203.0.113.0/24"), false},
		{"its Service is gone, and its clients are not to be reset", false, model.Desired{}, false},
		{"its client is admitted", true, restricted("0.0.0.0/1"), false},
		{"its Service is gone", true, model.Desired{}, true},
		{"another Service has the frontend", true, handed, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := newNode(t, Config{ResetTCP: tc.reset})
			listen(t, podA, func(c *net.TCPConn) { _, _ = io.Copy(c, c) })
			mustSync(t, b, desired(model.TCP, 0, podA))
			c := dial(t, "tcp4")
			echo := func() error {
				_, err := io.WriteString(c, "x")
				if err == nil {
					_, err = io.ReadFull(c, make([]byte, 1))
				}
				return err
			}
			if err := echo(); err != nil {
				t.Fatal(err)
			}
			mustSync(t, b, tc.after, web, other.Name)
			err := echo()
			for tc.ends && err == nil { // a Service that is gone may be made again
				err = echo()
			}
			if tc.ends != errors.Is(err, syscall.ECONNRESET) || !tc.ends && err != nil {
				t.Errorf("%v, ends %v", err, tc.ends)
			}
		})
	}
}

// A Service that is deleted, and made again at once, has its flows back, under whatever
// name; those of one that stays away end.
func TestFlowsOutliveAServiceThatIsMadeAgain(t *testing.T) {
	b := newNode(t, Config{UDPTimeout: time.Hour, ResetTCP: true})
	serveUDP(t, podA, "A")
	serveUDP(t, podB, "B")
	listen(t, podA, func(c *net.TCPConn) { _, _ = io.Copy(c, c) })
	both := func(name string) model.Desired {
		d := desired(model.UDP, 0, podA, podB)
		svc := *d.Services[web]
		svc.Name.Name = name
		svc.Frontends = append(svc.Frontends, desired(model.TCP, 0, podA).Services[web].Frontends...)
		return model.Desired{Services: map[types.NamespacedName]*model.Service{svc.Name: &svc}}
	}
	other := types.NamespacedName{Namespace: web.Namespace, Name: "other"}
	mustSync(t, b, both(web.Name))
	var flows []net.Conn
	var homes []string
	for range 12 {
		c := dial(t, "udp4")
		flows, homes = append(flows, c), append(homes, ask(t, c, ""))
	}
	long := dial(t, "tcp4")
	echo := func() error {
		_, err := io.WriteString(long, "x")
		if err == nil {
			_, err = io.ReadFull(long, make([]byte, 1))
		}
		return err
	}
	if err := echo(); err != nil {
		t.Fatal(err)
	}
	for _, name := range []types.NamespacedName{web, other, web} {
		mustSync(t, b, model.Desired{}, web, other)
		mustSync(t, b, both(name.Name), name)
		for i, c := range flows {
			if got := ask(t, c, ""); got != homes[i] {
				t.Errorf("a flow went to %s, want %s", got, homes[i])
			}
		}
		if err := echo(); err != nil {
			t.Errorf("the TCP connection: %v", err)
		}
	}
	mustSync(t, b, model.Desired{}, web)
	noneInUse(t, b, "descriptors of a Service that is gone for good")
}

// A client keeps its endpoint for the time-out, counted from its last connection.
func TestAffinityEnds(t *testing.T) {
	f := &frontend{clients: &clients{}}
	m := desired(model.TCP, time.Minute, podA, podB).Services[web].Frontends[0]
	f.set(web, &m, false)
	client := netip.MustParseAddr("192.0.2.1")
	now := time.Now()
	pick := func(c netip.Addr) netip.AddrPort {
		t.Helper()
		ep, ok := f.pick(viewInside, c, nil, now)
		if !ok {
			t.Fatal("no endpoint")
		}
		return ep
	}
	home := pick(client)
	for range 5 {
		now = now.Add(59 * time.Second)
		if got := pick(client); got != home {
			t.Fatalf("led to %s within the time-out, want %s", got, home)
		}
	}
	now = now.Add(61 * time.Second)
	if got := pick(client); got == home {
		t.Errorf("still led to %s, whose turn it is not", home)
	}
	// What an endpoint's end leaves behind is replaced.
	gone := desired(model.TCP, time.Minute, podB).Services[web].Frontends[0]
	f.set(web, &gone, false)
	if got := pick(client); got.String() != podB {
		t.Errorf("led to %s, want %s, the only one", got, podB)
	}
	f.set(web, &m, false)
	if got := pick(client); got.String() != podB {
		t.Errorf("led to %s, want %s, which it now has", got, podB)
	}
}

// What is remembered of clients is bounded, and those used last stay.
func TestAffinityIsBounded(t *testing.T) {
	f := &frontend{clients: &clients{}}
	m := desired(model.TCP, time.Hour, podA, podB).Services[web].Frontends[0]
	f.set(web, &m, false)
	now := time.Now()
	client := netip.MustParseAddr("10.0.0.0")
	for range maxClients + 1000 {
		client = client.Next()
		now = now.Add(time.Millisecond)
		f.pick(viewInside, client, nil, now)
	}
	if len(f.clients.of) > maxClients {
		t.Errorf("%d clients remembered, want at most %d", len(f.clients.of), maxClients)
	}
	if _, ok := f.clients.of[client]; !ok {
		t.Error("the last client is forgotten")
	}
}

func serveUDP(t *testing.T, at, name string) net.PacketConn {
	t.Helper()
	c, err := net.ListenPacket("udp4", at)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	go func() {
		buf := make([]byte, maxDatagram)
		for {
			n, from, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = c.WriteTo(append([]byte(name), buf[:n]...), from)
		}
	}()
	return c
}

// ask sends until there is an answer.
func ask(t *testing.T, c net.Conn, text string) string {
	t.Helper()
	buf := make([]byte, maxDatagram)
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		_ = c.SetDeadline(time.Now().Add(500 * time.Millisecond))
		if _, err := io.WriteString(c, text); err != nil && !errors.Is(err, syscall.ECONNREFUSED) {
			t.Fatal(err)
		}
		if n, err := c.Read(buf); err == nil {
			return string(buf[:n])
		}
	}
	t.Fatal("no answer")
	return ""
}

// A flow stays with its endpoint as long as that serves, and is idle no longer
// than the time-out; large datagrams pass whole.
func TestUDPFlows(t *testing.T) {
	b := newNode(t, Config{UDPTimeout: 300 * time.Millisecond})
	serveUDP(t, podA, "A")
	serveUDP(t, podB, "B")
	mustSync(t, b, desired(model.UDP, 0, podA, podB))
	c := dial(t, "udp4")
	home := ask(t, c, "")
	for range 5 {
		if got := ask(t, c, ""); got != home {
			t.Fatalf("the flow went to %s, want %s", got, home)
		}
	}
	large := strings.Repeat("x", 20000)
	if got := ask(t, c, large); got != home+large {
		t.Errorf("%d bytes came back, want %d", len(got), len(large)+1)
	}
	away := map[string]string{"A": podB, "B": podA}[home]
	mustSync(t, b, desired(model.UDP, 0, away), web)
	if got := ask(t, c, ""); got == home {
		t.Errorf("the flow is still led to %s, which is gone", home)
	}
	noneInUse(t, b, "flows after the idle timeout")
}

// noneInUse waits until the backend's budget is free again.
func noneInUse(t *testing.T, b *Backend, what string) {
	t.Helper()
	testkit.Eventually(t, patience, "no "+what, func() error {
		if n := b.budget.used.Load(); n > 0 {
			return fmt.Errorf("%d are in use", n)
		}
		return nil
	})
}

// A process of the node may listen on all addresses at a Service's port, before
// and after the Service, for TCP and UDP.
func TestNodeMayListenAtTheSamePort(t *testing.T) {
	b := newNode(t, Config{})
	listen(t, "0.0.0.0:80", nstest.Say("node"))
	listen(t, podA, nstest.Say("A"))
	serveUDP(t, podA, "A")
	mustSync(t, b, desired(model.TCP, 0, podA))
	if got := readAll(t, dial(t, "tcp4")); got != "A" {
		t.Errorf("the Service answers %q, want A", got)
	}
	mustSync(t, b, desired(model.UDP, 0, podA), web)
	flow := dial(t, "udp4")
	if got := ask(t, flow, ""); got != "A" {
		t.Errorf("the Service answers %q, want A", got)
	}
	serveUDP(t, "0.0.0.0:80", "node")
	if got := ask(t, flow, ""); got != "A" {
		t.Errorf("beside the node's server the Service answers %q, want A", got)
	}
}

// Past the limit, connections are refused, the Service has a problem that says
// what to do, and others go on.
func TestDescriptorLimit(t *testing.T) {
	b := newNode(t, Config{MaxDescriptors: 2*costTCP + 1})
	listen(t, podA, func(c *net.TCPConn) { _, _ = io.Copy(c, c) })
	serveUDP(t, podB, "B")
	d := desired(model.TCP, 0, podA)
	other := desired(model.UDP, 0, podB).Services[web]
	other.Name.Name = "dns"
	d.Services[other.Name] = other
	told := make(chan struct{}, 10)
	b.setNotify(func() { told <- struct{}{} })
	mustSync(t, b, d)
	var open []net.Conn
	for range 2 {
		c := dial(t, "tcp4")
		if _, err := io.WriteString(c, "x"); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		open = append(open, c)
	}
	mustBeReset(t, "a connection too many")
	<-told
	report, err := backendtest.Sync(t.Context(), b, d, nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(report.Problems) != 1 || report.Problems[0].Service != web || report.Problems[0].Reason != "ConnectionLimit" {
		t.Errorf("problems %v, want ConnectionLimit of %s", report.Problems, web)
	}
	if got := ask(t, dial(t, "udp4"), ""); got != "B" {
		t.Errorf("another Service answers %q, want B", got)
	}
	_ = open[0].Close()
	testkit.EventuallyTrue(t, patience, "room for one more", func() bool { return b.budget.used.Load() <= costTCP+1 })
	c := dial(t, "tcp4")
	if _, err := io.WriteString(c, "x"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Errorf("after one has ended: %v", err)
	}
}

// SCTP is refused with a reason; the Service's other ports work.
func TestSCTPIsAProblem(t *testing.T) {
	b := newNode(t, Config{})
	listen(t, podA, nstest.Say("A"))
	d := desired(model.TCP, 0, podA)
	svc := d.Services[web]
	sctp := svc.Frontends[0]
	sctp.Protocol = model.SCTP
	svc.Frontends = append(svc.Frontends, sctp)
	for _, changed := range [][]types.NamespacedName{nil, {web}} {
		again := *svc // a Service that changes is another one
		d.Services[web] = &again
		report, err := backendtest.Sync(t.Context(), b, d, changed)
		if err != nil {
			t.Fatal(err)
		}
		if len(report.Problems) != 1 || report.Problems[0].Reason != "ProtocolUnsupported" || !strings.Contains(report.Problems[0].Message, "80/SCTP") {
			t.Errorf("problems %v, want ProtocolUnsupported of 80/SCTP", report.Problems)
		}
	}
	if got := readAll(t, dial(t, "tcp4")); got != "A" {
		t.Errorf("TCP answers %q, want A", got)
	}
}

// When the proxy ends, its connections are reset: nobody takes half an answer
// for a whole one. Whoever connects before the next one listens gets through to
// it, and is not refused.
func TestRestart(t *testing.T) {
	b := newNode(t, Config{})
	listen(t, podA, func(c *net.TCPConn) { _, _ = io.Copy(c, c) })
	mustSync(t, b, desired(model.TCP, 0, podA))
	first := dial(t, "tcp4")
	if _, err := io.WriteString(first, "half"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(first, make([]byte, 4)); err != nil {
		t.Fatal(err)
	}
	// b is closed by the test's end; this does to its sockets what the kernel
	// does when the process is gone.
	if err := b.proxy.close(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(first); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the open connection ended with %v, want a reset", err)
	}
	through := make(chan error, 1)
	go func() {
		c, err := net.DialTimeout("tcp4", frontendAddr+":80", patience)
		if err == nil {
			_ = c.SetDeadline(time.Now().Add(patience))
			_, _ = io.WriteString(c, "next")
			_, err = io.ReadFull(c, make([]byte, 4))
			_ = c.Close()
		}
		through <- err
	}()
	select {
	case err := <-through:
		t.Fatalf("connected while nobody listened: %v", err)
	case <-time.After(300 * time.Millisecond):
	}
	next, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close()
	mustSync(t, next, desired(model.TCP, 0, podA))
	if err := <-through; err != nil {
		t.Errorf("the connection that began in between: %v", err)
	}
}

// An endpoint that is a frontend itself would have the proxy dial itself.
func TestServiceOfItself(t *testing.T) {
	b := newNode(t, Config{})
	mustSync(t, b, desired(model.TCP, 0, frontendAddr+":80"))
	mustBeReset(t, "the connection")
}

// Data moves within the kernel: the process's own reads and writes carry none
// of it.
func TestSplice(t *testing.T) {
	b := newNode(t, Config{})
	const size = 32 << 20
	listen(t, podA, func(c *net.TCPConn) { _, _ = io.CopyN(c, zeros{}, size) })
	mustSync(t, b, desired(model.TCP, 0, podA))
	c := dial(t, "tcp4")
	pipes := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(slices.DeleteFunc(entries, func(e os.DirEntry) bool {
			to, err := os.Readlink("/proc/self/fd/" + e.Name())
			return err != nil || !strings.HasPrefix(to, "pipe:")
		}))
	}
	if _, err := io.ReadFull(c, make([]byte, 1<<20)); err != nil {
		t.Fatal(err)
	}
	if n := pipes(); n < 4 {
		t.Errorf("%d ends of pipes are open while data moves: splice is not used", n)
	}
	if n, err := io.Copy(io.Discard, c); err != nil || n != size-1<<20 {
		t.Errorf("%d bytes, %v", n, err)
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

func TestChecksum(t *testing.T) {
	// A datagram whose sum over everything, checksum included, is all ones.
	for range 3000 {
		b := make([]byte, udpHeader+rand.IntN(64))
		for i := range b {
			b[i] = byte(rand.Uint32())
		}
		b[6], b[7] = 0, 0
		from, to := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
		sum := checksum(b, from, to)
		if sum == 0 {
			t.Fatal("checksum 0 means that there is none")
		}
		b[6], b[7] = byte(sum>>8), byte(sum)
		if again := checksum(b, from, to); again != 0xffff {
			t.Fatalf("checksum over %x: %#x, want 0xffff", b, again)
		}
	}
}

// So is one whose endpoint is its own NodePort: the proxy would dial itself
// until no file descriptor is left.
func TestNodePortOfItself(t *testing.T) {
	const nodeIP = "192.0.2.11"
	b := newNode(t, Config{MaxDescriptors: 600})
	nstest.Loopback(t, nodeIP+"/32")
	d := desired(model.TCP, 0, nodeIP+":30080")
	svc := d.Services[web]
	port := svc.Frontends[0]
	port.Kind, port.Key.Addr, port.Key.Port = model.NodePort, netip.IPv4Unspecified(), 30080
	svc.Frontends = append(svc.Frontends, port)
	mustSync(t, b, d)
	mustBeReset(t, "a Service whose endpoint is its own NodePort")
	if n := testutil.ToFloat64(b.proxy.metrics.refused.WithLabelValues(tcp, reasonLimit)); n > 0 {
		t.Errorf("%v connections were refused for want of descriptors", n)
	}
	if n := testutil.ToFloat64(b.proxy.metrics.refused.WithLabelValues(tcp, reasonNoEndpoint)); n != 1 {
		t.Errorf("%v connections found no endpoint, want the one", n)
	}
}
