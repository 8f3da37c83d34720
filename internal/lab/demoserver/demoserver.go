// SPDX-License-Identifier: Apache-2.0

package demoserver

import (
	"context"
	"encoding/json"
	"net"
	"net/http"
	"net/netip"
	"os"
	"time"

	"github.com/causeway-lb/causeway/internal/drain"
)

// Answer is the body of every response, in JSON.
type Answer struct {
	// ClientIP is the source address of the connection as the server sees it.
	ClientIP string
	// Host is the server's host name: in a Pod, the Pod's name.
	Host string
	// ServerIP is the address of the server that the connection ended at.
	ServerIP string
	// Time is when the answer was given.
	Time time.Time
	// Version is the server's, from the environment variable VERSION.
	Version string
}

// Handler answers every path with an Answer; /healthz answers "ok".
func Handler(host, version string, now func() time.Time) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("ok\n")) })
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		answer := Answer{ClientIP: address(r.RemoteAddr), Host: host, Time: now().UTC(), Version: version}
		if local, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr); ok {
			answer.ServerIP = address(local.String())
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(answer) // the client may have gone
	})
	return mux
}

// address drops the port, and the mapping of IPv4 into IPv6.
func address(hostPort string) string {
	parsed, err := netip.ParseAddrPort(hostPort)
	if err != nil {
		return hostPort
	}
	return parsed.Addr().Unmap().WithZone("").String()
}

// Run serves on an address until ctx ends, then answers whoever it has taken, and
// refuses the rest: nobody's connection is cut.
func Run(ctx context.Context, listen string) error {
	host, err := os.Hostname()
	if err != nil {
		return err
	}
	version := os.Getenv("VERSION")
	if version == "" {
		version = "1"
	}
	l, err := drain.Listen(ctx, listen)
	if err != nil {
		return err
	}
	return serve(ctx, l, Handler(host, version, time.Now))
}

// last is how long answers may take at the end: less than is left of the grace
// period of the sample's Pods.
const last = 3 * time.Second

func serve(ctx context.Context, l net.Listener, handler http.Handler) error {
	server := &http.Server{Handler: handler, ReadHeaderTimeout: 10 * time.Second}
	return drain.Serve(ctx, server, l, nil, last)
}
