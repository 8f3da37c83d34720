// SPDX-License-Identifier: Apache-2.0

package drain

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"syscall"
	"testing"
	"time"
)

const (
	request = "GET / HTTP/1.1\r\nHost: a\r\n\r\n"
	patient = 20 * time.Second
)

// server is one that ends when it is told to, or with the test.
type server struct {
	address string
	end     func()
	ended   chan error
	asked   chan struct{} // a request is being answered
	answer  chan struct{} // let it be
}

func start(t *testing.T, last time.Duration) *server {
	t.Helper()
	l, err := Listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, end := context.WithCancel(t.Context())
	s := &server{address: l.Addr().String(), end: end, ended: make(chan error, 1), asked: make(chan struct{}), answer: make(chan struct{})}
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hello") })
	mux.HandleFunc("/slow", func(w http.ResponseWriter, _ *http.Request) {
		s.asked <- struct{}{}
		<-s.answer
		_, _ = io.WriteString(w, "hello")
	})
	go func() { s.ended <- Serve(ctx, &http.Server{Handler: mux}, l, nil, last) }()
	return s
}

func (s *server) dial(t *testing.T) net.Conn {
	t.Helper()
	c, err := net.DialTimeout("tcp", s.address, patient)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(patient))
	return c
}

// closed waits until the listener is: new connections are refused, not silently
// dropped.
func (s *server) closed(t *testing.T) {
	t.Helper()
	for begun := time.Now(); ; {
		c, err := net.DialTimeout("tcp", s.address, 20*time.Millisecond)
		if errors.Is(err, syscall.ECONNREFUSED) {
			return
		}
		if err == nil {
			_ = c.Close()
		}
		if time.Since(begun) > patient {
			t.Fatalf("the listener stays open: %v", err)
		}
	}
}

func send(t *testing.T, c net.Conn, text string) {
	t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		t.Errorf("send: %v", err)
	}
}

// wantLast fails unless there is an answer that ends the connection.
func wantLast(t *testing.T, what string, c net.Conn) {
	t.Helper()
	r := bufio.NewReader(c)
	response, err := http.ReadResponse(r, nil)
	if err != nil {
		t.Errorf("%s: no answer: %v", what, err)
		return
	}
	body, err := io.ReadAll(response.Body)
	if err != nil || string(body) != "hello" || !response.Close {
		t.Errorf("%s: answer %q, %v, its connection ends: %v", what, body, err, response.Close)
	}
	if _, err := r.ReadByte(); err != io.EOF {
		t.Errorf("%s: after the answer: %v, want the connection's end", what, err)
	}
}

// Whoever has a connection when the server is to end gets an answer, however late
// the request comes; only who stays silent does not keep the server.
func TestServeAnswersWhoeverIsConnected(t *testing.T) {
	s := start(t, patient)
	late, split, slow, idle := s.dial(t), s.dial(t), s.dial(t), s.dial(t)
	send(t, split, request[:10])
	send(t, slow, "GET /slow HTTP/1.1\r\nHost: a\r\n\r\n")
	<-s.asked
	send(t, idle, request)
	response, err := http.ReadResponse(bufio.NewReader(idle), nil)
	if err != nil || response.Close {
		t.Fatalf("before the end: %+v, %v; want an answer on a connection that stays", response, err)
	}
	_, _ = io.Copy(io.Discard, response.Body)
	s.end()
	s.closed(t)
	if n, err := idle.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the idle connection: %d bytes, %v; want its end", n, err)
	}
	send(t, late, request)
	wantLast(t, "a request after the end", late)
	send(t, split, request[10:])
	wantLast(t, "a request before and after the end", split)
	select {
	case err := <-s.ended:
		t.Errorf("ended while a request is being answered: %v", err)
	default:
	}
	close(s.answer)
	wantLast(t, "a request that was being answered", slow)
	if err := <-s.ended; err != nil {
		t.Error(err)
	}
}

func TestServeEndsWithoutTheSilent(t *testing.T) {
	s := start(t, 50*time.Millisecond)
	silent := s.dial(t)
	s.end()
	if err := <-s.ended; err != nil {
		t.Error(err)
	}
	if n, err := silent.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the silent connection: %d bytes, %v; want its end", n, err)
	}
}

// A server that fails does so at once.
func TestServeFails(t *testing.T) {
	l, err := Listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
	if err := Serve(t.Context(), &http.Server{}, l, nil, patient); !errors.Is(err, net.ErrClosed) {
		t.Errorf("error %v, want %v", err, net.ErrClosed)
	}
}

// However late the server comes to it: what waits when the deadline has passed is
// accepted.
func TestAcceptAllThatWait(t *testing.T) {
	for name, address := range map[string]string{"IPv4": "127.0.0.1:0", "IPv6": "[::1]:0"} {
		t.Run(name, func(t *testing.T) {
			opened, err := Listen(t.Context(), address)
			if err != nil {
				t.Fatal(err)
			}
			l := &listener{Listener: opened}
			defer l.Close()
			for range 3 {
				c, err := net.DialTimeout("tcp", l.Addr().String(), patient)
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
			}
			if err := l.drain(); err != nil {
				t.Fatal(err)
			}
			if err := opened.(*net.TCPListener).SetDeadline(time.Unix(1, 0)); err != nil {
				t.Fatal(err)
			}
			for range 3 {
				c, err := l.Accept()
				if err != nil {
					t.Fatal(err)
				}
				_ = c.Close()
			}
			if _, err := l.Accept(); !errors.Is(err, errDrained) {
				t.Errorf("error %v, want %v", err, errDrained)
			}
		})
	}
}
