// SPDX-License-Identifier: Apache-2.0

package modes

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/causeway-lb/causeway/internal/conntrack"
	"github.com/causeway-lb/causeway/internal/proxy/ipvs"
	"github.com/causeway-lb/causeway/internal/proxy/model"
	"github.com/causeway-lb/causeway/internal/testkit/nstest"
)

// TestDialledBeforeProgrammed: a client that dials a Service before this node has its
// rules gets through with the next packet that it sends: when the Service is new, and
// when another mode takes over.
func TestDialledBeforeProgrammed(t *testing.T) {
	nstest.Require(t, "ip", "iptables-restore", "ip6tables-restore")
	net := newNetwork(t)
	// The node itself refuses who dials a port of its own that nobody serves.
	net.dials = slices.DeleteFunc(slices.Clone(mixed), func(d dial) bool { return d.kind == model.NodePort })
	kinds := Kinds(Configs{IPVS: ipvs.Config{DrainInterval: 50 * time.Millisecond}})
	for _, mode := range here(t, kinds) {
		if nstest.InVM() && mode != IPVS {
			continue // the machine is slow
		}
		other := NFTables
		if mode == NFTables {
			other = IPTables
		}
		t.Run("new Service, "+string(mode), func(t *testing.T) { dialledBefore(t, net, kinds, mode, mode) })
		t.Run(fmt.Sprintf("%s to %s", other, mode), func(t *testing.T) { dialledBefore(t, net, kinds, other, mode) })
	}
}

func dialledBefore(t *testing.T, net *network, kinds map[Mode]Kind, from, to Mode) {
	want := desired()
	c := inUseFor(t, kinds, from, model.Desired{Node: want.Node})
	s := &stepper{t: t, net: net, step: "1, without the Service"}
	defer s.close()
	s.open = s.all(false, 0)
	if from != to {
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		c = inUse(t, kinds, to)
	} else {
		mustSync(t, c)
		var changes []model.Change
		for name, svc := range want.Services {
			changes = append(changes, model.Change{Name: name, New: svc})
		}
		if _, err := (conntrack.Table{Node: want.Node}).Clean(conntrack.PlanAll(changes, false)); err != nil {
			t.Fatal(err)
		}
	}
	s.step = "2, with the Service"
	if to == IPVS {
		// See "Limits" in package ipvs.
		s.open = slices.DeleteFunc(s.open, func(a *attempt) bool {
			until := time.Now().Add(patience)
			err := cmp.Or(a.ask(until), a.hear(until))
			if errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.EPIPE) {
				a.close()
			}
			return a.closed
		})
	}
	s.served(s.open)
	if err := errors.Join(c.Cleanup(t.Context()), c.Close()); err != nil {
		t.Error(err)
	}
}
