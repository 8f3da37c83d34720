// SPDX-License-Identifier: Apache-2.0

package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Dir is where namespaces are bound, the place where `ip netns` looks.
const Dir = "/run/netns"

// init keeps the main goroutine on the process's first thread. Go never ends
// that thread: a goroutine that changed its namespace would leave it there, and
// what /proc/PID says of the process with it.
func init() { runtime.LockOSThread() }

// Namespace is a network namespace, bound at Dir/Name. Safe for concurrent use.
type Namespace struct {
	// Name is unique below Dir.
	Name string

	ns    netns.NsHandle
	links *netlink.Handle
}

// New makes a network namespace whose loopback is up. It fails when the name
// is in use.
func New(name string) (*Namespace, error) {
	if err := os.MkdirAll(Dir, 0o755); err != nil {
		return nil, fmt.Errorf("make namespace %s: %w", name, err)
	}
	path := filepath.Join(Dir, name)
	file, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL, 0o444)
	if err != nil {
		return nil, fmt.Errorf("make namespace %s: %w", name, err)
	}
	file.Close()

	made := make(chan error, 1)
	go func() {
		// The thread is left in the new namespace: without UnlockOSThread
		// it ends with the goroutine.
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			made <- fmt.Errorf("unshare: %w", err)
			return
		}
		if err := trustLinks(); err != nil {
			made <- err
			return
		}
		made <- unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, "")
	}()
	if err := <-made; err != nil {
		os.Remove(path)
		return nil, fmt.Errorf("make namespace %s: %w", name, err)
	}
	n, err := open(name)
	if err != nil {
		return nil, err
	}
	if err := n.Up("lo"); err != nil {
		return nil, errors.Join(err, n.Delete())
	}
	return n, nil
}

// trustLinks makes the calling thread's namespace use IPv6 addresses at once:
// with duplicate address detection every link-local address is unusable for
// one to two seconds after its interface comes up.
func trustLinks() error {
	for _, key := range []string{"accept_dad", "dad_transmits"} {
		if err := os.WriteFile("/proc/sys/net/ipv6/conf/default/"+key, []byte("0"), 0o644); err != nil {
			return fmt.Errorf("switch off duplicate address detection: %w", err)
		}
	}
	return nil
}

func open(name string) (*Namespace, error) { return OpenAt(name, filepath.Join(Dir, name)) }

// OpenAt returns a namespace that somebody else made, by a file that it is bound
// at. It is theirs to delete.
func OpenAt(name, path string) (*Namespace, error) {
	ns, err := netns.GetFromPath(path)
	if err != nil {
		return nil, fmt.Errorf("open namespace %s: %w", name, err)
	}
	links, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		ns.Close()
		return nil, fmt.Errorf("open netlink in namespace %s: %w", name, err)
	}
	return &Namespace{Name: name, ns: ns, links: links}, nil
}

// Current returns the namespace that the calling process runs in. It must not
// be deleted.
func Current(name string) (*Namespace, error) {
	ns, err := netns.Get()
	if err != nil {
		return nil, fmt.Errorf("open own namespace: %w", err)
	}
	links, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		ns.Close()
		return nil, fmt.Errorf("open netlink in own namespace: %w", err)
	}
	return &Namespace{Name: name, ns: ns, links: links}, nil
}

// Path is the file that nsenter --net and setns take.
func (n *Namespace) Path() string { return filepath.Join(Dir, n.Name) }

// Links is a netlink handle inside the namespace.
func (n *Namespace) Links() *netlink.Handle { return n.links }

// Delete unbinds the namespace. The kernel destroys it, with every interface
// in it, once no process and no socket is left there.
func (n *Namespace) Delete() error {
	n.links.Close()
	err := n.ns.Close()
	if e := unix.Unmount(n.Path(), unix.MNT_DETACH); e != nil && !errors.Is(e, unix.EINVAL) {
		err = errors.Join(err, fmt.Errorf("unbind namespace %s: %w", n.Name, e))
	}
	return errors.Join(err, os.Remove(n.Path()))
}

// Do runs f on a thread inside the namespace and returns its error. Sockets
// that f opens stay in the namespace. f must not start goroutines that open
// more: those run elsewhere.
func (n *Namespace) Do(f func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		home, err := netns.Get()
		if err != nil {
			result <- fmt.Errorf("open own namespace: %w", err)
			return
		}
		defer home.Close()
		if err := netns.Set(n.ns); err != nil {
			result <- fmt.Errorf("enter namespace %s: %w", n.Name, err)
			return
		}
		err = f()
		if netns.Set(home) == nil {
			runtime.UnlockOSThread()
		}
		result <- err
	}()
	return <-result
}

// Start starts a command inside the namespace. The command must not have
// Pdeathsig set: the thread that starts it may end before it.
func (n *Namespace) Start(cmd *exec.Cmd) error { return n.Do(cmd.Start) }

// Dial connects from inside the namespace. The address must be a literal IP:
// names would be resolved elsewhere.
func (n *Namespace) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	return n.DialWith(ctx, &net.Dialer{}, network, address)
}

// DialWith is Dial with the caller's dialer.
func (n *Namespace) DialWith(ctx context.Context, dialer *net.Dialer, network, address string) (net.Conn, error) {
	var conn net.Conn
	err := n.Do(func() (err error) {
		conn, err = dialer.DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// Listen listens inside the namespace.
func (n *Namespace) Listen(network, address string) (net.Listener, error) {
	var listener net.Listener
	err := n.Do(func() (err error) {
		listener, err = net.Listen(network, address)
		return err
	})
	return listener, err
}

// Sysctl writes a value below /proc/sys, for example
// ("net/ipv4/ip_forward", "1").
func (n *Namespace) Sysctl(key, value string) error {
	return n.Do(func() error {
		if err := os.WriteFile(filepath.Join("/proc/sys", key), []byte(value), 0o644); err != nil {
			return fmt.Errorf("set %s=%s in %s: %w", key, value, n.Name, err)
		}
		return nil
	})
}
