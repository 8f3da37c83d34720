// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"net/netip"
	"time"

	"github.com/causeway-lb/causeway/internal/testkit/announcetest"
	"github.com/causeway-lb/causeway/test/bench/report"
)

// askInterval is how often the segment is asked who answers, and how long an
// answer may take.
const askInterval = 20 * time.Millisecond

// planned stops agents and kills them at 200 datagrams a second.
func planned(ctx context.Context, o *options, r *report.Report) error {
	if o.planned == 0 {
		return nil
	}
	for _, vip := range []netip.Addr{vip4, vip6} {
		family := map[bool]string{true: "IPv4", false: "IPv6"}[vip.Is4()]
		for _, how := range []struct {
			name string
			do   func(*announcetest.Host)
		}{
			{"agent told to stop", (*announcetest.Host).Stop},
			{"agent killed", (*announcetest.Host).Kill},
		} {
			var lost, unanswered []float64
			err := with(announcetest.Options{}, vip, func(l *lan, host *announcetest.Host) error {
				asker, err := announcetest.NewAsker(l.Client)
				if err != nil {
					return err
				}
				defer asker.Close()
				return l.repeat(ctx, o.planned, host, func(i int, host *announcetest.Host) error {
					w := announcetest.NewWatch(asker, []netip.Addr{vip}, askInterval)
					do := func() error { how.do(host); return nil }
					_, sent, echoes, err := l.during(5*time.Millisecond, do, func(since time.Time) bool {
						return time.Since(since) > time.Second && l.taken(host)(since.Add(-time.Second))
					})
					worst := w.Take()
					w.Close()
					if err != nil {
						return err
					}
					lost = append(lost, float64(sent-len(echoes)))
					unanswered = append(unanswered, worst.None.Seconds())
					progress("%s %d of %d (%s): %d of %d lost, no answer for %3d ms", how.name, i+1, o.planned, family, sent-len(echoes), sent, worst.None.Milliseconds())
					return host.Start()
				})
			})
			if err != nil {
				return err
			}
			name := how.name + ", 200 datagrams/s, " + family
			r.Add(report.Line{Case: name, Metric: "lost", Unit: "datagrams", Ours: report.Summarise("", lost)})
			r.Add(report.Line{Case: name, Metric: "unanswered", Unit: "s", Ours: report.Summarise("", unanswered)})
		}
	}
	return nil
}
