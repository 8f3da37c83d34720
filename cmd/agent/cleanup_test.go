// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/causeway-lb/causeway/internal/testkit/nstest"
)

func TestMain(m *testing.M) { nstest.Main(m) }

// What kube-proxy left goes only when that is safe, and nothing of Causeway's
// with it.
func TestCleanupKubeProxy(t *testing.T) {
	nstest.Require(t, "ip", "nft")
	nstest.Run(t, "nft", `table ip kube-proxy {
	chain services { }
	chain masquerading { }
	chain nat-prerouting { type nat hook prerouting priority -100; jump services; }
	chain nat-postrouting { type nat hook postrouting priority 100; jump masquerading; }
}`)
	nstest.Run(t, "nft", "add table ip6 kube-proxy") // a name alone proves nothing
	clean := func(wantErr string, args ...string) string {
		t.Helper()
		var out bytes.Buffer
		cmd := command()
		cmd.SetOut(&out)
		cmd.SetArgs(append([]string{"cleanup", "--kube-proxy"}, args...))
		err := cmd.ExecuteContext(t.Context())
		if (err == nil) != (wantErr == "") || err != nil && !strings.Contains(err.Error(), wantErr) {
			t.Errorf("%v: error %v, want %q", args, err, wantErr)
		}
		return out.String()
	}
	tables := func(want ...string) {
		t.Helper()
		got := nstest.Run(t, "nft", "list", "tables")
		if strings.TrimSpace(got) != strings.Join(want, "\n") {
			t.Errorf("tables %q, want %q", got, want)
		}
	}
	const kube, kube6, ours = "table ip kube-proxy", "table ip6 kube-proxy", "table ip causeway"

	if said := clean("", "--dry-run"); said != "remove nf_tables table ip kube-proxy\n" {
		t.Errorf("a dry run says %q", said)
	}
	clean("no rules of Causeway are on this node")
	tables(kube, kube6)

	nstest.Run(t, "nft", "add", "table", "ip", "causeway")
	l, err := net.Listen("tcp", "127.0.0.1:10249")
	if err != nil {
		t.Fatal(err)
	}
	running := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "nftables") })}
	go func() { _ = running.Serve(l) }()
	clean("kube-proxy runs on this node")
	tables(kube, kube6, ours)
	if err := running.Close(); err != nil {
		t.Fatal(err)
	}

	clean("")
	tables(kube6, ours)
	if said := clean(""); said != "nothing of kube-proxy's to remove\n" {
		t.Errorf("a second time: %q", said)
	}
}
