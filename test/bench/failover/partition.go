// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"github.com/causeway-lb/causeway/internal/testkit/announcetest"
	"github.com/causeway-lb/causeway/test/bench/report"
)

// phase is how long the parted network, and the joined one, is watched.
const phase = 2500 * time.Millisecond

// parting is one way in which five nodes come apart.
type parting struct {
	name            string
	management      bool
	apart, together func(*announcetest.Host) error
	nodes           int // how many are moved
	far             bool
}

var partings = []parting{
	{"5 nodes part into 2 and 3", false, (*announcetest.Host).Away, (*announcetest.Host).Mend, 2, true},
	{"their LAN parts, gossip goes on", true, (*announcetest.Host).Away, (*announcetest.Host).Mend, 2, true},
	{"gossip is blocked, the LAN works", true, (*announcetest.Host).CutGossip, (*announcetest.Host).MendGossip, 5, false},
}

// partition measures for how long questions have two answers or none.
func partition(ctx context.Context, o *options, r *report.Report) error {
	if o.rounds == 0 {
		return nil
	}
	for _, p := range partings {
		got, err := p.measure(ctx, o.rounds)
		if err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		for _, metric := range []string{"answered_twice", "answered_never"} {
			r.Add(report.Line{Case: p.name, Metric: metric, Unit: "s", Ours: report.Summarise("", got[metric])})
		}
	}
	return nil
}

// measure gives the worst of each round.
func (p *parting) measure(ctx context.Context, rounds int) (samples, error) {
	defer fmt.Fprintln(os.Stderr)
	var addrs []netip.Addr
	for i := range 6 {
		addrs = append(addrs, netip.AddrFrom4([4]byte{192, 0, 2, byte(200 + i)}), netip.MustParseAddr(fmt.Sprintf("2001:db8:0:1::20%d", i)))
	}
	n, err := announcetest.New(announcetest.Options{Nodes: 5, Addresses: addrs, Management: p.management, Partition: true, Log: os.Getenv("ANNOUNCE_LOG") != ""})
	if err != nil {
		return nil, err
	}
	defer n.Close()
	if err := n.Start(); err != nil {
		return nil, err
	}
	var segments []*announcetest.Asker
	for _, c := range []func() (*announcetest.Asker, error){
		func() (*announcetest.Asker, error) { return announcetest.NewAsker(n.Client) },
		func() (*announcetest.Asker, error) { return announcetest.NewAsker(n.Far) },
	} {
		asker, err := c()
		if err != nil {
			return nil, err
		}
		defer asker.Close()
		segments = append(segments, asker)
	}
	time.Sleep(3 * time.Second) // all are announced
	got := samples{}
	for round := range rounds {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		worst, err := p.round(n, segments, addrs, round)
		if err != nil {
			return nil, err
		}
		got.add("answered_twice", worst.Twice)
		got.add("answered_never", worst.None)
		progress("%s %d of %d: twice for %3d ms, never for %3d ms (%d questions)", p.name, round+1, rounds, worst.Twice.Milliseconds(), worst.None.Milliseconds(), worst.Asked)
	}
	return got, nil
}

// round parts the nodes and joins them.
func (p *parting) round(n *announcetest.LAN, segments []*announcetest.Asker, addrs []netip.Addr, round int) (announcetest.Worst, error) {
	near := announcetest.NewWatch(segments[0], addrs, askInterval)
	defer near.Close()
	each := func(do func(*announcetest.Host) error) error {
		var errs []error
		for i := range p.nodes {
			errs = append(errs, do(n.Nodes[(round+i)%len(n.Nodes)]))
		}
		return errors.Join(errs...)
	}
	if err := each(p.apart); err != nil {
		return announcetest.Worst{}, err
	}
	var worst announcetest.Worst
	if p.far {
		far := announcetest.NewWatch(segments[1], addrs, askInterval)
		time.Sleep(phase)
		worst = far.Take()
		far.Close()
	} else {
		time.Sleep(phase)
	}
	if err := each(p.together); err != nil {
		return announcetest.Worst{}, err
	}
	time.Sleep(phase)
	other := near.Take()
	return announcetest.Worst{
		Twice: max(worst.Twice, other.Twice), None: max(worst.None, other.None), Asked: worst.Asked + other.Asked,
	}, nil
}
