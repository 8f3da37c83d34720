// SPDX-License-Identifier: Apache-2.0

package nstest

import (
	"io"
	"net"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"
)

// Serve has serve take every connection that l accepts, each in a goroutine of
// its own, until the test ends, and closes it after.
func Serve(t testing.TB, l net.Listener, serve func(*net.TCPConn)) {
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				serve(c.(*net.TCPConn))
			}()
		}
	}()
}

// Say is for Serve: it writes a text.
func Say(text string) func(*net.TCPConn) {
	return func(c *net.TCPConn) { _, _ = io.WriteString(c, text) }
}

// Own makes an nf_tables table that another process owns, in place of one of that
// name: the kernel refuses whatever anybody else does to it (EPERM). It goes with
// its owner, when end is called or the test ends.
func Own(t testing.TB, table string) (end func()) {
	t.Helper()
	owner := exec.Command("nft", "-i")
	in, err := owner.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := owner.Start(); err != nil {
		t.Fatal(err)
	}
	end = sync.OnceFunc(func() { _ = in.Close(); _ = owner.Wait() })
	t.Cleanup(end)
	if _, err := io.WriteString(in, "add table "+table+"; delete table "+table+"; add table "+table+" { flags owner; }\n"); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if out, err := exec.Command("nft", "list", "table", strings.Fields(table)[0], strings.Fields(table)[1]).CombinedOutput(); err == nil && strings.Contains(string(out), "owner") {
			return end
		}
		if time.Now().After(deadline) {
			t.Fatalf("nft has not made its table %s", table)
		}
	}
}
