// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/causeway-lb/causeway/internal/proxy/backend"
	"github.com/causeway-lb/causeway/internal/proxy/model"
	"github.com/causeway-lb/causeway/internal/testkit/backendtest"
	"github.com/causeway-lb/causeway/internal/testkit/flowmatrix"
	"github.com/causeway-lb/causeway/internal/testkit/nstest"
)

func TestMain(m *testing.M) { nstest.Main(m) }

func newTestBackend(t testing.TB, variant string) *Backend {
	t.Helper()
	nstest.Require(t, "ip", "iptables-restore", "ip6tables-restore")
	b, err := New(Config{Variant: variant})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

var variants = []string{"nft", "legacy"}

// variantVariable names the variant in a test process that is for one only.
const variantVariable = "CAUSEWAY_TEST_IPTABLES_VARIANT"

// The table's network takes a namespace of its own, so each variant gets a
// process of its own.
func TestFlowsWithPackets(t *testing.T) {
	if v := os.Getenv(variantVariable); v != "" {
		flowmatrix.Packets(t, newTestBackend(t, v))
		return
	}
	for _, v := range variants {
		t.Run(v, func(t *testing.T) {
			newTestBackend(t, v) // ends the test here if it cannot run
			self, err := os.Executable()
			if err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command("unshare", "--net", self, "-test.run=^TestFlowsWithPackets$", "-test.v")
			cmd.Env = append(os.Environ(), variantVariable+"="+v)
			cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Errorf("%v\n%s", err, out)
			}
			if rows := strings.Count(string(out), "    --- PASS"); rows < 200 {
				t.Errorf("%d flows passed, want all", rows)
			}
		})
	}
}

func TestContract(t *testing.T) {
	for _, v := range variants {
		t.Run(v, func(t *testing.T) {
			backendtest.Run(t, func(t testing.TB) backend.Backend { return newTestBackend(t, v) })
		})
	}
}

// Whether there is something to clean up is told without asking the programs.
func TestPresent(t *testing.T) {
	for _, v := range variants {
		t.Run(v, func(t *testing.T) {
			b := newTestBackend(t, v)
			check := func(want bool) {
				t.Helper()
				if got, err := Present(Config{Variant: v}); err != nil || got != want {
					t.Errorf("present %v, error %v, want %v", got, err, want)
				}
			}
			if v == "nft" {
				check(false)
			}
			if _, err := backendtest.Sync(t.Context(), b, model.Desired{}, nil); err != nil {
				t.Fatal(err)
			}
			check(true)
			if err := backendtest.Cleanup(t.Context(), b); err != nil {
				t.Fatal(err)
			}
			if v == "nft" {
				check(false) // the legacy variant's tables stay, empty
			}
		})
	}
}
