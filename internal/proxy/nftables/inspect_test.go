// SPDX-License-Identifier: Apache-2.0

package nftables

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/causeway-lb/causeway/internal/inspect"
	"github.com/causeway-lb/causeway/internal/netlink/nft"
	"github.com/causeway-lb/causeway/internal/proxy/model"
	"github.com/causeway-lb/causeway/internal/testkit/backendtest"
	"github.com/causeway-lb/causeway/internal/testkit/flowmatrix"
	"github.com/causeway-lb/causeway/internal/testkit/modeltest"
	"github.com/causeway-lb/causeway/internal/testkit/nstest"
)

// What somebody takes out of the table is named, and nothing else.
func TestDifferencesNameWhatIsGone(t *testing.T) {
	b := newBackend(t)
	d := desired(2, 2)
	frontend := string(appendFrontend(nil, d.Services[name(1)].Frontends[0].Key))
	remove := func(set setID, key string) func() {
		return func() {
			var tx nft.Batch
			tx.DeleteElement(tableOf(model.IPv4), set.String(), nft.Element{Key: key})
			if err := b.conn.Commit(&tx); err != nil {
				t.Fatal(err)
			}
		}
	}
	for want, damage := range map[string]func(){
		"default/svc-1 port 80/TCP: missing ClusterIP 10.96.0.1:80/TCP": remove(setServices, frontend),
		"default/svc-1 port 80/TCP: missing endpoint 10.128.0.2:8080 of ClusterIP 10.96.0.1:80/TCP (nft element ip causeway endpoints { 10.96.0.1 . tcp . 80 . 0x00000000 })": remove(setEndpoints, frontend+number(0)),
		"missing refusal of ports without a Service at 10.96.0.1":                                                         remove(setClusterIPs, string(d.Services[name(1)].Frontends[0].Addr.AsSlice())),
		"other rules of a chain: 0 instead of 2, without \"loadBalancerSourceRanges\" (nft chain ip causeway nat-output)": func() { nstest.Run(t, "nft", "flush", "chain", "ip", "causeway", chainOutput) },
	} {
		mustSync(t, b, d)
		damage()
		if diff := cmp.Diff([]string{want}, backendtest.Differences(t, b, d)); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	}
}

// A source range that somebody adds as a single address has no end.
func TestInspectOneAddressAsSourceRange(t *testing.T) {
	b := newBackend(t)
	d := desired(1, 1)
	f := &d.Services[name(0)].Frontends[0]
	f.Restricted, f.SourceRanges = true, []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}
	mustSync(t, b, d)
	nstest.Run(t, "nft", "add", "element", "ip", "causeway", "source-ranges", "{ 10.96.0.0 . tcp . 80 . 198.51.100.1 }")
	got := backendtest.Differences(t, b, d)
	if len(got) != 1 || !strings.HasPrefix(got[0], "default/svc-0 port 80/TCP: extra 198.51.100.1 in loadBalancerSourceRanges of ClusterIP 10.96.0.0:80/TCP") {
		t.Errorf("%q, want one range more", got)
	}
}

// What is rendered of random Services is what they ask for, and leads every packet to
// the same end.
func TestRenderedEqualsExpected(t *testing.T) {
	for seed := range uint64(10) {
		w := modeltest.New(seed)
		for range 80 {
			w.Change()
		}
		d, _ := model.Compute(w.Snapshot())
		want, have := inspect.Expected(d, inspectMode(model.Families[:]...)), rendered(d, model.Families[:]...)
		for _, diff := range inspect.Diff(d, have) {
			t.Errorf("seed %d: %s", seed, diff)
		}
		for key := range want.Frontends {
			source := map[model.Family][]string{model.IPv4: {"10.244.1.2", "192.0.2.100"}, model.IPv6: {"fd00:10:244:1::2", "2001:db8::1"}}
			for i, s := range source[key.Family()] {
				for port := range uint16(2) {
					p := inspect.Packet{Source: netip.MustParseAddr(s), Destination: key.Addr, Port: key.Port + port, Protocol: key.Protocol, Self: i == 0}
					if w, h := flowmatrix.Traced(d, want, p).String(), flowmatrix.Traced(d, have, p).String(); w != h {
						t.Errorf("seed %d: %+v: %s, want %s", seed, p, h, w)
					}
				}
			}
		}
	}
}
