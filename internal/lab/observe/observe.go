// SPDX-License-Identifier: Apache-2.0

package observe

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/mdlayher/packet"
	"golang.org/x/sys/unix"

	"github.com/causeway-lb/causeway/internal/lab/network"
)

// Claim is a frame that says that an address is at a MAC: an ARP reply, a
// gratuitous ARP, a neighbour advertisement.
type Claim struct {
	At      time.Time
	Address netip.Addr
	MAC     string
	// Unasked tells gratuitous ARP and unsolicited advertisements from answers.
	Unasked bool
}

// Watch records the claims that reach a machine, until Close.
type Watch struct {
	conn          *packet.Conn
	local         *net.Interface
	own           map[bool]netip.Addr // the interface's address, by "is IPv6"
	ending, ended chan struct{}

	mu     sync.Mutex
	claims []Claim
}

// Start begins to watch an interface of a machine.
func Start(machine *network.Namespace, name string) (*Watch, error) {
	w := &Watch{own: map[bool]netip.Addr{}, ending: make(chan struct{}), ended: make(chan struct{})}
	err := machine.Do(func() (err error) {
		if w.local, err = net.InterfaceByName(name); err != nil {
			return err
		}
		addresses, err := w.local.Addrs()
		if err != nil {
			return err
		}
		for _, a := range addresses {
			if prefix, err := netip.ParsePrefix(a.String()); err == nil && !prefix.Addr().IsLinkLocalUnicast() {
				w.own[prefix.Addr().Is6()] = prefix.Addr()
			}
		}
		w.conn, err = packet.Listen(w.local, packet.Raw, unix.ETH_P_ALL, nil)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("watch %s of %s: %w", name, machine.Name, err)
	}
	go w.read()
	return w, nil
}

// Close ends the watch.
func (w *Watch) Close() {
	close(w.ending)
	w.conn.Close()
	<-w.ended
}

func (w *Watch) read() {
	defer close(w.ended)
	frame := make([]byte, 2048)
	for {
		n, _, err := w.conn.ReadFrom(frame)
		if err != nil {
			// The link may be down for a while.
			select {
			case <-w.ending:
				return
			case <-time.After(time.Millisecond):
			}
			continue
		}
		claim, ok := parse(frame[:n])
		if !ok || claim.MAC == w.local.HardwareAddr.String() {
			continue
		}
		claim.At = time.Now()
		w.mu.Lock()
		w.claims = append(w.claims, claim)
		w.mu.Unlock()
	}
}

// Claims returns what was claimed for an address since a time, oldest first.
func (w *Watch) Claims(address netip.Addr, since time.Time) []Claim {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []Claim
	for _, claim := range w.claims {
		if claim.Address == address && !claim.At.Before(since) {
			out = append(out, claim)
		}
	}
	return out
}

// Ask asks the LAN for an address, as a client with an empty cache does, and
// returns the MACs of all that answer in the given time, each once.
func (w *Watch) Ask(ctx context.Context, address netip.Addr, wait time.Duration) ([]string, error) {
	own, ok := w.own[address.Is6()]
	if !ok {
		return nil, fmt.Errorf("ask for %s: no address of that family to ask from", address)
	}
	question, to := request(address, own, w.local.HardwareAddr)
	asked := time.Now()
	if _, err := w.conn.WriteTo(question, &packet.Addr{HardwareAddr: to}); err != nil {
		return nil, fmt.Errorf("ask for %s: %w", address, err)
	}
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-time.After(wait):
	}
	return Answerers(w.Claims(address, asked)), nil
}

// Answerers returns the MACs among claims that were not made unasked, each
// once, sorted.
func Answerers(claims []Claim) []string {
	var macs []string
	for _, claim := range claims {
		if !claim.Unasked {
			macs = append(macs, claim.MAC)
		}
	}
	slices.Sort(macs)
	return slices.Compact(macs)
}
