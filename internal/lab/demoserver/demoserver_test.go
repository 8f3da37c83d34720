// SPDX-License-Identifier: Apache-2.0

package demoserver

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/causeway-lb/causeway/internal/drain"
)

func TestAnswer(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	server := httptest.NewServer(Handler("pod-a", "2", func() time.Time { return now }))
	defer server.Close()
	response, err := http.Get(server.URL + "/anything")
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	var got Answer
	if err := json.NewDecoder(response.Body).Decode(&got); err != nil {
		t.Fatal(err)
	}
	want := Answer{ClientIP: "127.0.0.1", ServerIP: "127.0.0.1", Host: "pod-a", Time: now, Version: "2"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("answer (-want +got):\n%s", diff)
	}
}

func TestAddress(t *testing.T) {
	for in, want := range map[string]string{
		"192.0.2.1:80":             "192.0.2.1",
		"[::ffff:192.0.2.1]:80":    "192.0.2.1",
		"[fe80::1%eth0]:80":        "fe80::1",
		"[2001:db8::1]:80":         "2001:db8::1",
		"somewhere without a port": "somewhere without a port",
	} {
		if got := address(in); got != want {
			t.Errorf("address(%q) = %q, want %q", in, got, want)
		}
	}
}

// A server that is told to end answers all that were connected by then, and
// whoever comes later is refused: no connection is cut.
func TestEndCutsNoConnection(t *testing.T) {
	for round := range 5 {
		t.Run(strconv.Itoa(round), func(t *testing.T) {
			t.Parallel() // a client that repeats its first segment waits for a second
			endAmongClients(t)
		})
	}
}

func endAmongClients(t *testing.T) {
	l, err := drain.Listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, end := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- serve(ctx, l, Handler("pod-a", "1", time.Now)) }()
	var wait sync.WaitGroup
	for i := range 40 {
		wait.Go(func() {
			if i == 20 {
				end()
			}
			conn, err := net.DialTimeout("tcp", l.Addr().String(), 10*time.Second)
			if err != nil {
				if !errors.Is(err, syscall.ECONNREFUSED) {
					t.Errorf("dial: %v", err)
				}
				return
			}
			defer conn.Close()
			_, _ = io.WriteString(conn, "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
			if _, err := http.ReadResponse(bufio.NewReader(conn), nil); err != nil {
				t.Errorf("connected, but: %v", err)
			}
		})
	}
	wait.Wait()
	end()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
}
