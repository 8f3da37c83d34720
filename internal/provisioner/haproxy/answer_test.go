// SPDX-License-Identifier: Apache-2.0

package haproxy

import (
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

// What answers without end, which HAProxy does not, is told of and costs no more than
// the bound.
func TestRuntimeAnswerIsBounded(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	sent := make(chan int64, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			sent <- 0
			return
		}
		defer c.Close()
		n, _ := io.Copy(c, endless{})
		sent <- n
	}()
	socket, err := ParseSocket("tcp://" + l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	socket.Timeout = time.Minute // on a busy machine
	if _, err := socket.Do(t.Context(), "show stat"); err == nil || !strings.Contains(err.Error(), "longer than") || !strings.Contains(err.Error(), l.Addr().String()) {
		t.Errorf("an answer without end: %v", err)
	}
	const inFlight = 32 << 20 // the kernel's buffers
	if n := <-sent; n < maxAnswer || n > maxAnswer+inFlight {
		t.Errorf("%d bytes were read, the bound is %d", n, maxAnswer)
	}
}

type endless struct{}

func (endless) Read(b []byte) (int, error) { return len(b), nil }
