// SPDX-License-Identifier: Apache-2.0

package l2

import (
	"sync"
	"sync/atomic"
	"testing"

	"github.com/causeway-lb/causeway/internal/announce/l2/wire"
	"github.com/causeway-lb/causeway/internal/announce/members"
)

// fakeKeyring has one secret with each node, and a clock that stands still.
type fakeKeyring struct {
	keys  atomic.Pointer[members.Keys]
	stamp atomic.Uint32
}

func newKeyring(keys ...string) *fakeKeyring {
	k := &fakeKeyring{}
	k.set(keys...)
	return k
}

func (k *fakeKeyring) set(keys ...string) {
	next := &members.Keys{}
	for _, key := range keys {
		next.Accepted = append(next.Accepted, []byte(key))
	}
	k.keys.Store(next)
}

func (k *fakeKeyring) Keys() *members.Keys         { return k.keys.Load() }
func (k *fakeKeyring) Secrets(string) [][]byte     { return [][]byte{[]byte("of the two")} }
func (k *fakeKeyring) Stamp() uint32               { return k.stamp.Load() }
func (k *fakeKeyring) Clock(string) (uint32, bool) { return k.stamp.Load(), true }

// TestFrameAuth: a question is a hint, its answer a proof, for the time that an answer
// takes, and both follow a change of the gossip key.
func TestFrameAuth(t *testing.T) {
	ringA, ringB := newKeyring("old"), newKeyring("old")
	a, b := newFrameAuth("node-1", ringA), newFrameAuth("node-2", ringB)
	a.know(map[string]bool{"node-2": false})
	b.know(map[string]bool{"node-1": false})
	question := func() wire.Message {
		return wire.Message{Kind: wire.Probe, Address: vip, From: mac(1), To: wire.Broadcast, Seal: a.hint(mac(1))(wire.Probe, vip)}
	}
	answer := func(q wire.Message) wire.Message {
		return wire.Message{Kind: wire.Advertisement, Address: vip, From: mac(2), To: mac(1), Seal: b.answer(mac(2))(q)}
	}
	expect := func(what string, at *frameAuth, m wire.Message, self wire.MAC, node string, level verification) {
		t.Helper()
		if n, l := at.sender(m, self, nil); n != node || l != level {
			t.Errorf("%s: from %q, level %d; want %q, %d", what, n, l, node, level)
		}
	}
	exchange := func(what string) {
		t.Helper()
		q := question()
		expect(what+": question", b, q, mac(2), "node-1", unverified)
		expect(what+": answer", a, answer(q), mac(1), "node-2", verified)
	}
	exchange("at first")
	q := question()
	late := answer(q)
	ringA.stamp.Add(uint32(answerAge/members.StampUnit) + 1)
	expect("an answer that comes late", a, late, mac(1), "", replayed)
	expect("another's answer", a, late, mac(3), "", replayed)
	ringB.stamp.Add(uint32(hintAge/members.StampUnit) + 1)
	expect("a question recorded long ago", b, q, mac(2), "node-1", replayed)
	ringA.stamp.Store(ringB.stamp.Load())

	ringB.set("old", "new")
	exchange("the other has the new key, too")
	ringA.set("new", "old")
	exchange("this one uses the new key")
	ringA.set("new")
	ringB.set("new")
	exchange("the old key is gone")
	ringB.set("other")
	expect("another key", b, question(), mac(2), "", foreign)
}

// TestFrameAuthWhileNodesChange: answers, also to nodes that are not known, do not
// wait for each other where nodes and keys change meanwhile.
func TestFrameAuthWhileNodesChange(t *testing.T) {
	ring := newKeyring("a")
	auth := newFrameAuth("node-1", ring)
	unknown := newFrameAuth("node-9", newKeyring("a"))
	q := wire.Message{Kind: wire.Probe, Address: vip, From: mac(9), Seal: unknown.hint(mac(9))(wire.Probe, vip)}
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			for n := range 2000 {
				switch i {
				case 0:
					auth.know(map[string]bool{[]string{"node-2", "node-3"}[n%2]: false})
				case 1:
					ring.set([]string{"a", "b"}[n%2])
				default:
					if seal := auth.answer(mac(1))(q); seal.Kind() != wire.Hint {
						t.Errorf("an answer to a node that is not known: %v", seal.Kind())
						return
					}
				}
			}
		})
	}
	wg.Wait()
}
