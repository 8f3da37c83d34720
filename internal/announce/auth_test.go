// SPDX-License-Identifier: Apache-2.0

package announce_test

import (
	"net"
	"net/netip"
	"os/exec"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mdlayher/packet"

	"github.com/causeway-lb/causeway/internal/announce"
	"github.com/causeway-lb/causeway/internal/announce/elect"
	"github.com/causeway-lb/causeway/internal/announce/l2/arp"
	"github.com/causeway-lb/causeway/internal/announce/l2/ndp"
	"github.com/causeway-lb/causeway/internal/announce/l2/wire"
	"github.com/causeway-lb/causeway/internal/testkit/announcetest"
)

// TestBoundElsewhere: an address is bound to an interface of another node, as other
// announcers leave it behind. That node's kernel answers with its own hardware
// address, but it is not its agent that does: the conflict names node and
// interface.
func TestBoundElsewhere(t *testing.T) {
	for _, a := range []netip.Addr{vip4, vip6} {
		t.Run(a.String(), func(t *testing.T) {
			l := startLAN(t, announcetest.Options{Nodes: 3, Addresses: []netip.Addr{a}})
			host := l.announcer(a)
			ranked := l.ranked(a, host)
			other := ranked[len(ranked)-1] // not the successor: what a kernel says its own host does not hear
			prefix := netip.PrefixFrom(a, a.BitLen()).String()
			l.must(other.Net.Do(func() error {
				return exec.Command("ip", "addr", "add", prefix, "dev", "eth0", "nodad").Run()
			}))
			// The kernel joins the address's multicast group a moment after the command.
			l.eventually("its kernel answers", func() bool { return slices.Contains(l.ask(a), other.MAC) })
			// A handover has the successor look at the link.
			l.must(host.InSync(false))
			l.eventually("the conflict names node and interface", func() bool {
				for _, r := range l.Last(a) {
					if r.ConflictingHost == other.MAC && r.ConflictingNode == other.Name && r.ConflictingInterface == "eth0" {
						return true
					}
				}
				return false
			})
		})
	}
}

// TestForgedAdvertisements: a host without the gossip key says that an address is at a
// node's hardware address. Whichever node that is, the announcer goes on, does not
// broadcast for each of the frames, and reports it.
func TestForgedAdvertisements(t *testing.T) {
	for _, a := range []netip.Addr{vip4, vip6} {
		t.Run(a.String(), func(t *testing.T) {
			l := startLAN(t, announcetest.Options{Nodes: 3, Addresses: []netip.Addr{a}})
			best := l.announcer(a)
			l.must(best.InSync(false)) // it comes before the announcer now, and does not announce
			l.eventually("the next one announces", l.takenFrom(best, a))
			host := l.announcer(a)
			time.Sleep(3 * time.Second) // the announcement and its repeats are over
			for _, other := range l.ranked(a, host) {
				sent := l.count(a, host.MAC)
				for range 200 {
					l.must(l.asker.Claim(a, other.MAC))
					time.Sleep(time.Millisecond)
				}
				if n := sent(); n > 20 {
					t.Errorf("%d announcements in answer to 200 forged claims", n)
				}
				if macs := l.ask(a); !slices.Equal(macs, []wire.MAC{host.MAC}) {
					t.Fatalf("after forged claims of %s %v answer, want %v", other.Name, macs, host.MAC)
				}
				l.eventually("it is reported", func() bool {
					r := l.Last(a)[host.Name]
					return r.State == announce.Announced && r.ConflictingHost == other.MAC && r.ConflictingNode == other.Name
				})
			}
		})
	}
}

// TestReplayedFrames: what agents have sent is recorded and sent again, immediately
// and later. The announcer goes on, and no other node begins.
func TestReplayedFrames(t *testing.T) {
	for _, a := range []netip.Addr{vip4, vip6} {
		t.Run(a.String(), func(t *testing.T) {
			l := newLAN(t, announcetest.Options{Nodes: 3, Addresses: []netip.Addr{a}})
			frames := l.record(a)
			l.must(l.Start())
			l.announcer(a)
			// Let two nodes have announced it.
			host := l.announcer(a)
			l.must(host.InSync(false))
			l.eventually("another node announces", l.takenFrom(host, a))
			l.must(host.InSync(true))
			l.eventually("it is back", func() bool {
				return l.announcer(a) == host && !l.takenFrom(host, a)()
			})
			recorded := frames()
			if len(recorded) == 0 {
				t.Fatal("no frame was recorded")
			}
			for range 3 {
				for _, f := range recorded {
					l.must(l.asker.Send(f))
				}
				if macs := l.ask(a); !slices.Equal(macs, []wire.MAC{host.MAC}) {
					t.Fatalf("after recorded frames %v answer, want %v", macs, host.MAC)
				}
				time.Sleep(time.Second)
			}
		})
	}
}

// ranked returns the nodes other than h, the best for a first.
func (l *lan) ranked(a netip.Addr, h *announcetest.Host) []*announcetest.Host {
	order := l.others(h)
	slices.SortFunc(order, func(x, y *announcetest.Host) int {
		if elect.Outranks(a, x.Name, y.Name) {
			return -1
		}
		return 1
	})
	return order
}

func protocol(a netip.Addr) wire.Protocol {
	if a.Is6() {
		return ndp.Protocol{}
	}
	return arp.Protocol{}
}

// listen calls take for every frame on the client's port until the test ends.
func (l *lan) listen(a netip.Addr, take func(frame []byte)) {
	l.t.Helper()
	l.must(l.Client.Do(func() error {
		index, err := l.Client.Index("eth0")
		if err != nil {
			return err
		}
		c, err := packet.Listen(&net.Interface{Index: index}, packet.Raw, int(protocol(a).EtherType()), nil)
		if err != nil {
			return err
		}
		l.t.Cleanup(func() { c.Close() })
		go func() {
			for buf := make([]byte, 2048); ; {
				n, _, err := c.ReadFrom(buf)
				if err != nil {
					return
				}
				take(buf[:n])
			}
		}()
		return nil
	}))
}

// count counts the broadcast advertisements of a by mac from now on.
func (l *lan) count(a netip.Addr, mac wire.MAC) func() int {
	var n atomic.Int64
	l.listen(a, func(frame []byte) {
		protocol(a).Parse(frame, func(m wire.Message) {
			if m.Kind == wire.Advertisement && m.Address == a && m.From == mac && m.To.IsGroup() {
				n.Add(1)
			}
		})
	})
	return func() int { return int(n.Load()) }
}

// record returns the sealed frames about a that were broadcast.
func (l *lan) record(a netip.Addr) func() [][]byte {
	frames := make(chan []byte, 4096)
	l.listen(a, func(frame []byte) {
		protocol(a).Parse(frame, func(m wire.Message) {
			if m.Address == a && !m.Seal.IsZero() {
				select {
				case frames <- slices.Clone(frame):
				default:
				}
			}
		})
	})
	return func() (out [][]byte) {
		for {
			select {
			case f := <-frames:
				out = append(out, f)
			default:
				return out
			}
		}
	}
}
