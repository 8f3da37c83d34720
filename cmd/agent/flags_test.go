// SPDX-License-Identifier: Apache-2.0

package main

import (
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/causeway-lb/causeway/internal/testkit/reference"
)

func parse(t *testing.T, args ...string) *flags {
	t.Helper()
	var f flags
	command := &cobra.Command{}
	f.register(command)
	if err := command.ParseFlags(args); err != nil {
		t.Fatal(err)
	}
	return &f
}

func TestFlags(t *testing.T) {
	if f := parse(t); f.announcer.KeepDeadNodes {
		t.Error("dead nodes' endpoints are kept without --keep-dead-nodes")
	}
	if f := parse(t, "--keep-dead-nodes"); !f.announcer.KeepDeadNodes {
		t.Error("--keep-dead-nodes does not reach the announcer")
	}
	if f := parse(t); f.cfg.MetricsAddress != "127.0.0.1:10249" || f.cfg.SecureMetricsAddress != "" {
		t.Errorf("metrics at %q and %q, want loopback alone", f.cfg.MetricsAddress, f.cfg.SecureMetricsAddress)
	}
	for _, bad := range []struct{ flag, value string }{
		{"pod-cidrs", "10.244.1.0"}, {"node-port-addresses", "eth0"}, {"external-ip-ranges", "198.51.100.0/33"}, {"mode", "nft"}, {"conntrack-min", "-1"},
	} {
		_, err := parse(t, "--"+bad.flag, bad.value).config()
		if err == nil || !strings.HasPrefix(err.Error(), "--"+bad.flag+": ") {
			t.Errorf("--%s=%s: error %v, want one that names the flag", bad.flag, bad.value, err)
		}
	}
}

func TestFlagsAreDocumented(t *testing.T) {
	t.Setenv("KUBECONFIG", "")
	t.Setenv("NODE_NAME", "")
	reference.CheckCommands(t, command())
}
