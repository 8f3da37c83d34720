// SPDX-License-Identifier: Apache-2.0

package ipvs

import (
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/types"

	"github.com/causeway-lb/causeway/internal/netlink/ipvs"
	"github.com/causeway-lb/causeway/internal/proxy/model"
	"github.com/causeway-lb/causeway/internal/testkit/backendtest"
	"github.com/causeway-lb/causeway/internal/testkit/nstest"
)

func lanService() model.Desired {
	target := &model.Target{Endpoints: []model.Endpoint{{AddrPort: netip.MustParseAddrPort(podA), Weight: 1}}}
	name := types.NamespacedName{Namespace: "default", Name: "web"}
	return model.Desired{Services: map[types.NamespacedName]*model.Service{name: {
		Name: name,
		Frontends: []model.Frontend{{
			Key:  model.Key{Addr: netip.MustParseAddr("192.0.2.200"), Port: 80, Protocol: model.TCP},
			Kind: model.LoadBalancerIP, Inside: target, Outside: target,
		}},
	}}}
}

// A load balancer IP is local to every node, but only its announcer may answer
// ARP for it. Without the table the kernel would: the test can tell.
func TestKernelDoesNotAnswerARP(t *testing.T) {
	b := newTestBackend(t, Config{})
	nstest.Require(t, "nft")
	client := nstest.NewNS(t)
	nstest.Cable(t, nstest.Self(t), "arp0", client, "eth0")
	nstest.Self(t).Address(t, "arp0", netip.MustParsePrefix("192.0.2.11/24"))
	client.Address(t, "eth0", netip.MustParsePrefix("192.0.2.100/24"))
	if _, err := backendtest.Sync(t.Context(), b, lanService(), nil); err != nil {
		t.Fatal(err)
	}
	if resolves(t, client, "192.0.2.200") {
		t.Error("the kernel answers ARP for a load balancer IP")
	}
	if !resolves(t, client, "192.0.2.11") {
		t.Error("the kernel does not answer ARP for its own address")
	}
	nstest.Run(t, "nft", "delete", "table", "arp", Name)
	if !resolves(t, client, "192.0.2.200") {
		t.Error("without the arp table the kernel was to answer: this test proves nothing")
	}
}

// resolves says whether somebody answers ARP for an address.
func resolves(t *testing.T, from *nstest.NS, address string) bool {
	t.Helper()
	from.Must(t, func() error {
		conn, err := net.Dial("udp4", net.JoinHostPort(address, "9"))
		if err != nil {
			return err
		}
		defer conn.Close()
		_, err = conn.Write([]byte("?"))
		return err
	})
	for deadline := time.Now().Add(4 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		neighbour := from.Run(t, "ip", "neigh", "show", address, "dev", "eth0")
		switch {
		case strings.Contains(neighbour, "lladdr"):
			return true
		case strings.Contains(neighbour, "FAILED"):
			return false
		}
	}
	return false
}

// Cleanup leaves nothing of ours, and all of others'.
func TestCleanupLeavesOthersAlone(t *testing.T) {
	b := newTestBackend(t, Config{})
	others, err := ipvs.Dial()
	if err != nil {
		t.Fatal(err)
	}
	defer others.Close()
	key := ipvs.Key{Addr: netip.MustParseAddr("198.51.100.1"), Port: 443, Protocol: unix.IPPROTO_TCP}
	if errs := others.Do([]ipvs.Change{{Op: ipvs.AddServer, Server: key, Settings: ipvs.Settings{Scheduler: "rr"}}}); errs[0] != nil {
		t.Fatal(errs[0])
	}
	defer others.Do([]ipvs.Change{{Op: ipvs.DeleteServer, Server: key}})
	for range 2 {
		if _, err := backendtest.Sync(t.Context(), b, lanService(), nil); err != nil {
			t.Fatal(err)
		}
	}
	if servers, err := others.Read(); err != nil || len(servers) != 2 {
		t.Errorf("%d virtual servers, error %v, want ours and theirs", len(servers), err)
	}
	if err := backendtest.Cleanup(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	servers, err := others.Read()
	if err != nil || len(servers) != 1 || servers[0].Key != key {
		t.Errorf("virtual servers %v, error %v, want theirs only", servers, err)
	}
	for _, look := range [][]string{{"ip", "link"}, {"ip", "rule"}, {"ip", "-6", "rule"}, {"nft", "list", "tables"}} {
		out := nstest.Run(t, look[0], look[1:]...)
		if strings.Contains(out, Name) || strings.Contains(out, "51806") {
			t.Errorf("%v: something was left:\n%s", look, out)
		}
	}
}
