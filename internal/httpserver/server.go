// SPDX-License-Identifier: Apache-2.0

package httpserver

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"time"

	"github.com/causeway-lb/causeway/internal/drain"
)

// Limits bound what clients can hold. Zero values mean the defaults.
type Limits struct {
	// Connections is how many there may be at once; 128. PerClient is how many
	// of them one source may have (an IPv4 address, an IPv6 /64); 64.
	Connections, PerClient int
	// Header is the time for the TLS handshake and a request's header, 5 s;
	// Request for all of it, 5 s; Answer from the end of the header to the end
	// of the answer, 30 s; Idle between two requests of a connection, 30 s.
	Header, Request, Answer, Idle time.Duration
	// Last is the time for answers when Serve is to end: of requests that are being
	// answered, and of connections that have sent none yet; 1 s. Negative: none.
	Last time.Duration
}

func (l Limits) withDefaults() Limits {
	for _, d := range []struct {
		value    *time.Duration
		fallback time.Duration
	}{{&l.Header, 5 * time.Second}, {&l.Request, 5 * time.Second}, {&l.Answer, 30 * time.Second}, {&l.Idle, 30 * time.Second}, {&l.Last, time.Second}} {
		if *d.value == 0 {
			*d.value = d.fallback
		}
	}
	if l.Connections == 0 {
		l.Connections = 128
	}
	if l.PerClient == 0 {
		l.PerClient = 64
	}
	return l
}

// maxHeader is a header's size, in bytes, to which net/http adds 4096.
const maxHeader = 16 << 10

// New returns a server for h that keeps the limits' times; Listener keeps the
// rest of them.
func New(limits Limits, h http.Handler) *http.Server {
	limits = limits.withDefaults()
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	return &http.Server{
		Handler: h, Protocols: protocols, MaxHeaderBytes: maxHeader,
		ReadHeaderTimeout: limits.Header, ReadTimeout: limits.Request, WriteTimeout: limits.Answer, IdleTimeout: limits.Idle,
		// What clients do wrong is their affair, and must not fill the log.
		ErrorLog: log.New(io.Discard, "", 0),
	}
}

// Listener returns l with the limits' bounds on connections. It speaks TLS if
// config is not nil, which it does not change.
func Listener(l net.Listener, config *tls.Config, limits Limits) net.Listener {
	limits = limits.withDefaults()
	l = Limit(l, limits.Connections, limits.PerClient)
	if config == nil {
		return l
	}
	config = config.Clone()
	config.NextProtos = []string{"http/1.1"}
	return tls.NewListener(l, config)
}

// Serve serves h at a listener, which it closes, until ctx ends; what is answered
// then, drain.Serve says, unless limits.Last is negative. It speaks TLS if config is
// not nil, which it does not change.
func Serve(ctx context.Context, l net.Listener, config *tls.Config, limits Limits, h http.Handler) error {
	limits = limits.withDefaults()
	srv := New(limits, h)
	bounds := func(l net.Listener) net.Listener { return Listener(l, config, limits) }
	if limits.Last >= 0 {
		return drain.Serve(ctx, srv, l, bounds, limits.Last)
	}
	ended := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(ended)
		_ = srv.Close()
	})
	err := srv.Serve(bounds(l))
	if !stop() {
		<-ended
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// ReadOnly refuses what is neither GET nor HEAD, and requests with a body, which is
// not read.
func ReadOnly(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Method != http.MethodGet && r.Method != http.MethodHead:
			w.Header().Set("Allow", "GET, HEAD")
			w.Header().Set("Connection", "close")
			http.Error(w, "only GET and HEAD are served", http.StatusMethodNotAllowed)
		case r.ContentLength != 0:
			// Else net/http would wait for the body before the next request.
			w.Header().Set("Connection", "close")
			http.Error(w, "a request has no body here", http.StatusRequestEntityTooLarge)
		default:
			h.ServeHTTP(w, r)
		}
	})
}
