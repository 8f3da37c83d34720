// SPDX-License-Identifier: Apache-2.0

package announce_test

import (
	"net/netip"
	"testing"
	"time"

	"github.com/causeway-lb/causeway/internal/announce/l2/wire"
	"github.com/causeway-lb/causeway/internal/testkit/announcetest"
)

// A host floods the LAN with questions. It is answered up to a limit, what is
// left out is counted, and another host, which asks as often as a kernel does
// (three times), is answered as ever.
func TestFloodOfQuestions(t *testing.T) {
	for protocol, address := range map[string]netip.Addr{"arp": vip4, "ndp": vip6} {
		t.Run(protocol, func(t *testing.T) {
			l := startLAN(t, announcetest.Options{Nodes: 1, Addresses: []netip.Addr{address}})
			flooder, err := announcetest.NewAsker(l.Client)
			l.must(err)
			t.Cleanup(flooder.Close)
			stop, ended := make(chan struct{}), make(chan error, 1)
			// More than twice what one is answered, and little enough for busy cores to
			// read it all.
			go func() { ended <- flooder.Flood(address, wire.MAC{2, 0, 0, 0, 0, 0x66}, 12, stop) }()
			counters := func() (answers, limited float64) {
				at := time.Now()
				l.must(l.Nodes[0].InSync(true)) // whatever the command, the counters are said
				l.eventually("counters", func() bool {
					for _, e := range l.Events(at) {
						if e.Metrics != nil {
							answers = e.Metrics["causeway_announce_answers_total "+protocol]
							limited = e.Metrics["causeway_announce_answers_limited_total "+protocol]
							return true
						}
					}
					return false
				})
				return answers, limited
			}
			l.eventually("answers are limited, and that is counted", func() bool {
				_, limited := counters()
				return limited > 0
			})

			unanswered := 0
			for range 30 {
				tries := 0
				for ; tries < 3 && len(l.ask(address)) == 0; tries++ {
				}
				if tries == 3 {
					unanswered++
				}
			}
			before, limitedBefore := counters()
			time.Sleep(2 * time.Second) // the counters are brought up to date once a second
			answers, limited := counters()
			close(stop)
			l.must(<-ended)
			if unanswered > 0 {
				t.Errorf("%d of 30 questions of another host were not answered in three tries", unanswered)
			}
			// Both are counted over nearly the same time.
			if rate := (answers - before) / 2; rate == 0 || rate > 4*5000 {
				t.Errorf("%.0f answers a second to one that floods", rate)
			}
			if limited <= limitedBefore {
				t.Errorf("%.0f limited, then %.0f: the flood is not limited any longer", limitedBefore, limited)
			}
			l.announcer(address)
		})
	}
}
