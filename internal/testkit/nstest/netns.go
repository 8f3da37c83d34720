// SPDX-License-Identifier: Apache-2.0

package nstest

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// NS is a network namespace without a name: it goes when the test's process
// ends, or with Close.
type NS struct {
	handle netns.NsHandle
	links  *netlink.Handle
}

// Self is the namespace that the test runs in.
func Self(t testing.TB) *NS {
	t.Helper()
	h, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	return wrap(t, h)
}

// NewNS gives a new namespace with loopback up.
func NewNS(t testing.TB) *NS {
	t.Helper()
	var h netns.NsHandle
	err := onThread(func() error {
		var err error
		h, err = netns.New()
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	n := wrap(t, h)
	n.up(t, "lo")
	return n
}

func wrap(t testing.TB, h netns.NsHandle) *NS {
	t.Helper()
	l, err := netlink.NewHandleAt(h)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close(); _ = h.Close() })
	return &NS{handle: h, links: l}
}

// errEnded says that a helper which f called has ended the test, as t.Fatal does.
var errEnded = errors.New("the test was ended in there: see what it logged before")

// onThread runs f on a thread that is thrown away after, so that f may change
// the thread's namespace. If f ends the test, errEnded is returned; the caller
// is to end its own goroutine too.
func onThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		err := errEnded        // unless f returns
		defer func() { done <- err }()
		err = f()
	}()
	return <-done
}

// Do runs f in the namespace. Sockets that f opens stay in it.
func (n *NS) Do(f func() error) error {
	return onThread(func() error {
		if err := netns.Set(n.handle); err != nil {
			return fmt.Errorf("enter namespace: %w", err)
		}
		return f()
	})
}

// Must is Do for what must work. A helper that ends the test in f ends it at
// once.
func (n *NS) Must(t testing.TB, f func() error) {
	t.Helper()
	if err := n.Do(f); errors.Is(err, errEnded) {
		runtime.Goexit() // whoever ended it has said why: failed, or skipped
	} else if err != nil {
		t.Fatal(err)
	}
}

// Run runs a program in the namespace.
func (n *NS) Run(t testing.TB, name string, args ...string) string {
	t.Helper()
	var out string
	n.Must(t, func() error { out = Run(t, name, args...); return nil })
	return out
}

func (n *NS) up(t testing.TB, name string) netlink.Link {
	t.Helper()
	l, err := n.links.LinkByName(name)
	if err == nil {
		err = n.links.LinkSetUp(l)
	}
	if err != nil {
		t.Fatalf("set %s up: %v", name, err)
	}
	return l
}

// Cable lays a veth pair between two namespaces and brings both ends up. It goes
// with the test: a namespace takes its end along only some time after its own.
func Cable(t testing.TB, a *NS, nameA string, b *NS, nameB string) {
	t.Helper()
	v := &netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: nameA}, PeerName: nameB, PeerNamespace: netlink.NsFd(b.handle),
	}
	if err := a.links.LinkAdd(v); err != nil {
		t.Fatalf("lay cable %s-%s: %v", nameA, nameB, err)
	}
	t.Cleanup(func() {
		if err := a.links.LinkDel(v); err != nil {
			t.Errorf("take up cable %s-%s: %v", nameA, nameB, err)
		}
	})
	a.up(t, nameA)
	b.up(t, nameB)
}

// Bridge makes a bridge of the named interfaces.
func (n *NS) Bridge(t testing.TB, name string, ports ...string) {
	t.Helper()
	br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: name}}
	if err := n.links.LinkAdd(br); err != nil {
		t.Fatalf("make bridge %s: %v", name, err)
	}
	n.up(t, name)
	for _, p := range ports {
		l, err := n.links.LinkByName(p)
		if err == nil {
			err = n.links.LinkSetMaster(l, br)
		}
		if err != nil {
			t.Fatalf("plug %s into %s: %v", p, name, err)
		}
	}
}

// Address adds an address, usable at once.
func (n *NS) Address(t testing.TB, link string, p netip.Prefix) {
	t.Helper()
	l, err := n.links.LinkByName(link)
	if err == nil {
		a, perr := netlink.ParseAddr(p.String())
		if perr != nil {
			t.Fatal(perr)
		}
		const noDAD = 0x02 // IFA_F_NODAD
		if p.Addr().Is6() {
			a.Flags = noDAD
		}
		err = n.links.AddrAdd(l, a)
	}
	if err != nil {
		t.Fatalf("add %s to %s: %v", p, link, err)
	}
}

// Route adds a route by way of a gateway, or on the link if via is invalid.
func (n *NS) Route(t testing.TB, to netip.Prefix, via netip.Addr, link string) {
	t.Helper()
	l, err := n.links.LinkByName(link)
	if err != nil {
		t.Fatal(err)
	}
	r := &netlink.Route{LinkIndex: l.Attrs().Index, Dst: prefixNet(to)}
	if via.IsValid() {
		r.Gw = via.AsSlice()
		r.Flags = int(netlink.FLAG_ONLINK)
	} else {
		r.Scope = netlink.SCOPE_LINK
	}
	if err := n.links.RouteReplace(r); err != nil {
		t.Fatalf("route %s via %s dev %s: %v", to, via, link, err)
	}
}

func prefixNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Masked().Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
