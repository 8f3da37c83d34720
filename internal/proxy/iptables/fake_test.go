// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/types"

	"github.com/causeway-lb/causeway/internal/proxy/backend"
	"github.com/causeway-lb/causeway/internal/proxy/model"
	"github.com/causeway-lb/causeway/internal/testkit/backendtest"
)

// fakeTables carries out restores as the kernel does: a table is taken whole
// or not at all, and a chain goes only if nothing leads to it.
type fakeTables struct {
	tables map[table]map[string][]string
	rnd    *rand.Rand
	odds   float64
	faults int
	// written counts the lines of all restores.
	written int
}

var errFault = errors.New("fault")

func newFakeTables() *fakeTables {
	f := &fakeTables{tables: map[table]map[string][]string{nat: {}, filter: {}}}
	for _, h := range hooks {
		f.tables[h.table][h.chain] = []string{"-j SOMEBODY"}
	}
	return f
}

func (f *fakeTables) fault() bool {
	if f.rnd == nil || f.rnd.Float64() >= f.odds {
		return false
	}
	f.faults++
	return true
}

func (f *fakeTables) read(_ context.Context, t table) (*dump, error) {
	if f.fault() {
		return nil, errFault
	}
	var b bytes.Buffer
	for name := range f.tables[t] {
		fmt.Fprintf(&b, ":%s - [0:0]\n", name)
	}
	for name, texts := range f.tables[t] {
		for _, text := range texts {
			fmt.Fprintf(&b, "-A %s %s\n", name, text)
		}
	}
	return parse(b.Bytes()), nil
}

func (f *fakeTables) apply(_ context.Context, input []byte) error {
	if f.fault() {
		return errFault
	}
	head, rest, _ := strings.Cut(string(input), "\n")
	t := table(strings.TrimPrefix(head, "*"))
	next := map[string][]string{}
	for name, texts := range f.tables[t] {
		next[name] = slices.Clone(texts)
	}
	for line := range strings.Lines(rest) {
		f.written++
		if err := carryOut(next, strings.TrimSpace(line)); err != nil {
			return err
		}
	}
	for name, texts := range next {
		for _, text := range texts {
			words := strings.Fields(text)
			for i, w := range words {
				if (w == "-j" || w == "-g") && strings.HasPrefix(words[i+1], prefix) && next[words[i+1]] == nil {
					return fmt.Errorf("%s leads to %s, which does not exist", name, words[i+1])
				}
			}
		}
	}
	f.tables[t] = next
	if f.fault() {
		return errFault // done, but reported as failed
	}
	return nil
}

func carryOut(chains map[string][]string, line string) error {
	words := strings.SplitN(line, " ", 3)
	switch {
	case strings.HasPrefix(line, ":"):
		chains[words[0][1:]] = []string{}
		return nil
	case line == "COMMIT":
		return nil
	case chains[words[1]] == nil:
		return fmt.Errorf("%s: no such chain", line)
	}
	name := words[1]
	switch words[0] {
	case "-A":
		chains[name] = append(chains[name], words[2])
	case "-I":
		chains[name] = slices.Insert(chains[name], 0, strings.TrimPrefix(words[2], "1 "))
	case "-D":
		at := slices.Index(chains[name], words[2])
		if at < 0 {
			return fmt.Errorf("%s: no such rule", line)
		}
		chains[name] = slices.Delete(chains[name], at, at+1)
	case "-X":
		if len(chains[name]) > 0 {
			return fmt.Errorf("%s: not empty", line)
		}
		delete(chains, name)
	}
	return nil
}

func newFakeBackend(f *fakeTables) *Backend {
	return &Backend{families: []*family{{run: f, render: renderer{fam: model.IPv4, marks: newMarks(DefaultMark)}}}}
}

func TestContractOnFake(t *testing.T) {
	f := newFakeTables()
	backendtest.Run(t, func(testing.TB) backend.Backend { return newFakeBackend(f) })
}

// However the programs fail, done or not, in Syncs and Cleanups, wherever the
// process ends and another goes on, and whatever others do to the jumps: the next
// Syncs converge to what faultless ones leave.
func TestConvergesAfterFaults(t *testing.T) {
	faults := 0
	for seed := range uint64(200) {
		faults += convergeAfterFaults(t, seed)
	}
	if faults < 2000 {
		t.Errorf("%d faults in all: too few to mean anything", faults)
	}
}

func convergeAfterFaults(t *testing.T, seed uint64) (faults int) {
	t.Helper()
	f, dice := newFakeTables(), rand.New(rand.NewPCG(seed, 2))
	f.rnd, f.odds = rand.New(rand.NewPCG(seed, 1)), 0.1
	b, story, drifted := newFakeBackend(f), backendtest.NewStory(seed), false
	for range 100 {
		story.Change()
		switch dice.IntN(20) {
		case 0:
			b = newFakeBackend(f)
		case 1:
			_ = backendtest.Cleanup(t.Context(), b)
		case 2:
			story.MasqueradeAll = !story.MasqueradeAll
		case 3:
			h := hooks[dice.IntN(len(hooks))]
			f.tables[h.table][h.chain] = []string{"-j SOMEBODY"}
			drifted = true
		}
		if story.Sync(t.Context(), b, drifted) == nil { // drift is found when the timer has all compared
			drifted = false
		}
	}
	f.rnd = nil
	if err := story.Sync(t.Context(), b, drifted); err != nil {
		t.Fatalf("seed %d: %v", seed, err)
	}
	perfect := newFakeTables()
	if _, err := backendtest.Sync(t.Context(), newFakeBackend(perfect), story.Desired(), nil); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(perfect.tables, f.tables); diff != "" {
		t.Fatalf("seed %d (-want +got):\n%s", seed, diff)
	}
	return f.faults
}

// One endpoint's change writes the chain of its target and the constant chains
// of local endpoints, however many Services there are.
func TestChangeWritesLittle(t *testing.T) {
	service := func(i int, endpoints ...string) *model.Service {
		tgt := &model.Target{}
		for _, e := range endpoints {
			tgt.Endpoints = append(tgt.Endpoints, model.Endpoint{AddrPort: mustAddrPort(e), Weight: 1})
		}
		return &model.Service{
			Name: types.NamespacedName{Namespace: "default", Name: fmt.Sprint("s", i)},
			Frontends: []model.Frontend{{
				Key:    model.Key{Addr: mustAddrPort(fmt.Sprintf("10.96.%d.%d:80", i/256, i%256)).Addr(), Port: 80, Protocol: model.TCP},
				Inside: tgt, Outside: tgt,
			}},
		}
	}
	lines := func(services int) int {
		f := newFakeTables()
		b := newFakeBackend(f)
		d := model.Desired{Services: map[types.NamespacedName]*model.Service{}}
		for i := range services {
			s := service(i, "10.244.2.1:8080", "10.244.2.2:8080")
			d.Services[s.Name] = s
		}
		if _, err := backendtest.Sync(t.Context(), b, d, nil); err != nil {
			t.Fatal(err)
		}
		f.written = 0
		s := service(7, "10.244.2.1:8080", "10.244.2.3:8080")
		d.Services = maps.Clone(d.Services)
		d.Services[s.Name] = s
		if _, err := backendtest.Sync(t.Context(), b, d, []types.NamespacedName{s.Name}); err != nil {
			t.Fatal(err)
		}
		return f.written
	}
	few, many := lines(10), lines(1000)
	if few != many || many > 5 {
		t.Errorf("one change wrote %d lines with 10 Services and %d with 1,000, want the same few", few, many)
	}
}

// The jumps are put back at the top, once, when somebody moves or doubles them.
func TestJumps(t *testing.T) {
	f := newFakeTables()
	b := newFakeBackend(f)
	if _, err := backendtest.Sync(t.Context(), b, model.Desired{}, nil); err != nil {
		t.Fatal(err)
	}
	want := []string{"-j " + chainPrerouting, "-j SOMEBODY"}
	for name, spoilt := range map[string][]string{
		"as they are": want, "gone": {"-j SOMEBODY"}, "moved": {"-j SOMEBODY", want[0]}, "doubled": {want[0], want[0], "-j SOMEBODY"},
	} {
		f.tables[nat]["PREROUTING"] = slices.Clone(spoilt)
		r, err := backendtest.Sync(t.Context(), b, model.Desired{}, nil)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, f.tables[nat]["PREROUTING"]); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
		if drifted := name != "as they are"; (r.Drift > 0) != drifted {
			t.Errorf("%s: drift %d", name, r.Drift)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("*nat\n:CAUSEWAY-X - [0:0]\n-A CAUSEWAY-X -j RETURN\n-A OUTPUT -j CAUSEWAY-OUTPUT\nCOMMIT\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		for name := range parse(data).chains {
			if !strings.HasPrefix(name, prefix) {
				t.Errorf("chain %q is not ours", name)
			}
		}
	})
}

func mustAddrPort(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

// A port's chains, with which goes what is remembered of its clients, keep
// their names when another port comes, loses its endpoints or goes.
func TestChainsOfOtherPorts(t *testing.T) {
	frontend := func(port uint16, endpoints ...string) model.Frontend {
		tgt := &model.Target{Action: model.Reject, Affinity: time.Hour}
		for _, e := range endpoints {
			tgt.Action = model.Forward
			tgt.Endpoints = append(tgt.Endpoints, model.Endpoint{AddrPort: mustAddrPort(e), Weight: 1})
		}
		return model.Frontend{Key: model.Key{Addr: mustAddrPort("10.96.0.10:0").Addr(), Port: port, Protocol: model.TCP}, Inside: tgt, Outside: tgt}
	}
	https := frontend(443, "10.244.2.1:8443", "10.244.2.2:8443")
	// lists are those of the endpoints of https, by endpoint.
	lists := func(frontends ...model.Frontend) map[string]string {
		r := renderer{fam: model.IPv4, marks: newMarks(DefaultMark)}
		all := r.service(&model.Service{Name: types.NamespacedName{Namespace: "default", Name: "web"}, Frontends: frontends})
		out := map[string]string{}
		for i, text := range all {
			if _, to, found := strings.Cut(text, "--to-destination "); found && strings.HasSuffix(to, ":8443") {
				out[to] = all[id{nat, i.chain, "0"}]
			}
		}
		return out
	}
	want := lists(https)
	if len(want) != 2 {
		t.Fatalf("lists of clients %v, want one for each endpoint", want)
	}
	for _, before := range []model.Frontend{frontend(80, "10.244.2.1:8080"), frontend(80)} {
		if diff := cmp.Diff(want, lists(before, https)); diff != "" {
			t.Errorf("lists of clients (-want +got):\n%s", diff)
		}
	}
}
