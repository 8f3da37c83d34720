// SPDX-License-Identifier: Apache-2.0

package network

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"sync"
	"testing"
	"time"

	"github.com/causeway-lb/causeway/internal/testkit"
)

const inside = "NETWORK_TEST_INSIDE"

// isolated runs the calling test again in namespaces of its own and tells
// whether this is that run.
func isolated(t *testing.T) bool {
	t.Helper()
	if os.Getenv(inside) != "" {
		return true
	}
	if os.Geteuid() != 0 {
		if os.Getenv("REQUIRE_KERNEL") == "1" {
			t.Fatal("needs root")
		}
		t.Skip("needs root")
	}
	cmd := exec.Command("unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc",
		"sh", "-c", `mount -t tmpfs tmpfs /run && exec "$0" "$@"`, os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), inside+"=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return false
}

// machines makes a switch with two machines on it, 192.0.2.1 and .2.
func machines(t *testing.T) (lan, a, b *Namespace) {
	t.Helper()
	namespaces := map[string]*Namespace{}
	for _, name := range []string{"lan", "a", "b"} {
		n, err := New(name)
		if err != nil {
			t.Fatal(err)
		}
		namespaces[name] = n
	}
	lan = namespaces["lan"]
	if err := lan.AddBridge("br0"); err != nil {
		t.Fatal(err)
	}
	for i, name := range []string{"a", "b"} {
		n := namespaces[name]
		mac := net.HardwareAddr{2, 0, 0, 0, 0, byte(i + 1)}
		for _, step := range []func() error{
			func() error {
				return Connect(End{Namespace: n, Name: "eth0", MAC: mac}, End{Namespace: lan, Name: name})
			},
			func() error { return lan.Plug(name, "br0") },
			func() error { return n.Up("eth0") },
			func() error { return n.AddAddress("eth0", netip.MustParsePrefix(fmt.Sprintf("192.0.2.%d/24", i+1))) },
			func() error {
				return n.AddAddress("eth0", netip.MustParsePrefix(fmt.Sprintf("2001:db8::%d/64", i+1)))
			},
		} {
			if err := step(); err != nil {
				t.Fatal(err)
			}
		}
	}
	return lan, namespaces["a"], namespaces["b"]
}

func greet(from *Namespace, address string) error {
	conn, err := from.DialWith(context.Background(), &net.Dialer{Timeout: 500 * time.Millisecond}, "tcp", address)
	if err != nil {
		return err
	}
	defer conn.Close()
	greeting, err := io.ReadAll(conn)
	if err == nil && string(greeting) != "hello" {
		err = fmt.Errorf("greeted with %q", greeting)
	}
	return err
}

func serve(t *testing.T, n *Namespace, address string) {
	t.Helper()
	listener, err := n.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(conn, "hello")
			conn.Close()
		}
	}()
}

func TestLAN(t *testing.T) {
	if !isolated(t) {
		return
	}
	lan, a, b := machines(t)
	serve(t, b, "192.0.2.2:80")
	serve(t, b, "[2001:db8::2]:80")
	for _, address := range []string{"192.0.2.2:80", "[2001:db8::2]:80"} {
		testkit.Eventually(t, 20*time.Second, "greeted by "+address, func() error { return greet(a, address) })
	}
	mac, err := a.Neighbour("eth0", netip.MustParseAddr("192.0.2.2"))
	if err != nil || mac.String() != "02:00:00:00:00:02" {
		t.Errorf("learned %s, %v", mac, err)
	}
	if err := a.FlushNeighbours("eth0"); err != nil {
		t.Error(err)
	}
	if mac, err := a.Neighbour("eth0", netip.MustParseAddr("192.0.2.2")); err != nil || mac != nil {
		t.Errorf("after the flush: %s, %v", mac, err)
	}
	for name, cut := range map[string][2]func() error{
		"link down": {func() error { return lan.Down("b") }, func() error { return lan.Up("b") }},
		"unplugged": {func() error { return lan.Unplug("b") }, func() error { return lan.Plug("b", "br0") }},
	} {
		if err := cut[0](); err != nil {
			t.Fatal(err)
		}
		if err := greet(a, "192.0.2.2:80"); err == nil {
			t.Errorf("%s: still greeted", name)
		}
		if err := cut[1](); err != nil {
			t.Fatal(err)
		}
		testkit.Eventually(t, 20*time.Second, "greeted after "+name, func() error { return greet(a, "192.0.2.2:80") })
	}
}

// Threads come back in the namespace that they went from.
func TestDo(t *testing.T) {
	if !isolated(t) {
		return
	}
	n, err := New("elsewhere")
	if err != nil {
		t.Fatal(err)
	}
	space := func() string {
		link, err := os.Readlink("/proc/thread-self/ns/net")
		if err != nil {
			t.Error(err)
		}
		return link
	}
	home := space()
	var group sync.WaitGroup
	for range 200 {
		group.Go(func() {
			if err := n.Do(func() error {
				if space() == home {
					return fmt.Errorf("still at home")
				}
				return nil
			}); err != nil {
				t.Error(err)
			}
		})
		group.Go(func() {
			if got := space(); got != home {
				t.Errorf("a goroutine that never left home is in %s", got)
			}
		})
	}
	group.Wait()
	if err := n.Delete(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(n.Path()); err == nil {
		t.Error("the namespace is still bound")
	}
	if again, err := New("elsewhere"); err != nil {
		t.Error(err)
	} else if _, err := New("elsewhere"); err == nil {
		t.Error("a name was given twice")
	} else if err := again.Delete(); err != nil {
		t.Error(err)
	}
}
