// SPDX-License-Identifier: Apache-2.0

package l2

import (
	"slices"
	"time"

	"github.com/causeway-lb/causeway/internal/announce"
	"github.com/causeway-lb/causeway/internal/announce/elect"
	"github.com/causeway-lb/causeway/internal/announce/members"
)

// maxSuppression is how long clients are left with a node whose agent is gone. One
// that is upgraded or restarted is back sooner; its rules grow stale. maxReturn is
// how long such an agent, once it is back, may take until it can announce again.
const (
	maxSuppression = time.Minute
	maxReturn      = 5 * time.Second
)

// phase is how far the node that announced before has gone.
type phase uint8

const (
	// gone: clients have to come here.
	gone phase = iota
	// agentGone: its agent died, or is only starting, while its kernel goes on
	// forwarding. Clients are left with it.
	agentGone
	// agentBack: so they are while the agent is back, but may not announce yet.
	agentBack
)

// succession is what an entry knows of the node that announced its address before
// this one was elected.
type succession struct {
	former string // that node; "" for none
	phase  phase
	since  time.Time // of this node's election
	back   time.Time // of agentBack
}

// newSuccession begins when this node is elected. former is the node that was
// elected before; unless that is known, as after a start of this agent, it is
// taken from the API server.
//
// When all agents are restarted together, the first one to be ready takes no clients
// from where their connections are: so phase is agentGone also if the former node's
// agent has only just come back and is not ready yet, or was so when this agent
// started.
func newSuccession(now time.Time, c *cluster, ad *announce.Advertisement, former string, known bool) succession {
	if !known {
		former = ad.Recorded
	}
	s := succession{former: former, since: now}
	m := c.member(former)
	if m.State == members.HostAnswers || (!known || now.Sub(m.Since) <= maxReturn) && starting(c, ad, former) {
		s.phase = agentGone
	}
	return s
}

// starting reports whether a node's agent is not ready to announce ad yet.
func starting(c *cluster, ad *announce.Advertisement, node string) bool {
	n := slices.IndexFunc(c.desired.Nodes, func(n elect.Node) bool { return n.Name == node })
	if n < 0 {
		return false
	}
	reason := elect.Eligibility(&c.desired.Nodes[n], &ad.Address)
	return reason == elect.NotProgrammed || reason == elect.NotYetReporting
}

// suppress reports whether the address is to be answered for without announcing it.
// It stays so when the former agent is back, until that takes over, or for as long as
// that may take; also if this node is not elected in between, because what the others
// know of an agent that is back may be from before. m is the former node.
func (s *succession) suppress(now time.Time, m members.Member, elected bool) bool {
	switch {
	case s.phase == gone:
	case now.Sub(s.since) > maxSuppression:
		s.phase = gone
	case m.Alive() && s.phase == agentGone:
		s.phase, s.back = agentBack, now
	case m.Alive():
		if now.Sub(s.back) > maxReturn {
			s.phase = gone
		}
	case elected && m.State != members.HostAnswers:
		s.phase = gone
	default:
		s.phase = agentGone
	}
	return s.phase != gone
}

// overdue reports whether suppress is to be asked again, for time alone.
func (s *succession) overdue(now time.Time) bool {
	return s.phase != gone && now.Sub(s.since) > maxSuppression || s.phase == agentBack && now.Sub(s.back) > maxReturn
}
