// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"time"

	"github.com/causeway-lb/causeway/internal/testkit/announcetest"
	"github.com/causeway-lb/causeway/test/bench/report"
)

// samples are figures by metric.
type samples map[string][]float64

func (s samples) add(metric string, d time.Duration) { s[metric] = append(s[metric], d.Seconds()) }

// cutOff measures the announcer's cut from the LAN, ours for both families beside
// the peer.
func cutOff(ctx context.Context, o *options, r *report.Report) error {
	peer := samples{}
	for _, side := range []struct {
		name  string
		v6    bool
		count int
		lan   bool
	}{
		{"peer", false, o.peerCuts, true},
		{"IPv4", false, o.cuts, false},
		{"IPv6", true, o.cuts6, false},
	} {
		got := samples{}
		if side.count == 0 {
			continue
		}
		vip := vip4
		if side.v6 {
			vip = vip6
		}
		err := with(announcetest.Options{LAN: side.lan}, vip, func(l *lan, host *announcetest.Host) error {
			return l.repeat(ctx, side.count, host, func(i int, host *announcetest.Host) error {
				outage, at, err := l.outage(host, host.Cut)
				if err != nil {
					return err
				}
				detect, err := l.detected(host, at)
				if err != nil {
					return err
				}
				got.add("detect", detect)
				got.add("outage", outage)
				progress("cut %d of %d (%s): detected after %3d ms, outage %3d ms", i+1, side.count, side.name, detect.Milliseconds(), outage.Milliseconds())
				return host.Mend()
			})
		})
		if err != nil {
			return err
		}
		if side.lan {
			peer = got
			continue
		}
		for _, metric := range []string{"detect", "outage"} {
			line := report.Line{Case: "3 nodes, cut off, " + side.name, Metric: metric, Unit: "s", Ours: report.Summarise("", got[metric])}
			if len(peer[metric]) > 0 && !side.v6 {
				theirs := report.Summarise(peerName, peer[metric])
				line.Peer = &theirs
			}
			r.Add(line)
		}
	}
	return nil
}

// linkDown measures a link that its own node sees go down.
func linkDown(ctx context.Context, o *options, r *report.Report) error {
	if o.linkDowns == 0 {
		return nil
	}
	got := samples{}
	err := with(announcetest.Options{Management: true}, vip4, func(l *lan, host *announcetest.Host) error {
		return l.repeat(ctx, o.linkDowns, host, func(i int, host *announcetest.Host) error {
			outage, _, err := l.outage(host, func() error { return host.Net.Down("eth0") })
			if err != nil {
				return err
			}
			got.add("outage", outage)
			progress("link down %d of %d: outage %3d ms", i+1, o.linkDowns, outage.Milliseconds())
			return host.Net.Up("eth0")
		})
	})
	if err != nil {
		return err
	}
	r.Add(report.Line{Case: "own link down", Metric: "outage", Unit: "s", Ours: report.Summarise("", got["outage"])})
	return nil
}
