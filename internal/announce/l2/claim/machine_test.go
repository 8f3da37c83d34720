// SPDX-License-Identifier: Apache-2.0

package claim

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/causeway-lb/causeway/internal/announce/nodeinfo"
)

// log is a Port that records its calls.
type log struct{ lines []string }

func (l *log) Probe(to nodeinfo.MAC) {
	if to.IsZero() {
		l.lines = append(l.lines, "probe")
	} else {
		l.lines = append(l.lines, "probe "+to.String()[15:])
	}
}
func (l *log) Announce() { l.lines = append(l.lines, "announce") }
func (l *log) Answer(on bool) {
	l.lines = append(l.lines, map[bool]string{true: "answer", false: "silent"}[on])
}

// bench drives one machine through time.
type bench struct {
	t   *testing.T
	m   *Machine
	log *log
	now time.Time
}

func newBench(t *testing.T) *bench {
	l := &log{}
	return &bench{t: t, m: New(DefaultTiming(), l), log: l, now: time.Unix(1000, 0)}
}

// run lets d pass.
func (b *bench) run(d time.Duration) {
	end := b.now.Add(d)
	for !b.m.Deadline().IsZero() && !b.m.Deadline().After(end) {
		b.now = b.m.Deadline()
		b.m.Tick(b.now)
	}
	b.now = end
}

func (b *bench) set(w Want)             { b.m.Set(b.now, w) }
func (b *bench) hear(k Kind, from Peer) { b.m.Hear(b.now, k, from) }

// expect compares what was sent since the last call, and the state.
func (b *bench) expect(state State, sent ...string) {
	b.t.Helper()
	got := b.log.lines
	b.log.lines = nil
	if diff := cmp.Diff(strings.Join(sent, ", "), strings.Join(got, ", ")); diff != "" {
		b.t.Errorf("sent (-want +got):\n%s", diff)
	}
	if s, _ := b.m.State(); s != state {
		b.t.Errorf("state %v, want %v", s, state)
	}
}

var (
	elected            = Want{Role: Elected, Elected: "me"}
	hurry              = Want{Role: Elected, Elected: "me", Hurry: true}
	suppressGratuitous = Want{Role: Elected, Elected: "me", Hurry: true, SuppressGratuitous: true}
	better             = Peer{Name: "better", MAC: nodeinfo.MAC{2, 0, 0, 0, 0, 1}, Alive: true, Eligible: true, Outranks: true}
	worse              = Peer{Name: "worse", MAC: nodeinfo.MAC{2, 0, 0, 0, 0, 9}, Alive: true, Eligible: true}
	conflicting        = Peer{MAC: nodeinfo.MAC{2, 0, 0, 0, 0, 0x66}}
)

func lost(p Peer) Peer { p.Alive, p.Eligible = false, false; return p }

// announcing returns a machine that has announced for a while.
func announcing(t *testing.T, w Want) *bench {
	b := newBench(t)
	b.set(w)
	b.run(10 * time.Second)
	if s, _ := b.m.State(); s != Announcing {
		t.Fatalf("state %v after 10 s of silence", s)
	}
	b.log.lines = nil
	return b
}

func TestSilenceLeadsToAnnouncement(t *testing.T) {
	b := newBench(t)
	b.set(elected)
	b.run(349 * time.Millisecond)
	b.expect(Probing, "probe", "probe", "probe")
	b.run(time.Millisecond)
	b.expect(Announcing, "answer", "announce")
	b.run(3 * time.Second) // more than a second later once more, because of locktime
	b.expect(Announcing, "announce", "announce", "announce", "announce")
	b.run(70 * time.Second)
	b.expect(Announcing, "probe", "announce") // has a conflicting host come?
}

// TestSuppressGratuitous: questions are answered, but nothing is announced, until it ends.
func TestSuppressGratuitous(t *testing.T) {
	b := newBench(t)
	b.set(suppressGratuitous)
	b.run(10 * time.Second)
	b.expect(Announcing, "probe", "probe", "answer")
	b.m.Reannounce()
	b.expect(Announcing)
	b.set(hurry)
	b.expect(Announcing, "announce")
	b.run(3 * time.Second)
	b.expect(Announcing, "announce", "announce", "announce", "announce")
}

// TestQuietGivesWay: an announcement in answer to that of the node where the
// clients are would bring them here.
func TestQuietGivesWay(t *testing.T) {
	b := newBench(t)
	b.set(suppressGratuitous)
	b.run(40 * time.Millisecond)
	b.expect(Announcing, "probe", "probe", "answer")
	b.hear(Advertisement, worse)
	b.expect(Backup, "silent")
}

func TestHurry(t *testing.T) {
	b := newBench(t)
	b.set(hurry)
	b.run(40 * time.Millisecond)
	b.expect(Announcing, "probe", "probe", "answer", "announce")

	b = newBench(t)
	b.set(elected)
	b.run(30 * time.Millisecond)
	b.set(hurry)
	b.run(40 * time.Millisecond)
	b.expect(Announcing, "probe", "probe", "probe", "answer", "announce")
}

func TestSlack(t *testing.T) {
	b := newBench(t)
	w := hurry
	w.Slack = 100 * time.Millisecond
	b.set(w)
	b.run(139 * time.Millisecond)
	b.expect(Probing, "probe", "probe")
	b.run(time.Millisecond)
	b.expect(Announcing, "answer", "announce")
}

func TestConflictingHostIsNotFought(t *testing.T) {
	b := newBench(t)
	b.set(elected)
	b.hear(Advertisement, conflicting)
	b.expect(Conflicting, "probe")
	if got := b.m.Conflict(b.now).MAC; got != conflicting.MAC {
		t.Errorf("conflict with %v", got)
	}
	b.run(10 * time.Second)
	b.expect(Probing, "probe")
	b.hear(Advertisement, conflicting) // still there
	b.run(10*time.Second + 350*time.Millisecond)
	b.expect(Announcing, "probe", "probe", "probe", "answer", "announce") // gone
	if got := b.m.Conflict(b.now); got != (Conflict{}) {
		t.Errorf("conflict %v after a silent probe", got)
	}
}

// TestConflictingHostThatProbes: it does not use the address. The node looks once more,
// immediately, and not without end.
func TestConflictingHostThatProbes(t *testing.T) {
	b := newBench(t)
	b.set(hurry)
	b.run(30 * time.Millisecond)
	b.expect(Probing, "probe", "probe")
	b.hear(Probe, conflicting)
	b.expect(Probing, "probe")
	b.run(39 * time.Millisecond)
	b.expect(Probing, "probe")
	b.run(time.Millisecond)
	b.expect(Announcing, "answer", "announce")
	if c := b.m.Conflict(b.now); !c.MAC.IsZero() {
		t.Errorf("conflict with %v, which has not claimed the address", c.MAC)
	}

	b = newBench(t)
	b.set(hurry)
	for range 12 {
		b.hear(Probe, conflicting)
		b.run(10 * time.Millisecond)
	}
	if !b.m.Answers() {
		t.Error("held up by a conflicting host that probes without end")
	}

	b = newBench(t)
	b.set(hurry)
	b.hear(Probe, conflicting)
	b.hear(Advertisement, conflicting) // now it does
	b.expect(Conflicting, "probe", "probe")
}

func TestDefendsOncePerInterval(t *testing.T) {
	b := announcing(t, elected)
	for range 5 {
		b.hear(Advertisement, conflicting)
		b.run(time.Second)
	}
	b.expect(Announcing, "announce")
	if b.m.Conflict(b.now).MAC != conflicting.MAC {
		t.Error("the conflict is not reported")
	}
	b.run(6 * time.Second)
	b.hear(Advertisement, conflicting)
	b.expect(Announcing, "announce")
	b.run(61 * time.Second)
	if b.m.Conflict(b.now) != (Conflict{}) {
		t.Error("the conflict is still reported a minute after it was last heard")
	}
}

func TestLinkFencesWhenMembershipIsWrong(t *testing.T) {
	b := newBench(t)
	b.set(hurry)
	b.hear(Advertisement, lost(better)) // it answers the probe
	b.expect(Backup, "probe")
	b.run(200 * time.Millisecond)
	b.expect(Backup, "probe 01") // it alone is asked
	b.hear(Advertisement, lost(better))
	b.run(280 * time.Millisecond) // 200 ms, then it does not answer
	b.expect(Announcing, "probe 01", "probe", "probe", "answer", "announce")
}

func TestTakesOverFromOneItOutranks(t *testing.T) {
	b := newBench(t)
	b.set(elected)
	b.hear(Advertisement, lost(worse))
	b.expect(Announcing, "probe", "answer", "announce")
	b.hear(Advertisement, lost(worse)) // not heard yet
	b.expect(Announcing, "announce")
}

func TestTwoProbing(t *testing.T) {
	b := newBench(t)
	b.set(elected)
	b.hear(Probe, worse)
	b.expect(Probing, "probe")
	b.hear(Probe, better)
	b.expect(Backup)
}

func TestTwoAnnouncing(t *testing.T) {
	b := announcing(t, elected)
	b.hear(Advertisement, lost(worse))
	b.expect(Announcing, "announce")
	b.hear(Advertisement, lost(better))
	b.expect(Backup, "silent")
}

// TestCrossedAnnouncements: the former holder's last announcements, sent before it heard the
// new one, do not silence both. An announcement is several frames.
func TestCrossedAnnouncements(t *testing.T) {
	b := newBench(t)
	b.set(hurry)
	b.run(40 * time.Millisecond)
	b.log.lines = nil
	b.hear(Advertisement, better)
	b.expect(Announcing, "announce")
	b.hear(Advertisement, better)
	b.run(99 * time.Millisecond)
	b.expect(Announcing)
	b.run(time.Millisecond)
	b.expect(Announcing, "announce")
	b.hear(Advertisement, better) // it insists
	b.expect(Backup, "silent")
}

func TestFailback(t *testing.T) {
	preemptDelay := DefaultTiming().PreemptDelay
	tests := []struct {
		name    string
		preempt time.Duration
		holder  Peer
		after   time.Duration // taken not before, and immediately then; -1: never
	}{
		{"immediate", 0, worse, preemptDelay},
		{"immediate, from one that outranks (bounded load)", 0, better, preemptDelay},
		{"delayed", time.Minute, worse, time.Minute},
		{"never", -1, worse, -1},
		{"never, but the holder may not announce any longer", -1, Peer{Name: "p", Alive: true}, preemptDelay},
		{"never, but membership lost the holder", -1, lost(worse), 0},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			b := newBench(t)
			w := elected
			w.Preempt = tc.preempt
			b.set(w)
			start, took := b.now, time.Duration(-1)
			for b.now.Sub(start) < 2*time.Minute {
				for _, l := range b.log.lines {
					if strings.HasPrefix(l, "probe") {
						b.hear(Advertisement, tc.holder)
						break
					}
				}
				b.log.lines = nil
				if b.m.Answers() {
					took = b.now.Sub(start)
					break
				}
				b.run(10 * time.Millisecond)
			}
			if (tc.after < 0) != (took < 0) || took < tc.after || took > tc.after+20*time.Millisecond && tc.after >= 0 {
				t.Errorf("taken after %v, want %v", took, tc.after)
			}
		})
	}
}

func TestHolderThatBecomesIneligibleIsRelieved(t *testing.T) {
	b := newBench(t)
	w := elected
	w.Preempt = -1
	b.set(w)
	b.hear(Advertisement, worse)
	b.expect(Backup, "probe")
	b.set(w) // membership has changed
	cordoned := worse
	cordoned.Eligible = false
	b.hear(Advertisement, cordoned)
	b.hear(Advertisement, cordoned)
	b.run(99 * time.Millisecond) // the holder may not know yet
	b.expect(Backup, "probe 09")
	b.run(time.Millisecond)
	b.expect(Announcing, "answer", "announce")
}

// TestHandOver: the old announcer answers until it has heard its successor.
func TestHandOver(t *testing.T) {
	for _, role := range []Role{Standby, Barred} {
		b := announcing(t, elected)
		b.set(Want{Role: role, Elected: "better"})
		b.run(time.Second)
		if !b.m.Answers() {
			t.Fatalf("%v: stopped before its successor was heard", role)
		}
		b.log.lines = nil
		b.hear(Advertisement, better)
		b.expect(Idle, "silent")
	}
}

func TestReleaseEndsWithoutSuccessor(t *testing.T) {
	b := announcing(t, elected)
	b.set(Want{Role: Barred})
	b.run(time.Second)
	b.set(elected) // back in time
	b.expect(Announcing)
	b.set(Want{Role: Barred})
	b.run(1999 * time.Millisecond)
	b.expect(Releasing)
	b.run(time.Millisecond)
	b.expect(Idle, "silent")
}

func TestRemovedStopsAtOnce(t *testing.T) {
	b := announcing(t, elected)
	b.set(Want{Role: None})
	b.expect(Idle, "silent")
	b = announcing(t, elected)
	b.m.Lost(b.now)
	b.expect(Idle, "silent")
}

// TestSetIsIdempotent: however often the same is said, the same happens.
func TestSetIsIdempotent(t *testing.T) {
	for _, often := range []bool{false, true} {
		b := newBench(t)
		b.set(elected)
		b.hear(Advertisement, lost(better))
		for range 100 {
			if often {
				b.set(elected)
			}
			b.run(5 * time.Millisecond)
		}
		if s, _ := b.m.State(); s != Announcing {
			t.Errorf("often %v: state %v, want the silent holder to be succeeded", often, s)
		}
	}
}

// TestHints: what everybody can send again makes a node ask, and nothing else.
func TestHints(t *testing.T) {
	hint := func(p Peer) Peer { p.Hint = true; return p }
	b := announcing(t, elected)
	b.hear(Advertisement, hint(better))
	b.expect(Announcing, "probe 01")
	b.hear(Advertisement, hint(better)) // immediately again
	b.expect(Announcing)
	b.hear(Advertisement, better)
	b.expect(Backup, "silent")

	b = announcing(t, elected)
	for range 50 {
		b.hear(Advertisement, hint(worse))
		b.run(10 * time.Millisecond)
	}
	b.expect(Announcing, "announce", "announce", "announce", "announce", "announce", "announce")

	// The last word is this node's, though the last announcement comes too soon to
	// answer it immediately.
	b = announcing(t, elected)
	b.hear(Advertisement, hint(worse))
	b.run(10 * time.Millisecond)
	b.hear(Advertisement, hint(worse))
	b.expect(Announcing, "announce")
	b.run(90 * time.Millisecond)
	b.expect(Announcing, "announce")

	b = announcing(t, elected)
	b.set(Want{Role: Barred, Elected: "better"})
	b.hear(Advertisement, hint(better))
	b.expect(Releasing, "probe 01")
	b.run(200 * time.Millisecond)
	b.expect(Releasing, "probe 01") // once more: question or answer may be lost
	b.run(200 * time.Millisecond)
	b.expect(Releasing)
	b.hear(Advertisement, better)
	b.expect(Idle, "silent")

	b = newBench(t)
	b.set(elected)
	b.run(349 * time.Millisecond)
	b.hear(Advertisement, hint(better))
	b.expect(Probing, "probe", "probe", "probe", "probe 01")
	b.run(149 * time.Millisecond)
	b.expect(Probing)
	b.run(2 * time.Millisecond)
	b.expect(Announcing, "answer", "announce")
}

// TestForgedProbes: probes in the name of a better node do not keep this one from
// the address.
func TestForgedProbes(t *testing.T) {
	b := newBench(t)
	b.set(hurry)
	for range 200 {
		if s, _ := b.m.State(); s == Announcing {
			return
		}
		p := better
		p.Hint = true
		b.hear(Probe, p)
		b.run(10 * time.Millisecond)
	}
	t.Error("not announced after two seconds")
}

func TestBoundOnANode(t *testing.T) {
	b := announcing(t, elected)
	p := conflicting
	p.Host, p.HostInterface = "node-2", "eth0"
	b.hear(Advertisement, p)
	if diff := cmp.Diff(Conflict{MAC: p.MAC, Node: "node-2", Interface: "eth0", Last: b.now}, b.m.Conflict(b.now)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestSwitchAnswersFromMemory: answers with a node's hardware address that its agent
// has not sent.
func TestSwitchAnswersFromMemory(t *testing.T) {
	memory := Peer{MAC: better.MAC, Host: better.Name}
	t.Run("of one that is alive and answers itself", func(t *testing.T) {
		b := newBench(t)
		b.set(elected)
		b.hear(Advertisement, memory)
		b.expect(Probing, "probe", "probe 01")
		b.hear(Advertisement, better)
		b.expect(Backup)
	})
	t.Run("of one that is alive and does not", func(t *testing.T) {
		b := newBench(t)
		b.set(elected)
		b.hear(Advertisement, memory)
		b.run(350 * time.Millisecond)
		b.expect(Conflicting, "probe", "probe 01", "probe", "probe")
		if c := b.m.Conflict(b.now); c.Node != better.Name {
			t.Errorf("conflict %+v does not name the node", c)
		}
	})
	t.Run("of the dead", func(t *testing.T) {
		dead := memory
		dead.HostDead, dead.Cached = true, true
		b := newBench(t)
		b.set(hurry)
		for range 4 {
			b.hear(Advertisement, dead)
			b.run(10 * time.Millisecond)
		}
		b.expect(Announcing, "probe", "probe", "answer", "announce")
	})
	t.Run("of one whose kernel may have the address", func(t *testing.T) {
		dead := memory
		dead.HostDead = true
		b := newBench(t)
		b.set(hurry)
		start := b.now
		for !b.m.Answers() && b.now.Sub(start) < time.Minute {
			b.hear(Advertisement, dead)
			b.run(10 * time.Millisecond)
		}
		if took := b.now.Sub(start); took < maxStale || took > maxStale+100*time.Millisecond {
			t.Errorf("taken after %v, want %v", took, maxStale)
		}
	})
}

// TestAsksTheElected: a node that goes on announcing asks the one that is elected
// now and then, which it may not have heard, and stops when that answers.
func TestAsksTheElected(t *testing.T) {
	b := announcing(t, elected)
	b.set(Want{Role: Standby, Elected: better.Name, ElectedAt: better.MAC})
	b.run(5 * time.Second)
	b.expect(Announcing, "probe 01")
	b.hear(Advertisement, better)
	b.expect(Idle, "silent")
}
