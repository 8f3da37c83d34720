// SPDX-License-Identifier: Apache-2.0

package haproxy

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

const serversText = `1
# be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state srv_uweight srv_iweight srv_time_since_last_change srv_check_status srv_check_result srv_check_health srv_check_state srv_agent_state bk_f_forced_id srv_f_forced_id srv_fqdn srv_port srvrecord srv_use_ssl srv_check_port srv_check_addr srv_agent_addr srv_agent_port
3 causeway-cluster-0 1 node-1 192.0.2.11 2 0 1 1 6 6 3 2 6 0 0 0 - 30080 - 0 0 - - 0
4 causeway-local-0 1 node-1 2001:db8::11 0 1 3 3 5 8 2 0 6 0 0 0 - 30081 - 0 31000 - - 31000
5 other 1 a 192.0.2.99 2 0 1 1 6 6 3 2 6 0 0 0 - 80 - 0 0 - - 0
`

func TestParseServers(t *testing.T) {
	want := map[string]map[string]server{
		"causeway-cluster-0": {"node-1": {address: netip.MustParseAddrPort("192.0.2.11:30080"), weight: 1, up: true}},
		"causeway-local-0":   {"node-1": {address: netip.MustParseAddrPort("[2001:db8::11]:30081"), weight: 3, checkPort: 31000, leaving: true}},
	}
	got, err := parseServers(serversText)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(server{}), cmpopts.EquateComparable(netip.AddrPort{})); diff != "" {
		t.Errorf("servers (-want +got):\n%s", diff)
	}
	for _, bad := range []string{"", "2\n# be_name", "1\n# be_id be_name\n", "Permission denied"} {
		if got, err := parseServers(bad); err == nil {
			t.Errorf("%q gives %v", bad, got)
		}
	}
}

func TestParseMap(t *testing.T) {
	got, err := parseMap("0x7fe1f403bf40 192.0.2.60:8000 causeway-cluster-0\n0x7f 2001:db8::60:8000 causeway-local-1\n")
	if diff := cmp.Diff(map[string]string{"192.0.2.60:8000": "causeway-cluster-0", "2001:db8::60:8000": "causeway-local-1"}, got); diff != "" || err != nil {
		t.Errorf("map (-want +got):\n%s%v", diff, err)
	}
	if _, err := parseMap("Unknown map identifier. Please use #<id> or <file>."); err == nil {
		t.Error("no map is read as an empty one")
	}
}

// FuzzParse: nothing that HAProxy could answer makes the parsers panic, and what
// they accept are entries of the answer.
func FuzzParse(f *testing.F) {
	f.Add(serversText)
	f.Add("0x7f a b")
	// A column that is named twice, and a row that ends before the last.
	f.Add("1\n# 0 be_name 0 srv_name srv_addr srv_op_state srv_admin_state srv_uweight srv_port srv_check_port\n0 causeway- 0 0 192.0.2.1 0 0 0 0")
	f.Fuzz(func(t *testing.T, text string) {
		if keys, err := parseMap(text); err == nil {
			for k := range keys {
				if !strings.Contains(text, k) {
					t.Errorf("%q has no key %q", text, k)
				}
			}
		}
		if servers, err := parseServers(text); err == nil {
			for backend := range servers {
				if !strings.HasPrefix(backend, "causeway-") {
					t.Errorf("backend %q of somebody else", backend)
				}
			}
		}
	})
}

const fileText = `loadBalancers:
- class: example.com/haproxy
  haproxy:
    runtime: tcp://192.0.2.60:9999
    addresses: [192.0.2.60, "2001:db8::60"]
    ports: ["80", 8000-8063]
    slots: 1
    resync: 2s
`

func TestRenderFile(t *testing.T) {
	got, err := RenderFile([]byte(fileText), "example.com/haproxy")
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{
		"    stats socket ipv4@192.0.2.60:9999 level admin", "    bind 192.0.2.60:80-80", "    bind 2001:db8::60:8000-8063",
		"backend causeway-cluster-0", "backend causeway-local-source-0",
	} {
		if !strings.Contains(got, line+"\n") {
			t.Errorf("no line %q in\n%s", line, got)
		}
	}
	if _, err := RenderFile([]byte(fileText), "example.com/other"); err == nil {
		t.Error("a class that is not there is rendered")
	}
}

func TestParse(t *testing.T) {
	got, err := Parse([]byte(fileText))
	if err != nil || len(got) != 1 || got[0].Class != "example.com/haproxy" || len(got[0].Addresses) != 2 || len(got[0].Ports) != 2 || got[0].Resync != 2*time.Second ||
		got[0].Runtime != (Socket{Network: "tcp", Address: "192.0.2.60:9999"}) {
		t.Errorf("got %+v, %v", got, err)
	}
	_, err = Parse([]byte("loadBalancers:\n- haproxy: {runtime: haproxy, addresses: [here], ports: [many], resync: often}\n"))
	for _, part := range []string{"class is missing", `runtime: "haproxy" is not a socket`, `addresses[0]: "here" is not an address`, "ports[0]", `resync: "often" is not a time`} {
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("the error does not say %q: %v", part, err)
		}
	}
	if _, err := Parse([]byte("loadBalancer: []")); err == nil {
		t.Error("an unknown field is accepted")
	}
}
