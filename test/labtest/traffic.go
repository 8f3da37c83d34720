// SPDX-License-Identifier: Apache-2.0

package labtest

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/causeway-lb/causeway/internal/lab"
	"github.com/causeway-lb/causeway/internal/lab/traffic"
	"github.com/causeway-lb/causeway/internal/testkit"
)

// Request asks once, from a machine.
func (s *Suite) Request(ctx context.Context, from, address string) traffic.Result {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	result := traffic.Result{Sent: time.Now()}
	result.Answer, result.Err = traffic.Ask(ctx, s.Cluster.Machine(from), address)
	result.Done = time.Now()
	return result
}

// More waits until each generator has had the end of n more requests: what was
// done before has been under way, or in effect, for as long as that.
func More(t *testing.T, ctx context.Context, n int, generators ...*traffic.Generator) {
	t.Helper()
	for _, generator := range generators {
		if err := generator.More(ctx, n); err != nil {
			t.Fatal(err)
		}
	}
}

// Answering waits until requests from a machine are answered by all of these
// Pods and no other, twenty times as many in a row, and returns a sample.
func (s *Suite) Answering(t *testing.T, ctx context.Context, from, address string, want []string) traffic.Results {
	t.Helper()
	want = slices.Sorted(slices.Values(want))
	var results traffic.Results
	testkit.Eventually(t, s.Patience, "answers from "+address+" to "+from, func() error {
		results = nil
		for range 20 * len(want) {
			results = append(results, s.Request(ctx, from, address))
			if err := results[len(results)-1].Err; err != nil {
				return err
			}
		}
		if got := slices.Sorted(maps.Keys(results.Hosts())); !slices.Equal(got, want) {
			return fmt.Errorf("answers from %s, want %s", strings.Join(got, ", "), strings.Join(want, ", "))
		}
		return nil
	})
	return results
}

// Announcer waits until exactly one node answers for an address, three times in a
// row, and returns it.
func (s *Suite) Announcer(t *testing.T, ctx context.Context, address netip.Addr) *lab.Node {
	t.Helper()
	var node *lab.Node
	testkit.Eventually(t, s.Patience, "one announcer of "+address.String(), func() error {
		node = nil
		for range 3 {
			macs, err := s.LAN.Ask(ctx, address, 150*time.Millisecond)
			if err != nil {
				return err
			}
			if len(macs) != 1 {
				return fmt.Errorf("%d nodes answer: %s", len(macs), strings.Join(macs, ", "))
			}
			found := s.ByMAC(macs[0])
			if found == nil {
				return fmt.Errorf("%s answers and is no node", macs[0])
			}
			if node != nil && node != found {
				return fmt.Errorf("first %s answers, then %s", node.Name(), found.Name())
			}
			node = found
		}
		return nil
	})
	return node
}

// ByMAC returns the node with a hardware address, or nil.
func (s *Suite) ByMAC(mac string) *lab.Node {
	for _, node := range s.Cluster.Nodes() {
		if node.MAC() == mac {
			return node
		}
	}
	return nil
}
