// SPDX-License-Identifier: Apache-2.0

package nftables

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/causeway-lb/causeway/internal/proxy/backend"
	"github.com/causeway-lb/causeway/internal/proxy/model"
	"github.com/causeway-lb/causeway/internal/testkit"
	"github.com/causeway-lb/causeway/internal/testkit/backendtest"
	"github.com/causeway-lb/causeway/internal/testkit/nstest"
)

// load dials a Service without a pause and counts.
type load struct {
	stop   context.CancelFunc
	wg     sync.WaitGroup
	mu     sync.Mutex
	dials  int
	failed []error
	// before is what synRetransmits was at the start.
	before int
}

func startLoad(t *testing.T, to string) *load {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	l := &load{stop: cancel, before: synRetransmits(t)}
	for range 2 {
		l.wg.Go(func() {
			for ctx.Err() == nil {
				c, err := net.DialTimeout("tcp", to, 20*time.Second)
				if err == nil {
					_ = c.(*net.TCPConn).SetLinger(0)
					_ = c.Close()
				}
				l.mu.Lock()
				l.dials++
				if err != nil {
					l.failed = append(l.failed, err)
				}
				l.mu.Unlock()
			}
		})
	}
	t.Cleanup(cancel)
	return l
}

func (l *load) end(t *testing.T) {
	t.Helper()
	l.stop()
	l.wg.Wait()
	if len(l.failed) > 0 {
		t.Errorf("%d of %d connections failed, the first: %v", len(l.failed), l.dials, l.failed[0])
	}
	// A lost SYN is sent again a second later. How long a dial takes tells
	// nothing: on busy cores this process waits for seconds.
	if n := synRetransmits(t) - l.before; n > 0 {
		t.Errorf("%d SYNs of %d connections were lost", n, l.dials)
	}
	if l.dials < 100 {
		t.Errorf("only %d connections: the test proves nothing", l.dials)
	}
	t.Logf("%d connections", l.dials)
}

// synRetransmits is how many SYNs and their answers the kernel has sent again,
// in this namespace.
func synRetransmits(t *testing.T) int {
	t.Helper()
	all, err := os.ReadFile("/proc/thread-self/net/netstat")
	if err != nil {
		t.Fatal(err)
	}
	// A line of names, and one of their values.
	var names []string
	for line := range strings.Lines(string(all)) {
		fields := strings.Fields(line)
		if len(fields) == 0 || fields[0] != "TcpExt:" {
			continue
		}
		if names == nil {
			names = fields
			continue
		}
		if i := slices.Index(names, "TCPSynRetrans"); i >= 0 && i < len(fields) {
			n, err := strconv.Atoi(fields[i])
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatal("the kernel does not count TCPSynRetrans")
	return 0
}

// endAfter ends the load when it has made so many connections.
func (l *load) endAfter(t *testing.T, dials int) {
	t.Helper()
	testkit.Eventually(t, 20*time.Second, fmt.Sprintf("%d connections", dials), func() error {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.dials < dials {
			return fmt.Errorf("%d were made", l.dials)
		}
		return nil
	})
	l.end(t)
}

// listenAt accepts on addresses of the loopback interface.
func listenAt(t *testing.T, addrs ...string) {
	t.Helper()
	for _, a := range addrs {
		nstest.Loopback(t, a+"/32")
		l, err := net.Listen("tcp", a+":8080")
		if err != nil {
			t.Fatal(err)
		}
		nstest.Serve(t, l, func(*net.TCPConn) {})
	}
}

// withEndpoints is desired(100, 5) with Service 0 led to the given addresses.
func withEndpoints(addrs ...string) model.Desired {
	d := desired(100, 5)
	target := &model.Target{}
	for _, a := range addrs {
		target.Endpoints = append(target.Endpoints, model.Endpoint{
			AddrPort: netip.AddrPortFrom(netip.MustParseAddr(a), 8080), Local: true, Weight: 1,
		})
	}
	d.Services[name(0)] = &model.Service{Name: name(0), Frontends: []model.Frontend{{
		Key: model.Key{Addr: netip.MustParseAddr("10.96.0.0"), Port: 80, Protocol: model.TCP}, Inside: target, Outside: target,
	}}}
	return d
}

// Processes that come and go, each taking over from the last, with rules that
// are rewritten, cost no connection; nor do changes of the endpoints.
func TestNoConnectionIsLost(t *testing.T) {
	first := newBackend(t)
	pods := []string{"10.244.1.2", "10.244.1.3", "10.244.1.4"}
	listenAt(t, pods...)
	nstest.Everywhere(t)
	mustSync(t, first, withEndpoints(pods...))
	l := startLoad(t, "10.96.0.0:80")
	for round := range 15 {
		b, err := New(Config{})
		if err != nil {
			t.Fatal(err)
		}
		mustSync(t, b, withEndpoints(pods...)) // reads back, rewrites the rules
		for k := range 20 {
			d := withEndpoints(pods[:1+(round+k)%3]...)
			mustSync(t, b, d, name(0))
		}
		mustSync(t, b, withEndpoints(pods...))
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
	}
	l.end(t)
}

// The load notices a single lost SYN.
func TestLoadNoticesALoss(t *testing.T) {
	listenAt(t, "10.244.1.2")
	nstest.Run(t, "nft", "add table ip lossy; add chain ip lossy in { type filter hook input priority 0; }; "+
		"add rule ip lossy in tcp flags syn tcp dport 8080 limit rate over 1/minute burst 1 packets drop")
	before := synRetransmits(t)
	done := make(chan error, 2)
	for range 2 {
		go func() {
			c, err := net.DialTimeout("tcp", "10.244.1.2:8080", 20*time.Second)
			if err == nil {
				err = c.Close()
			}
			done <- err
		}()
	}
	testkit.EventuallyTrue(t, 15*time.Second, "the repetition of a SYN that was dropped is counted", func() bool { return synRetransmits(t) != before })
	nstest.Run(t, "nft", "delete table ip lossy")
	for range 2 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// eightPods gives the addresses of Pods that tell who they are.
func eightPods(t *testing.T) (pods []string) {
	for i := range 8 {
		pods = append(pods, fmt.Sprintf("10.244.1.%d", 10+i))
	}
	listenNames(t, pods...)
	return pods
}

// A client's affinity outlives the process and changes of other endpoints.
func TestAffinityOutlivesTheProcess(t *testing.T) {
	b := newBackend(t)
	nstest.Everywhere(t)
	pods := eightPods(t)
	sticky := func(addrs ...string) model.Desired {
		d := withEndpoints(addrs...)
		f := &d.Services[name(0)].Frontends[0]
		f.Inside.Affinity = time.Hour
		return d
	}
	mustSync(t, b, sticky(pods...))
	home := who(t, "10.96.0.0:80")
	for i := range 20 {
		if got := who(t, "10.96.0.0:80"); got != home {
			t.Fatalf("connection %d went to %s, the first to %s", i, got, home)
		}
	}
	next, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close()
	mustSync(t, next, sticky(pods...))
	if got := who(t, "10.96.0.0:80"); got != home {
		t.Errorf("the next process leads to %s, want %s", got, home)
	}
	// All others go, one after the other.
	left := append([]string(nil), pods...)
	for len(left) > 1 {
		i := 0
		if left[0] == home {
			i = 1
		}
		left = append(left[:i:i], left[i+1:]...)
		mustSync(t, next, sticky(left...), []types.NamespacedName{name(0)}...)
		if got := who(t, "10.96.0.0:80"); got != home {
			t.Fatalf("with %d endpoints left: %s, want %s", len(left), got, home)
		}
	}
	// The endpoint goes, another is remembered instead.
	mustSync(t, next, sticky(without(pods, home)...), name(0))
	second := who(t, "10.96.0.0:80")
	if second == home {
		t.Fatalf("still led to %s, which is gone", home)
	}
	mustSync(t, next, sticky(pods...), name(0))
	for range 10 {
		if got := who(t, "10.96.0.0:80"); got != second {
			t.Fatalf("led to %s, want %s, remembered since the first endpoint went", got, second)
		}
	}
}

// A client that has stayed away for the time-out is led anywhere again.
func TestAffinityEnds(t *testing.T) {
	b := newBackend(t)
	nstest.Everywhere(t)
	pods := eightPods(t)
	d := withEndpoints(pods...)
	d.Services[name(0)].Frontends[0].Inside.Affinity = time.Second
	mustSync(t, b, d)
	home := who(t, "10.96.0.0:80")
	// One in eight leads to the same one by chance: ten in a row do not.
	for range 10 {
		time.Sleep(1200 * time.Millisecond) // the client stays away
		if who(t, "10.96.0.0:80") != home {
			return
		}
	}
	t.Errorf("still led to %s", home)
}

func without(all []string, one string) []string {
	var out []string
	for _, a := range all {
		if a != one {
			out = append(out, a)
		}
	}
	return out
}

// listenNames answers with the address that was reached.
func listenNames(t *testing.T, addrs ...string) {
	t.Helper()
	for _, a := range addrs {
		nstest.Loopback(t, a+"/32")
		l, err := net.Listen("tcp", a+":8080")
		if err != nil {
			t.Fatal(err)
		}
		nstest.Serve(t, l, nstest.Say(a))
	}
}

func who(t *testing.T, to string) string {
	t.Helper()
	// One client address, whatever the kernel would choose.
	d := net.Dialer{Timeout: 5 * time.Second, LocalAddr: &net.TCPAddr{IP: net.IPv4(10, 244, 1, 10)}}
	c, err := d.Dial("tcp", to)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	buf := make([]byte, 32)
	n, err := c.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	return string(buf[:n])
}

// A process that takes over what is right writes nothing, and what somebody
// changed while no process ran it puts right.
func TestTakeOver(t *testing.T) {
	first := newBackend(t)
	if err := first.Cleanup(t.Context()); err != nil { // clients that are remembered have clocks in the list
		t.Fatal(err)
	}
	d, _ := model.Compute(worldOf(8, 150).Snapshot())
	mustSync(t, first, d)
	whole := nstest.Run(t, "nft", "-a", "list", "ruleset")
	takeOver := func() backend.Report {
		t.Helper()
		b, err := New(Config{})
		if err != nil {
			t.Fatal(err)
		}
		defer b.Close()
		r, err := backendtest.Sync(t.Context(), b, d, nil)
		if err != nil {
			t.Fatal(err)
		}
		return r.Report
	}
	if r := takeOver(); r.Added+r.Deleted+r.Drift != 0 {
		t.Errorf("%+v, want nothing done", r)
	}
	// Rules that were written again would have other handles.
	if got := nstest.Run(t, "nft", "-a", "list", "ruleset"); words(t, got) != words(t, whole) {
		t.Error("the rules were written again, or something else is there")
	}
	plain := words(t, nstest.Run(t, "nft", "list", "ruleset"))
	for _, harm := range []string{
		"flush chain ip causeway inside",
		"add rule ip6 causeway masquerading counter drop",
		// As a former version had it: not from outside alone.
		"add rule ip causeway inside ip daddr @load-balancer-ips fib daddr type != local goto refuse",
		"flush map ip causeway services",
		"flush chain ip causeway endpoints-3",
		"delete chain ip causeway filter-forward",
		"flush set ip causeway cluster-ips",
		"add chain ip causeway mine",
	} {
		nstest.Run(t, "nft", harm)
		takeOver()
		if got := words(t, nstest.Run(t, "nft", "list", "ruleset")); got != plain {
			t.Errorf("after %q the rules are not as before", harm)
		}
	}
}
