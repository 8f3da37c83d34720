// SPDX-License-Identifier: Apache-2.0

package drain

import (
	"context"
	"net"
	"os"
	"testing"
	"time"
)

// A connection that waits is still accepted, a new one is neither taken nor reset.
func TestRefuse(t *testing.T) {
	for network, address := range map[string]string{"tcp4": "127.0.0.1:0", "tcp6": "[::1]:0"} {
		config := net.ListenConfig{}
		config.SetMultipathTCP(false)
		listener, err := config.Listen(t.Context(), network, address)
		if err != nil {
			t.Fatal(err)
		}
		l := listener.(*net.TCPListener)
		defer l.Close()
		first, err := net.Dial(network, l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer first.Close()
		if err := Refuse(l); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		if c, err := new(net.Dialer).DialContext(ctx, network, l.Addr().String()); err == nil {
			_ = c.Close()
			t.Errorf("%s: a new connection was taken", network)
		} else if !os.IsTimeout(err) {
			t.Errorf("%s: a new connection ended: %v; want silence", network, err)
		}
		if err := l.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		c, err := l.Accept()
		if err != nil {
			t.Fatalf("%s: the connection that waited: %v", network, err)
		}
		defer c.Close()
		if err := l.SetDeadline(time.Now()); err != nil {
			t.Fatal(err)
		}
		if c, err := l.Accept(); !os.IsTimeout(err) {
			t.Errorf("%s: accepted %v, %v; want nothing more", network, c, err)
		}
	}
}
