// SPDX-License-Identifier: Apache-2.0

package ipvs

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/causeway-lb/causeway/internal/netlink"
	"github.com/causeway-lb/causeway/internal/testkit/nstest"
)

func TestMain(m *testing.M) { nstest.Main(m) }

var compareAddresses = cmp.Comparer(func(a, b netip.Addr) bool { return a == b })

func dial(t *testing.T) *Conn {
	t.Helper()
	c, err := Dial()
	if errors.Is(err, ErrUnsupported) {
		nstest.LeaveToVM(t, err.Error())
	}
	nstest.Require(t)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

var servers = []VirtualServer{
	{Key: Key{Addr: netip.MustParseAddr("192.0.2.1"), Port: 80, Protocol: unix.IPPROTO_TCP}, Settings: Settings{Scheduler: "rr"},
		Reals: []RealServer{{AddrPort: netip.MustParseAddrPort("10.0.0.1:8080"), Weight: 3}}},
	{Key: Key{Addr: netip.MustParseAddr("2001:db8::1"), Port: 53, Protocol: unix.IPPROTO_UDP},
		Settings: Settings{Scheduler: "wlc", Persistence: 3 * time.Hour},
		Reals:    []RealServer{{AddrPort: netip.MustParseAddrPort("[2001:db8::2]:53"), Weight: 1}, {AddrPort: netip.MustParseAddrPort("[2001:db8::3]:5353")}}},
	{Key: Key{Mark: 77}, Settings: Settings{Scheduler: "sh", Tag: true}},
	{Key: Key{Mark: 77, IPv6: true}, Settings: Settings{Scheduler: "mh", Persistence: time.Second, Fallback: true}},
}

func additions(all []VirtualServer) (out []Change) {
	for _, s := range all {
		out = append(out, Change{Op: AddServer, Server: s.Key, Settings: s.Settings})
		for _, r := range s.Reals {
			out = append(out, Change{Op: AddReal, Server: s.Key, Real: r})
		}
	}
	return out
}

func must(t *testing.T, errs []error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

func check(t *testing.T, c *Conn, want []VirtualServer) {
	t.Helper()
	got, err := c.Read()
	if err != nil {
		t.Fatal(err)
	}
	byKey := func(all []VirtualServer) map[Key]VirtualServer {
		m := map[Key]VirtualServer{}
		for _, s := range all {
			reals := map[netip.AddrPort]uint32{}
			for _, r := range s.Reals {
				reals[r.AddrPort] = r.Weight
			}
			s.Reals = nil
			for _, ap := range []string{"10.0.0.1:8080", "10.0.0.9:1", "[2001:db8::2]:53", "[2001:db8::3]:5353"} {
				if w, ok := reals[netip.MustParseAddrPort(ap)]; ok {
					s.Reals = append(s.Reals, RealServer{AddrPort: netip.MustParseAddrPort(ap), Weight: w})
				}
			}
			m[s.Key] = s
		}
		return m
	}
	if diff := cmp.Diff(byKey(want), byKey(got), compareAddresses, cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); diff != "" {
		t.Errorf("virtual servers (-want +got):\n%s", diff)
	}
}

// What is written is what is read.
func TestRoundTrip(t *testing.T) {
	c := dial(t)
	must(t, c.Do(additions(servers)))
	check(t, c, servers)

	changed := append([]VirtualServer(nil), servers...)
	changed[0].Settings = Settings{Scheduler: "lc", Persistence: time.Minute}
	changed[0].Reals = []RealServer{{AddrPort: netip.MustParseAddrPort("10.0.0.9:1"), Weight: 9}}
	changed[1].Settings.Persistence = 0
	changed[1].Reals = []RealServer{{AddrPort: netip.MustParseAddrPort("[2001:db8::2]:53")}}
	must(t, c.Do([]Change{
		{Op: SetServer, Server: servers[0].Key, Settings: changed[0].Settings},
		{Op: DeleteReal, Server: servers[0].Key, Real: servers[0].Reals[0]},
		{Op: AddReal, Server: servers[0].Key, Real: changed[0].Reals[0]},
		{Op: SetServer, Server: servers[1].Key, Settings: changed[1].Settings},
		{Op: SetReal, Server: servers[1].Key, Real: changed[1].Reals[0]},
		{Op: DeleteReal, Server: servers[1].Key, Real: servers[1].Reals[1]},
	}))
	check(t, c, changed)

	for _, s := range servers {
		must(t, c.Do([]Change{{Op: DeleteServer, Server: s.Key}}))
	}
	check(t, c, nil)
}

// Each refused change is told apart, and the others are carried out.
func TestErrors(t *testing.T) {
	c := dial(t)
	s := servers[0]
	errs := c.Do([]Change{
		{Op: AddServer, Server: s.Key, Settings: s.Settings},
		{Op: AddServer, Server: s.Key, Settings: s.Settings},
		{Op: AddReal, Server: servers[1].Key, Real: servers[1].Reals[0]},
		{Op: AddReal, Server: s.Key, Real: s.Reals[0]},
		{Op: AddServer, Server: servers[2].Key, Settings: Settings{Scheduler: "none-such"}},
		{Op: DeleteReal, Server: s.Key, Real: RealServer{AddrPort: netip.MustParseAddrPort("10.0.0.7:7")}},
	})
	want := []error{nil, unix.EEXIST, unix.ESRCH, nil, unix.ENOENT, unix.ENOENT}
	for i := range errs {
		if !errors.Is(errs[i], want[i]) {
			t.Errorf("change %d: %v, want %v", i, errs[i], want[i])
		}
	}
	check(t, c, servers[:1])
	must(t, c.Do([]Change{{Op: DeleteServer, Server: s.Key}}))
}

// The kernel and a parser that read each other's mistakes are worth little:
// fuzzing shows that no answer makes the parser panic.
func FuzzDecode(f *testing.F) {
	m := newMessage(nil, 1, 0, 1, 1)
	m.service(servers[1].Key, &servers[1].Settings)
	m.dest(servers[1].Reals[0], true)
	f.Add(m.end()[netlink.HeaderLen+genlHdrLen:])
	f.Fuzz(func(t *testing.T, data []byte) {
		if s, err := decodeService(data); err == nil && s.Mark == 0 && !s.Addr.IsValid() {
			t.Errorf("no address and no error: %+v", s)
		}
		if r, err := decodeDest(data, unix.AF_INET); err == nil && !r.Addr().IsValid() {
			t.Errorf("no address and no error: %+v", r)
		}
	})
}
