// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"time"

	"github.com/causeway-lb/causeway/internal/announce"
	"github.com/causeway-lb/causeway/internal/testkit/announcetest"
	"github.com/causeway-lb/causeway/test/bench/report"
)

// manyAddresses is how many one node announces, half of each family.
const manyAddresses = 2000

// many starts one node with many addresses, and then asks for each.
func many(ctx context.Context, o *options, r *report.Report) error {
	got := samples{}
	defer fmt.Fprintln(os.Stderr)
	for i := range o.starts {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err := startMany(got); err != nil {
			return err
		}
		progress("start %d of %d: all announced after %.2f s", i+1, o.starts, got["announced"][i])
	}
	for _, l := range []struct{ metric, of, unit string }{
		{"announced", "2,000 addresses on one node", "s"},
		{"arp_answer", "ARP, 2,000 addresses", "s"},
		{"ndp_answer", "NDP, 2,000 addresses", "s"},
	} {
		if len(got[l.metric]) > 0 {
			r.Add(report.Line{Case: l.of, Metric: l.metric, Unit: l.unit, Ours: report.Summarise("", got[l.metric])})
		}
	}
	return nil
}

func startMany(got samples) error {
	var addrs []netip.Addr
	for i := range manyAddresses {
		b := netip.MustParseAddr("2001:db8:0:1:1::").As16()
		b[14], b[15] = byte(i>>8), byte(i)
		a := netip.AddrFrom16(b)
		if i%2 == 0 {
			a = netip.AddrFrom4([4]byte{192, 0, byte(4 + i/250), byte(i % 250)})
		}
		addrs = append(addrs, a)
	}
	l, err := announcetest.New(announcetest.Options{Nodes: 1, Addresses: addrs, Log: os.Getenv("ANNOUNCE_LOG") != ""})
	if err != nil {
		return err
	}
	defer l.Close()
	if err := l.Change(func(c *announcetest.Command) { c.Interfaces = []string{"eth*"} }); err != nil {
		return err
	}
	start := time.Now()
	if err := l.Start(); err != nil {
		return err
	}
	for announced := 0; announced < len(addrs); time.Sleep(5 * time.Millisecond) {
		if time.Since(start) > 60*time.Second {
			return fmt.Errorf("%d of %d addresses announced after a minute", announced, len(addrs))
		}
		announced = 0
		for _, e := range l.Events(start) {
			if e.Report != nil && e.Report.State == announce.Announced {
				announced++
			}
		}
	}
	var last time.Time
	for _, e := range l.Events(start) {
		if e.Report != nil && e.At.After(last) {
			last = e.At
		}
	}
	got.add("announced", last.Sub(start))
	time.Sleep(3 * time.Second) // the announcements have been repeated
	return askAll(l, addrs, got)
}

// askAll asks for one address after the other.
func askAll(l *announcetest.LAN, addrs []netip.Addr, got samples) error {
	asker, err := announcetest.NewAsker(l.Client)
	if err != nil {
		return err
	}
	defer asker.Close()
	for _, a := range addrs {
		at, err := asker.Question(a)
		if err != nil {
			return err
		}
		var answers []announcetest.Answer
		for len(answers) == 0 {
			if time.Since(at) > time.Second {
				return fmt.Errorf("nobody answers for %v", a)
			}
			time.Sleep(200 * time.Microsecond)
			answers = asker.Answers(a, at)
		}
		if l.Node(answers[0].MAC) == nil {
			return fmt.Errorf("%v is answered by %v, which is no node", a, answers[0].MAC)
		}
		metric := "ndp_answer"
		if a.Is4() {
			metric = "arp_answer"
		}
		got.add(metric, answers[0].At.Sub(at))
	}
	return nil
}
