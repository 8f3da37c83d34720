// SPDX-License-Identifier: Apache-2.0

package drain

import (
	"io"
	"net"
	"os"
	"strconv"
	"testing"
	"time"
)

// A connection that waits is still accepted, a new one is neither taken nor reset,
// with privileges and without.
func TestRefuse(t *testing.T) {
	unprivileged := func(l *net.TCPListener) error { return control(l, func(fd int) error { return wantTTL(fd, 255) }) }
	for how, refuse := range map[string]func(*net.TCPListener) error{"as it is": Refuse, "unprivileged": unprivileged} {
		for listen, hosts := range map[string][]string{"127.0.0.1": {"127.0.0.1"}, "::1": {"::1"}, "": {"127.0.0.1", "::1"}} {
			for _, host := range hosts {
				t.Run(how+", "+host+" at ["+listen+"]", func(t *testing.T) {
					t.Parallel()
					testRefuse(t, refuse, listen, host)
				})
			}
		}
	}
}

func testRefuse(t *testing.T, refuse func(*net.TCPListener) error, listen, host string) {
	listener, err := Listen(t.Context(), net.JoinHostPort(listen, "0"))
	if err != nil {
		t.Fatal(err)
	}
	l := listener.(*net.TCPListener)
	defer l.Close()
	address := net.JoinHostPort(host, strconv.Itoa(l.Addr().(*net.TCPAddr).Port))
	first, err := net.DialTimeout("tcp", address, patient)
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	if err := refuse(l); err != nil {
		t.Fatal(err)
	}
	if c, err := net.DialTimeout("tcp", address, 100*time.Millisecond); err == nil {
		_ = c.Close()
		t.Error("a new connection was taken")
	} else if !os.IsTimeout(err) {
		t.Errorf("a new connection ended: %v; want silence", err)
	}
	if err := l.SetDeadline(time.Now().Add(patient)); err != nil {
		t.Fatal(err)
	}
	c, err := l.AcceptTCP()
	if err != nil {
		t.Fatalf("the connection that waited: %v", err)
	}
	defer c.Close()
	if err := Accepted(c); err != nil {
		t.Error(err)
	}
	_ = c.SetDeadline(time.Now().Add(patient))
	if _, err := io.WriteString(first, "x"); err != nil {
		t.Error(err)
	}
	if got, err := c.Read(make([]byte, 1)); got != 1 || err != nil {
		t.Errorf("of the connection that waited: %d bytes, %v", got, err)
	}
	if err := l.SetDeadline(time.Now()); err != nil {
		t.Fatal(err)
	}
	if c, err := l.Accept(); !os.IsTimeout(err) {
		t.Errorf("accepted %v, %v; want nothing more", c, err)
	}
}

// Accepted makes up for what a connection inherits from a listener after Refuse.
func TestAccepted(t *testing.T) {
	for listen, host := range map[string]string{"127.0.0.1": "127.0.0.1", "::1": "::1", "": "127.0.0.1"} {
		listener, err := Listen(t.Context(), net.JoinHostPort(listen, "0"))
		if err != nil {
			t.Fatal(err)
		}
		l := listener.(*net.TCPListener)
		defer l.Close()
		there, err := net.DialTimeout("tcp", net.JoinHostPort(host, strconv.Itoa(l.Addr().(*net.TCPAddr).Port)), patient)
		if err != nil {
			t.Fatal(err)
		}
		defer there.Close()
		here, err := l.AcceptTCP()
		if err != nil {
			t.Fatal(err)
		}
		defer here.Close()
		if err := control(here, func(fd int) error { return wantTTL(fd, 255) }); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(there, "x"); err != nil {
			t.Fatal(err)
		}
		_ = here.SetDeadline(time.Now().Add(50 * time.Millisecond))
		if n, err := here.Read(make([]byte, 1)); !os.IsTimeout(err) {
			t.Errorf("%s: before Accepted: %d bytes, %v; want silence", host, n, err)
		}
		if err := Accepted(here); err != nil {
			t.Fatal(err)
		}
		_ = here.SetDeadline(time.Now().Add(patient))
		if n, err := here.Read(make([]byte, 1)); n != 1 || err != nil {
			t.Errorf("%s: after Accepted: %d bytes, %v", host, n, err)
		}
	}
}
