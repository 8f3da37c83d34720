// SPDX-License-Identifier: Apache-2.0

package endpointslice

import (
	"flag"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/causeway-lb/causeway/internal/endpointslice"
)

var (
	histories = flag.Int("histories", 600, "how many random histories to drive; 50000 is the long form")
	firstSeed = flag.Uint64("seed", 1, "the seed of the first history")
)

// TestSameEndpointsNoMoreWrites drives random histories, of 30 steps each, and
// compares after every step.
func TestSameEndpointsNoMoreWrites(t *testing.T) {
	var ourWrites, theirWrites, more atomic.Int64
	seeds := make(chan uint64)
	var workers sync.WaitGroup
	for range 2 {
		workers.Go(func() {
			for seed := range seeds {
				a, b := drive(t, seed)
				ourWrites.Add(int64(a))
				theirWrites.Add(int64(b))
				if a > b {
					more.Add(1)
				}
			}
		})
	}
	for i := range *histories {
		if t.Failed() {
			break
		}
		seeds <- *firstSeed + uint64(i)
	}
	close(seeds)
	workers.Wait()
	a, b := ourWrites.Load(), theirWrites.Load()
	t.Logf("%d histories: %d writes, upstream %d (%.1f %% fewer); in %d histories ours were more",
		*histories, a, b, 100-100*float64(a)/float64(b), more.Load())
	if a > b {
		t.Errorf("%d writes, upstream needs %d", a, b)
	}
}

// drive runs one history and returns both sides' writes.
func drive(t *testing.T, seed uint64) (int, int) {
	h := newHistory(seed)
	limit := []int{2, 3, 5, 10, 100}[seed%5]
	we, they := &ours{newStore()}, newTheirs(limit)
	for step := range 30 {
		h.step()
		we.pass(t, h, limit)
		they.pass(h)
		want, got := union(they.list(), h), union(we.list(), h)
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("seed %d step %d: endpoints differ from upstream's (-want +got):\n%s", seed, step, d)
			return 0, 0
		}
		if problem := checkShares(we.list(), they.list(), h); problem != "" {
			t.Errorf("seed %d step %d: %s", seed, step, problem)
			return 0, 0
		}
	}
	return we.writes, they.writes
}

// union returns a line per endpoint and family, sorted. With topology-mode:
// Auto, which zone an endpoint is hinted for is free, so hints are left out.
func union(list []*discoveryv1.EndpointSlice, h *history) []string {
	var lines []string
	for _, slice := range list {
		var ports []string
		for _, port := range slice.Ports {
			application := "-"
			if port.AppProtocol != nil {
				application = *port.AppProtocol
			}
			ports = append(ports, fmt.Sprintf("%s/%d/%s/%s", *port.Name, *port.Port, *port.Protocol, application))
		}
		slices.Sort(ports)
		labels := fmt.Sprint(slice.Labels["team"], slice.Labels[corev1.IsHeadlessService], slice.Labels[discoveryv1.LabelServiceName])
		for i := range slice.Endpoints {
			lines = append(lines, fmt.Sprintf("%s [%s] %s %s", slice.AddressType, strings.Join(ports, " "), describe(&slice.Endpoints[i], h), labels))
		}
	}
	slices.Sort(lines)
	return lines
}

func describe(e *discoveryv1.Endpoint, h *history) string {
	text := func(p *string) string {
		if p == nil {
			return "-"
		}
		return *p
	}
	hints := ""
	if !endpointslice.TopologyAuto(h.service) && e.Hints != nil {
		hints = fmt.Sprint(e.Hints.ForZones, e.Hints.ForNodes)
	}
	return fmt.Sprintf("%v ready=%t serving=%t terminating=%t node=%s zone=%s host=%s ref=%s/%s/%s hints=%s",
		e.Addresses, *e.Conditions.Ready, *e.Conditions.Serving, *e.Conditions.Terminating,
		text(e.NodeName), text(e.Zone), text(e.Hostname), e.TargetRef.Kind, e.TargetRef.Name, e.TargetRef.UID, hints)
}

// checkShares checks hints by zone capacity: both sides give hints or neither
// does, and of ours no zone has too few.
func checkShares(we, they []*discoveryv1.EndpointSlice, h *history) string {
	if !endpointslice.TopologyAuto(h.service) {
		return ""
	}
	var list []endpointslice.Node
	for _, node := range h.nodes {
		list = append(list, endpointslice.NodeOf(node))
	}
	shares := endpointslice.ZoneShares(list)
	for _, family := range h.service.Spec.IPFamilies {
		ready, byZone := hintCounts(we, discoveryv1.AddressType(family))
		_, theirZones := hintCounts(they, discoveryv1.AddressType(family))
		if (len(byZone) > 0) != (len(theirZones) > 0) {
			return fmt.Sprintf("%s hints %v, upstream's %v", family, byZone, theirZones)
		}
		hinted := 0
		for zone, share := range shares.ByZone {
			hinted += byZone[zone]
			if least := int(math.Ceil(share * float64(ready) / 1.2)); len(byZone) > 0 && byZone[zone] < least {
				return fmt.Sprintf("zone %s has %d of %d ready %s endpoints, fewer than %d", zone, byZone[zone], ready, family, least)
			}
		}
		if len(byZone) > 0 && hinted != ready {
			return fmt.Sprintf("%d of %d ready %s endpoints have hints", hinted, ready, family)
		}
	}
	return ""
}

func hintCounts(list []*discoveryv1.EndpointSlice, family discoveryv1.AddressType) (ready int, byZone map[string]int) {
	byZone = map[string]int{}
	for _, slice := range list {
		if slice.AddressType != family {
			continue
		}
		for _, endpoint := range slice.Endpoints {
			if *endpoint.Conditions.Ready {
				ready++
			}
			if endpoint.Hints != nil {
				byZone[endpoint.Hints.ForZones[0].Name]++
			}
		}
	}
	return ready, byZone
}
