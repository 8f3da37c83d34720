// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/causeway-lb/causeway/internal/testkit"
)

// The agent runs without the server while kube-proxy has the port.
func TestListenWaitsForPortInUse(t *testing.T) {
	other, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := other.Addr().String()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- serveHTTP(ctx, endpoint{what: "test", address: address}, http.NotFoundHandler()) }()
	select {
	case err := <-ended:
		t.Fatalf("ended with a port in use: %v", err)
	case <-time.After(300 * time.Millisecond):
	}
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, 20*time.Second, "served", func() error { return get("http://"+address, http.StatusNotFound) })
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}

	other, err = net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if err := serveHTTP(ctx, endpoint{what: "test", address: other.Addr().String()}, http.NotFoundHandler()); err != nil {
		t.Errorf("a wait that is over: %v", err)
	}
}
