// SPDX-License-Identifier: Apache-2.0

package modes

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/causeway-lb/causeway/internal/proxy/backend"
	"github.com/causeway-lb/causeway/internal/proxy/ipvs"
	"github.com/causeway-lb/causeway/internal/testkit/nstest"
)

// ManyChanges is a number of changes in each direction of each pair of modes,
// for a long run: 50 take some minutes, and longer in the virtual machine.
const ManyChanges = "CAUSEWAY_MODE_CHANGES"

// Changes to and fro in a row: no new connection fails, whichever moment it meets.
// Those with ipvs are in the long form only, as the virtual machine is slow.
func TestChangesInARow(t *testing.T) {
	nstest.Require(t, "ip", "iptables-restore", "ip6tables-restore")
	changes, long := 2, false
	if many := os.Getenv(ManyChanges); many != "" {
		var err error
		if changes, err = strconv.Atoi(many); err != nil || changes < 1 {
			t.Fatalf("%s=%s is not a number of changes", ManyChanges, many)
		}
		long = true
	}
	net := newNetwork(t)
	net.perSecond = 500
	cfg := Configs{IPVS: ipvs.Config{DrainInterval: 50 * time.Millisecond}}
	if nstest.InVM() {
		net.perSecond = 150 // or the emulated processor does nothing else
		cfg.Userspace.Grace = 10 * time.Second
	}
	kinds := Kinds(cfg)
	tried := []Mode{NFTables, IPTables, Userspace}
	if probe, err := kinds[IPVS].Open(); err == nil {
		probe.Close()
		tried = append(tried, IPVS)
	} else if lacks := (*backend.UnsupportedError)(nil); !errors.As(err, &lacks) || nstest.InVM() {
		t.Fatal(err)
	} else if long {
		nstest.AlsoInVM(t)
	}
	for i, a := range tried {
		for _, b := range tried[i+1:] {
			if !nstest.InVM() || b == IPVS {
				t.Run(fmt.Sprintf("%s and %s", a, b), func(t *testing.T) { toAndFro(t, net, kinds, changes, a, b) })
			}
		}
	}
}

func toAndFro(t *testing.T, net *network, kinds map[Mode]Kind, changes int, a, b Mode) {
	net.resends, net.dials = a == Userspace || b == Userspace, dialled(a, b)
	c := inUse(t, kinds, a)
	load := net.start(t)
	for i := range 2 * changes {
		to := []Mode{b, a}[i%2]
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		c = inUse(t, kinds, to)
		load.more(t, 20)
		deadline := time.Now().Add(30 * time.Second)
		for mustSync(t, c); len(c.Remaining()) > 0 && time.Now().Before(deadline); mustSync(t, c) {
			load.pause(20 * time.Millisecond)
		}
		load.more(t, 20)
		load.mu.Lock()
		failed := errors.Join(load.failed...)
		load.mu.Unlock()
		if failed != nil {
			t.Errorf("change %d, to %s: of %d new connections failed:\n%v", i+1, to, load.made.Load(), failed)
			break
		}
	}
	load.end()
	t.Logf("%d changes, %d new connections, the slowest took %v", 2*changes, load.made.Load(), load.slow)
	if err := errors.Join(c.Cleanup(t.Context()), c.Close()); err != nil {
		t.Error(err)
	}
}
