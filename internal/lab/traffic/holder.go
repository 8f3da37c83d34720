// SPDX-License-Identifier: Apache-2.0

package traffic

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/causeway-lb/causeway/internal/lab/demoserver"
	"github.com/causeway-lb/causeway/internal/lab/network"
)

// Holder keeps connections open.
type Holder struct {
	address string
	held    []*heldConnection
}

// heldConnection is a client that never dials a second time.
type heldConnection struct {
	client *http.Client
	host   string
}

// Hold opens connections and asks once over each.
func Hold(ctx context.Context, from *network.Namespace, address string, connections int) (*Holder, error) {
	h := &Holder{address: address, held: make([]*heldConnection, connections)}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(16)
	for i := range h.held {
		group.Go(func() error {
			dialled := false
			c := &heldConnection{client: client(from, false)}
			h.held[i] = c
			c.client.Transport.(*http.Transport).DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
				if dialled {
					return nil, fmt.Errorf("the connection to %s was lost", address)
				}
				dialled = true
				return from.Dial(ctx, network, address)
			}
			answer, err := ask(ctx, c.client, address)
			c.host = answer.Host
			return err
		})
	}
	if err := group.Wait(); err != nil {
		h.Close()
		return nil, fmt.Errorf("hold connections to %s: %w", address, err)
	}
	return h, nil
}

// Hosts counts the connections by the server that they ended at.
func (h *Holder) Hosts() map[string]int {
	count := map[string]int{}
	for _, c := range h.held {
		count[c.host]++
	}
	return count
}

// Check asks over every connection and returns one error for each that is
// broken, or that now ends at another server.
func (h *Holder) Check(ctx context.Context, timeout time.Duration) []error {
	errs := make([]error, len(h.held))
	var group errgroup.Group
	group.SetLimit(16)
	for i, c := range h.held {
		group.Go(func() error {
			ctx, cancel := context.WithTimeout(ctx, timeout)
			defer cancel()
			var answer demoserver.Answer
			if answer, errs[i] = ask(ctx, c.client, h.address); errs[i] == nil && answer.Host != c.host {
				errs[i] = fmt.Errorf("connection to %s is answered by %s", c.host, answer.Host)
			}
			return nil
		})
	}
	_ = group.Wait()
	var out []error
	for _, err := range errs {
		if err != nil {
			out = append(out, err)
		}
	}
	return out
}

// Close closes the connections.
func (h *Holder) Close() {
	for _, c := range h.held {
		if c != nil {
			c.client.CloseIdleConnections()
		}
	}
}
