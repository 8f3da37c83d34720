// SPDX-License-Identifier: Apache-2.0

package provisionertest

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"

	corev1 "k8s.io/api/core/v1"

	"github.com/causeway-lb/causeway/internal/provisioner"
)

func servesWhatItGives(r *run) {
	r.must(r.request("a", 0))
	if r.p.Class() == "" || len(r.p.Capabilities().Protocols) == 0 || len(r.p.Capabilities().Families) == 0 {
		r.Errorf("class %q, capabilities %+v", r.p.Class(), r.p.Capabilities())
	}
}

func givesTheSame(r *run) {
	first := r.must(r.request("a", 0))
	for _, req := range []provisioner.Request{r.request("a", 0), r.current("a")} {
		if again := r.must(req); !slices.Equal(first, again) {
			r.Errorf("first %v, then %v", first, again)
		}
	}
}

// givesNothingTwice: same port, hence not one address; other port, any.
func givesNothingTwice(r *run) {
	a, b := r.must(r.request("a", 0)), r.must(r.request("b", 0))
	if a[0] == b[0] {
		r.Errorf("both have %v and port %d", a, r.subject.Ports[0])
	}
	r.must(r.request("c", 1))
}

func givesWhatIsAsked(r *run) {
	before := r.must(r.request("a", 0))
	if !r.p.Capabilities().RequestedAddresses {
		r.refuses(func(req *provisioner.Request) { req.Addresses = []netip.Addr{r.subject.Spare} })
		return
	}
	asking := r.request("asking", 1)
	asking.Addresses = []netip.Addr{r.subject.Spare}
	if got := r.must(asking); !slices.Equal(got, asking.Addresses) {
		r.Errorf("asked for %v, got %v", asking.Addresses, got)
	}
	lost := r.current("a")
	lost.Addresses = []netip.Addr{r.subject.Outside}
	held, _, err := r.reconcile(r.Context(), lost)
	if err != nil || held.Unmet == nil || held.Unmet.Message == "" || held.Unmet.Reason == "" {
		r.Errorf("asked for %s: %+v, %v: want a refusal with reason and message", r.subject.Outside, held, err)
	}
	if !slices.Equal(held.Addresses, before) {
		r.Errorf("after the refusal it holds %v, before %v", held.Addresses, before)
	}
	newcomer := r.request("newcomer", 2)
	newcomer.Addresses = lost.Addresses
	if held, _, err := r.reconcile(r.Context(), newcomer); err != nil || held.Unmet == nil || len(held.Addresses) > 0 {
		r.Errorf("a newcomer asked for %s: %+v, %v", r.subject.Outside, held, err)
	}
}

func keepsOverRestart(r *run) {
	names := []string{"a", "b", "c"}
	before := map[string][]netip.Addr{}
	for i, name := range names {
		before[name] = r.must(r.request(name, i%2))
	}
	r.restart()
	for _, name := range slices.Backward(names) {
		if after := r.must(r.current(name)); !slices.Equal(before[name], after) {
			r.Errorf("%s had %v, has %v after a restart", name, before[name], after)
		}
	}
}

func newcomerAfterRestart(r *run) {
	a := r.must(r.request("a", 0))
	r.restart()
	if b := r.must(r.request("b", 0)); a[0] == b[0] {
		r.Errorf("a newcomer has %v and the port of who held it before the restart", b)
	}
	if again := r.must(r.current("a")); !slices.Equal(a, again) {
		r.Errorf("a had %v, has %v", a, again)
	}
}

func givesReleased(r *run) {
	a := r.must(r.request("a", 0))
	r.end("a")
	if !r.p.Capabilities().RequestedAddresses {
		r.must(r.request("b", 0))
		return
	}
	b := r.request("b", 0)
	b.Addresses = a
	if got := r.must(b); !slices.Equal(a, got) {
		r.Errorf("got %v, want %v", got, a)
	}
}

func keepsWhenPortsChange(r *run) {
	before := r.must(r.request("a", 0))
	more := r.current("a")
	more.Ports = append(more.Ports, r.request("a", 1).Ports...)
	other := r.request("a", 2)
	other.Current = before
	for _, req := range []provisioner.Request{more, other} {
		if after := r.must(req); !slices.Equal(before, after) {
			r.Errorf("with ports %v it has %v, before %v", req.Ports, after, before)
		}
	}
}

func knowsNoStrangers(r *run) {
	r.must(r.request("a", 0))
	for range 2 {
		r.end("stranger")
	}
	r.must(r.current("a"))
	for range 2 {
		r.end("a")
	}
}

func refusesIncapable(r *run) {
	able := r.p.Capabilities()
	if !slices.Contains(able.Protocols, corev1.ProtocolUDP) {
		r.refuses(func(req *provisioner.Request) { req.Ports[0].Protocol = corev1.ProtocolUDP })
	}
	if !able.Sharing {
		r.refuses(func(req *provisioner.Request) { req.SharingKey = "k" })
	}
	if !able.Pools {
		r.refuses(func(req *provisioner.Request) { req.Pool = "p" })
	}
	if !able.SourceRanges {
		r.refuses(func(req *provisioner.Request) { req.HasSourceRanges = true })
	}
	if able.NeedsNodePorts {
		r.refuses(func(req *provisioner.Request) { req.NoNodePorts = true })
	}
	if len(able.Families) < 2 {
		r.refuses(func(req *provisioner.Request) {
			req.Families = []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol}
			req.Policy = corev1.IPFamilyPolicyRequireDualStack
		})
	}
	r.must(r.request("fine", 0))
}

// refuses checks that a request is found to be beyond the capabilities.
func (r *run) refuses(change func(*provisioner.Request)) {
	r.Helper()
	req := r.request("incapable", 0)
	change(&req)
	var refused *provisioner.AllocationError
	if _, _, err := r.reconcile(r.Context(), req); !errors.As(err, &refused) || refused.Reason != provisioner.ReasonUnsupported {
		r.Errorf("%+v: %v, want a refusal with reason %s", req, err, provisioner.ReasonUnsupported)
	}
}

// worksConcurrently: three ports on however many addresses; who gets none waits
// without an error.
func worksConcurrently(r *run) {
	var mu sync.Mutex
	given := map[string]string{}
	var wg sync.WaitGroup
	for i := range 12 {
		wg.Go(func() {
			req := r.request(fmt.Sprint("many-", i), i%3)
			for range 2 {
				held, _, err := r.reconcile(r.Context(), req)
				if err != nil {
					r.Errorf("%s: %v", req.Owner, err)
					return
				}
				mu.Lock()
				for _, a := range held.Addresses {
					front := fmt.Sprint(a, req.Ports)
					if other, taken := given[front]; taken && other != req.Owner.Name {
						r.Errorf("%s was given to %s and %s", front, other, req.Owner.Name)
					}
					given[front] = req.Owner.Name
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if len(given) < 3 {
		r.Errorf("only %v were given", given)
	}
}
