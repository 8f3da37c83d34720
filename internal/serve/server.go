// SPDX-License-Identifier: Apache-2.0

package serve

import (
	"crypto/tls"
	"io"
	"log"
	"net/http"
	"time"
)

// Server gives a server for h with timeouts, which takes GET and HEAD alone.
func Server(h http.Handler) *http.Server {
	return &http.Server{
		Handler:           ReadOnly(h),
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       5 * time.Second,
		WriteTimeout:      30 * time.Second,
		IdleTimeout:       30 * time.Second,
		MaxHeaderBytes:    16 << 10,
		// HTTP/2 would let one connection ask without limit.
		TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){},
		// What clients do wrong is their affair, and must not fill the log.
		ErrorLog: log.New(io.Discard, "", 0),
	}
}

// ReadOnly refuses what is neither GET nor HEAD, and bodies.
func ReadOnly(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Method != http.MethodGet && r.Method != http.MethodHead:
			w.Header().Set("Allow", "GET, HEAD")
			w.Header().Set("Connection", "close")
			http.Error(w, "only GET and HEAD are served", http.StatusMethodNotAllowed)
		case r.ContentLength != 0:
			w.Header().Set("Connection", "close")
			http.Error(w, "a request has no body here", http.StatusRequestEntityTooLarge)
		default:
			h.ServeHTTP(w, r)
		}
	})
}
