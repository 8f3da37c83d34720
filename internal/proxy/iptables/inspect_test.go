// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"slices"
	"strings"
	"testing"

	"github.com/causeway-lb/causeway/internal/proxy/model"
	"github.com/causeway-lb/causeway/internal/testkit/backendtest"
	"github.com/causeway-lb/causeway/internal/testkit/flowmatrix"
)

// Each rule that somebody takes out is missed, and with it a Service's facts only if it
// is one of the Service's.
func TestDifferencesNameWhatIsGone(t *testing.T) {
	row := flowmatrix.Rows()[0]
	d, _ := model.Compute(row.Snapshot(model.IPv4))
	for want, rule := range map[string]string{
		"default/web port web: missing endpoint 10.244.1.2:8080 of ClusterIP 10.96.0.10:80/TCP (iptables -t nat -A CAUSEWAY-D-": "DNAT --to-destination 10.244.1.2:8080",
		"default/web port web: missing ClusterIP 10.96.0.10:80/TCP":                                                             "-d 10.96.0.10/32 -p tcp -m tcp --dport 80 ",
		"missing refusal of ports without a Service at 10.96.0.10":                                                              "-d 10.96.0.10/32 -p udp -g " + chainReject,
		"missing hairpin masquerade of endpoint 10.244.1.2":                                                                     "-s 10.244.1.2/32 -d 10.244.1.2/32",
		"missing rule (iptables -t nat -A CAUSEWAY-OUTPUT -j CAUSEWAY-SERVICES)":                                                "-j " + chainServices,
		"missing rule (iptables -t nat -A OUTPUT -j CAUSEWAY-OUTPUT)":                                                           "-j " + chainOutput,
	} {
		f := newFakeTables()
		b := newFakeBackend(f)
		if _, err := b.Resync(t.Context(), d); err != nil {
			t.Fatal(err)
		}
		for chain, texts := range f.tables[nat] {
			if chain != chainPrerouting { // has one of these rules too
				f.tables[nat][chain] = slices.DeleteFunc(texts, func(text string) bool { return strings.Contains(text, rule) })
			}
		}
		got := backendtest.Differences(t, b, d)
		if !slices.ContainsFunc(got, func(s string) bool { return strings.HasPrefix(s, want) }) {
			t.Errorf("without %q: %q, want %q among them", rule, got, want)
		}
		for _, s := range got {
			if !strings.Contains(s, strings.Fields(want)[len(strings.Fields(want))-1]) && strings.HasPrefix(want, "missing") {
				t.Errorf("without %q: %q, want %q alone", rule, got, want)
			}
		}
	}
}
