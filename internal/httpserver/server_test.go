// SPDX-License-Identifier: Apache-2.0

package httpserver

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/causeway-lb/causeway/internal/drain"
)

// serve returns the address of a server that ends with the test.
func serve(t *testing.T, config *tls.Config, limits Limits, h http.Handler) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, l, config, limits, h) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return l.Addr().String()
}

func dial(t *testing.T, from, to string) net.Conn {
	t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}, Timeout: 10 * time.Second}
	c, err := d.Dial("tcp", to)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	return c
}

// request sends a request, and returns its status, or 0 if there is no answer.
func request(c net.Conn, text string) int {
	if _, err := io.WriteString(c, text); err != nil {
		return 0
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return 0
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode
}

func answered(c net.Conn) bool {
	return request(c, "GET / HTTP/1.1\r\nHost: a\r\n\r\n") == http.StatusOK
}

// hello reads a request's body to its end.
var hello = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body)
	_, _ = io.WriteString(w, "hello")
})

// pipes is a listener in memory, for time that does not pass by itself.
type pipes struct {
	conns chan net.Conn
	done  chan struct{}
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}
func (p *pipes) Close() error   { close(p.done); return nil }
func (p *pipes) Addr() net.Addr { return &net.TCPAddr{} }

func (p *pipes) dial() net.Conn {
	here, there := net.Pipe()
	p.conns <- there
	return here
}

// Whatever a client leaves unsent, its connection ends, whether the handler reads
// the body or not.
func TestNoConnectionIsHeldForEver(t *testing.T) {
	for name, sent := range map[string]string{
		"nothing":                 "",
		"a part of the header":    "GET / HTTP/1.1\r\nHost: a\r\nX-",
		"a body that never comes": "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n",
		"a body that never ends":  "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\nx",
		"a chunked body":          "GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n",
		"a whole request, idle":   "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
	} {
		for reads, h := range map[string]http.Handler{"read": hello, "refused": ReadOnly(hello)} {
			t.Run(name+", "+reads, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					l := &pipes{make(chan net.Conn), make(chan struct{})}
					srv := New(Limits{}, h)
					ended := make(chan error, 1)
					go func() { ended <- srv.Serve(l) }()
					c := l.dial()
					begun := time.Now()
					go func() { _, _ = io.WriteString(c, sent) }()
					_, _ = io.Copy(io.Discard, c) // until the server closes
					if took := time.Since(begun); took > 40*time.Second {
						t.Errorf("held for %v", took)
					}
					_ = c.Close()
					_ = srv.Close()
					if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
						t.Error(err)
					}
				})
			})
		}
	}
}

// A source with too many connections loses its own, the oldest first; others are
// answered. A connection that ends makes room.
func TestConnectionsAreBounded(t *testing.T) {
	for _, tc := range []struct {
		name   string
		limits Limits
		want   int // of the source that opens many
	}{
		{"in all", Limits{Connections: 4, PerClient: 100}, 3},
		{"for one client", Limits{Connections: 100, PerClient: 3}, 3},
	} {
		t.Run(tc.name, func(t *testing.T) {
			address := serve(t, nil, tc.limits, ReadOnly(hello))
			other := dial(t, "127.0.0.2", address)
			if !answered(other) {
				t.Fatal("not answered")
			}
			var many []net.Conn
			for range 10 {
				c := dial(t, "127.0.0.1", address)
				if !answered(c) {
					t.Fatal("the latest connection is not answered")
				}
				many = append(many, c)
			}
			if !answered(other) {
				t.Error("a connection of another source was closed")
			}
			for i, c := range many {
				if got, want := answered(c), i >= len(many)-tc.want; got != want {
					t.Errorf("connection %d of %d is open: %v, want %v", i, len(many), got, want)
				}
			}
			// The server closes it, and so has room again when it is at its end.
			last := many[len(many)-1]
			if got := request(last, "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"); got != http.StatusOK {
				t.Errorf("status %d", got)
			}
			_, _ = io.Copy(io.Discard, last)
			if c := dial(t, "127.0.0.1", address); !answered(c) {
				t.Error("no room after one has gone")
			}
			if !answered(many[len(many)-2]) {
				t.Error("one was closed although another had gone")
			}
		})
	}
}

func TestSource(t *testing.T) {
	for in, want := range map[string]string{
		"192.0.2.1:80": "192.0.2.1/32", "[::ffff:192.0.2.1]:80": "192.0.2.1/32", "[2001:db8:0:1:2::3]:80": "2001:db8:0:1::/64",
		"[fe80::1%1]:80": "fe80::/64",
	} {
		a, err := net.ResolveTCPAddr("tcp", in)
		if err != nil {
			t.Fatal(err)
		}
		if got := source(a).String(); got != want {
			t.Errorf("%s: %s, want %s", in, got, want)
		}
	}
}

func TestReadOnly(t *testing.T) {
	address := serve(t, nil, Limits{}, ReadOnly(hello))
	const body = "Content-Length: 9999999\r\n" // which never comes
	for _, tc := range []struct {
		method, header string
		want           int
	}{
		{"GET", "", 200}, {"POST", "", 405}, {"POST", body, 405}, {"PUT", "", 405}, {"DELETE", "", 405}, {"OPTIONS", "", 405},
		{"TRACE", "", 405}, {"CONNECT", "", 405}, {"GET", body, 413}, {"GET", "Transfer-Encoding: chunked\r\n", 413},
	} {
		c := dial(t, "127.0.0.1", address)
		if got := request(c, tc.method+" / HTTP/1.1\r\nHost: a\r\n"+tc.header+"\r\n"); got != tc.want {
			t.Errorf("%s %q: %d, want %d", tc.method, tc.header, got, tc.want)
		}
	}
	resp, err := http.Head("http://" + address)
	if err != nil || resp.StatusCode != 200 {
		t.Errorf("HEAD: %v, %v", resp, err)
	}
	w := httptest.NewRecorder()
	ReadOnly(hello).ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/", nil))
	if got := w.Header().Get("Allow"); got != "GET, HEAD" {
		t.Errorf("header Allow is %q", got)
	}
}

func TestNoHTTP2(t *testing.T) {
	config, err := TLS("", "")
	if err != nil {
		t.Fatal(err)
	}
	config.NextProtos = []string{"h2", "http/1.1"}
	address := serve(t, config, Limits{}, hello)
	c, err := tls.Dial("tcp", address, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2", "http/1.1"}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if got := c.ConnectionState().NegotiatedProtocol; got != "http/1.1" {
		t.Errorf("negotiated %q", got)
	}
	if !answered(c) {
		t.Error("not answered with the self-signed certificate")
	}
	if len(config.NextProtos) != 2 {
		t.Error("the caller's configuration was changed")
	}
}

// A client that has connected before the end gets its answer, however late it asks:
// a webhook without one is as if it were down.
func TestEndAnswersWhoeverIsConnected(t *testing.T) {
	config, err := TLS("", "")
	if err != nil {
		t.Fatal(err)
	}
	for name, config := range map[string]*tls.Config{"HTTP": nil, "HTTPS": config} {
		t.Run(name, func(t *testing.T) {
			l, err := drain.Listen(t.Context(), "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			ctx, end := context.WithCancel(t.Context())
			ended := make(chan error, 1)
			go func() { ended <- Serve(ctx, l, config, Limits{Last: 20 * time.Second}, hello) }()
			c := dial(t, "127.0.0.1", l.Addr().String())
			end()
			for begun := time.Now(); ; { // until the listener is closed
				other, err := net.DialTimeout("tcp", l.Addr().String(), 20*time.Millisecond)
				if errors.Is(err, syscall.ECONNREFUSED) {
					break
				}
				if err == nil {
					_ = other.Close()
				}
				if time.Since(begun) > 20*time.Second {
					t.Fatal("the listener stays open")
				}
			}
			if config != nil {
				c = tls.Client(c, &tls.Config{InsecureSkipVerify: true})
			}
			if !answered(c) {
				t.Error("not answered")
			}
			if err := <-ended; err != nil {
				t.Error(err)
			}
		})
	}
}

func TestNoCertificateFiles(t *testing.T) {
	if _, err := TLS("/nowhere/tls.crt", "/nowhere/tls.key"); err == nil {
		t.Error("no error for files that are not there")
	}
}
