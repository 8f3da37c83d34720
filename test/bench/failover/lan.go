// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/causeway-lb/causeway/internal/announce"
	"github.com/causeway-lb/causeway/internal/testkit/announcetest"
)

var (
	vip4 = netip.MustParseAddr("192.0.2.200")
	vip6 = netip.MustParseAddr("2001:db8:0:1::200")
)

// streamInterval is how often the client sends where an outage is measured.
const streamInterval = 2 * time.Millisecond

// lan is a LAN on which one address is watched.
type lan struct {
	*announcetest.LAN
	vip netip.Addr
}

// with calls f with three nodes, one of which announces vip.
func with(opts announcetest.Options, vip netip.Addr, f func(*lan, *announcetest.Host) error) error {
	opts.Nodes, opts.Echo, opts.Addresses = 3, true, []netip.Addr{vip}
	opts.Log = os.Getenv("ANNOUNCE_LOG") != ""
	n, err := announcetest.New(opts)
	if err != nil {
		return err
	}
	defer n.Close()
	l := &lan{n, vip}
	if err := l.Start(); err != nil {
		return err
	}
	host, err := l.settle()
	if err != nil {
		return err
	}
	return f(l, host)
}

// settle waits until all nodes see each other and one announces, the same for
// half a second.
func (l *lan) settle() (*announcetest.Host, error) {
	var host *announcetest.Host
	since := time.Now()
	for deadline := time.Now().Add(90 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		var now []*announcetest.Host
		for _, h := range l.Nodes {
			if l.Last(l.vip)[h.Name].State == announce.Announced {
				now = append(now, h)
			}
		}
		if len(now) != 1 || now[0] != host || !l.complete() {
			host, since = nil, time.Now()
			if len(now) == 1 {
				host = now[0]
			}
			continue
		}
		if time.Since(since) > 500*time.Millisecond {
			return host, nil
		}
	}
	return nil, fmt.Errorf("the announcers did not settle: %+v", l.Last(l.vip))
}

// complete tells whether every node's last word is that all others are alive.
func (l *lan) complete() bool {
	last := map[string]int{}
	for _, e := range l.Events(time.Time{}) {
		if e.Report == nil {
			last[e.Node] = len(e.Alive)
		}
	}
	for _, h := range l.Nodes {
		if last[h.Name] != len(l.Nodes)-1 {
			return false
		}
	}
	return true
}

// during streams to the address at an interval, does something once the client
// knows the announcer, and goes on until enough has been seen.
func (l *lan) during(interval time.Duration, do func() error, enough func(since time.Time) bool) (at time.Time, sent int, echoes []announcetest.Echo, err error) {
	stop := make(chan struct{})
	var doErr error
	go func() {
		defer close(stop)
		time.Sleep(50 * time.Millisecond) // the client knows the announcer
		at = time.Now()
		if doErr = do(); doErr != nil {
			return
		}
		for deadline := at.Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
			if enough(at) {
				time.Sleep(100 * time.Millisecond) // the client has heard of it
				return
			}
		}
	}()
	sent, echoes, err = l.Stream(l.vip, interval, stop)
	if err == nil {
		err = doErr
	}
	return at, sent, echoes, err
}

// taken tells whether another node than host announces since a time.
func (l *lan) taken(host *announcetest.Host) func(since time.Time) bool {
	return func(since time.Time) bool {
		for _, e := range l.Events(since) {
			if e.Node != host.Name && e.Report != nil && e.Report.State == announce.Announced {
				return true
			}
		}
		return false
	}
}

// outage does something to the announcer and gives the time until another node
// echoes, and when that was done.
func (l *lan) outage(host *announcetest.Host, do func() error) (time.Duration, time.Time, error) {
	at, _, echoes, err := l.during(streamInterval, do, l.taken(host))
	if err != nil {
		return 0, at, err
	}
	i := slices.IndexFunc(echoes, func(e announcetest.Echo) bool { return e.Node != host.Name && e.At.After(at) })
	if i < 0 {
		return 0, at, fmt.Errorf("no other node took over from %s", host.Name)
	}
	return echoes[i].At.Sub(at), at, nil
}

// detected gives how long after a time another node held host dead.
func (l *lan) detected(host *announcetest.Host, since time.Time) (time.Duration, error) {
	for deadline := since.Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		for _, e := range l.Events(since) {
			if e.Node != host.Name && slices.Contains(e.Dead, host.Name) {
				return e.At.Sub(since), nil
			}
		}
	}
	return 0, fmt.Errorf("nobody found %s dead", host.Name)
}

// repeat calls f n times with the present announcer, and lets the LAN settle after
// each.
func (l *lan) repeat(ctx context.Context, n int, host *announcetest.Host, f func(i int, host *announcetest.Host) error) error {
	defer fmt.Fprintln(os.Stderr)
	for i := range n {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		err := f(i, host)
		if err != nil {
			return err
		}
		if host, err = l.settle(); err != nil {
			return err
		}
	}
	return nil
}
