// SPDX-License-Identifier: Apache-2.0

package kubeproxy

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParse(t *testing.T) {
	for _, tc := range []struct {
		name, table, saved string
		chains             []string
		jumps              []rule
		kept               map[string]string
	}{
		{
			name: "what kube-proxy leaves", table: "nat",
			saved: `:PREROUTING ACCEPT [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-SVC-TCOU7JCQXEZGVUNU - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A KUBE-SERVICES -d 10.96.0.10/32 -p tcp -j KUBE-SVC-TCOU7JCQXEZGVUNU
-A KUBE-SVC-TCOU7JCQXEZGVUNU -j KUBE-MARK-MASQ
`,
			chains: []string{"KUBE-MARK-MASQ", "KUBE-POSTROUTING", "KUBE-SERVICES", "KUBE-SVC-TCOU7JCQXEZGVUNU"},
			jumps: []rule{
				{"PREROUTING", `-m comment --comment "kubernetes service portals" -j KUBE-SERVICES`},
				{"POSTROUTING", `-m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING`},
			},
		},
		{
			name: "others' chains and the kubelet's", table: "filter",
			saved: `:KUBE-FIREWALL - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
:KUBE-ROUTER-FORWARD - [0:0]
:KUBE-SVC-SHORT - [0:0]
:CNI-HOSTPORT-DNAT - [0:0]
-A INPUT -j KUBE-FIREWALL
-A FORWARD -m comment --comment "kube-router netpol" -j KUBE-ROUTER-FORWARD
`,
		},
		{
			name: "chains of nat are not kube-proxy's in filter", table: "filter",
			saved: ":KUBE-POSTROUTING - [0:0]\n:KUBE-SVC-TCOU7JCQXEZGVUNU - [0:0]\n",
		},
		{
			name: "somebody else masquerades by kube-proxy's mark", table: "nat",
			saved: `:KUBE-MARK-MASQ - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-SERVICES - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A CNI-HOSTPORT-SETMARK -j KUBE-MARK-MASQ
`,
			chains: []string{"KUBE-SERVICES"},
			jumps:  []rule{{"PREROUTING", `-m comment --comment "kubernetes service portals" -j KUBE-SERVICES`}},
			kept: map[string]string{
				"KUBE-MARK-MASQ":   "-A CNI-HOSTPORT-SETMARK -j KUBE-MARK-MASQ",
				"KUBE-POSTROUTING": "-A CNI-HOSTPORT-SETMARK -j KUBE-MARK-MASQ",
			},
		},
		{
			name: "a rule of somebody's in a built-in chain", table: "nat",
			saved: `:KUBE-SERVICES - [0:0]
:KUBE-SVC-TCOU7JCQXEZGVUNU - [0:0]
:KUBE-SEP-TCOU7JCQXEZGVUNU - [0:0]
-A PREROUTING -i eth7 -j KUBE-SERVICES
-A KUBE-SERVICES -d 10.96.0.10/32 -j KUBE-SVC-TCOU7JCQXEZGVUNU
`,
			chains: []string{"KUBE-SEP-TCOU7JCQXEZGVUNU"},
			kept: map[string]string{
				"KUBE-SERVICES":             "-A PREROUTING -i eth7 -j KUBE-SERVICES",
				"KUBE-SVC-TCOU7JCQXEZGVUNU": "-A PREROUTING -i eth7 -j KUBE-SERVICES",
			},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := parse(tc.table, []byte(tc.saved))
			if len(got.kept) == 0 {
				got.kept = nil
			}
			if len(got.chains) == 0 {
				got.chains = nil
			}
			want := rules{table: tc.table, chains: tc.chains, jumps: tc.jumps, kept: tc.kept}
			if diff := cmp.Diff(want, got, cmp.AllowUnexported(rules{}, rule{}, variant{})); diff != "" {
				t.Errorf("rules (-want +got):\n%s", diff)
			}
		})
	}
}

func TestSetNames(t *testing.T) {
	for name, want := range map[string]string{
		"KUBE-NODE-PORT-TCP":              "KUBE-NODE-PORT-TCP",
		"KUBE-6-NODE-PORT-TCP":            "KUBE-NODE-PORT-TCP",
		"KUBE-6-LOAD-BALANCER-SOURCE-CID": "KUBE-LOAD-BALANCER-SOURCE-CIDR",
		"KUBE-SRC-XYZ":                    "", // kube-router's
		"KUBE-6-":                         "",
	} {
		if got := setOf(name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
}
