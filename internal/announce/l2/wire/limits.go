// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"hash/maphash"

	"golang.org/x/time/rate"
)

// Limits of what a Conn answers, against floods of questions. One asker's is
// so much lower than that of all that several can flood while the others are answered,
// and high enough for a router that has lost its neighbors to ask for thousands of
// addresses in one burst.
const (
	answersPerSecond = 20_000
	answersBurst     = 10_000
	askerPerSecond   = 5_000
	askerBurst       = 5_000

	// askers are distinguished by a hash of their hardware address, so that a flood
	// from made-up ones costs no memory. Two that share a place share its limit.
	askers = 512
)

// limits decide which hosts are answered. Safe for concurrent use.
type limits struct {
	seed     maphash.Seed // no host on the link can choose an address to share another's place
	asker    [askers]*rate.Limiter
	everyone *rate.Limiter
}

func newLimits() *limits {
	l := &limits{seed: maphash.MakeSeed(), everyone: rate.NewLimiter(answersPerSecond, answersBurst)}
	for i := range l.asker {
		l.asker[i] = rate.NewLimiter(askerPerSecond, askerBurst)
	}
	return l
}

// allow reports whether one more answer may go to an asker. An asker
// above its limit takes nothing from the others.
func (l *limits) allow(from MAC) bool {
	return l.asker[maphash.Bytes(l.seed, from[:])%askers].Allow() && l.everyone.Allow()
}
