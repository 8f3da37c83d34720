// SPDX-License-Identifier: Apache-2.0

package modes

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/causeway-lb/causeway/internal/testkit/nstest"
)

// A kernel that cannot translate addresses gets the userspace proxy from auto,
// and Services work. The virtual machine's kernel is made such a one by hiding
// the modules; this test comes first, as they are not loaded yet then.
func TestAutoWithoutTranslation(t *testing.T) {
	if !nstest.InVM() {
		nstest.LeaveToVM(t, "this kernel's address translation cannot be taken away")
	}
	nstest.Require(t, "ip", "iptables-restore", "ip6tables-restore")
	hideModules(t, "nf_nat", "nft_chain_nat", "iptable_nat", "ip6table_nat", "nft_compat")
	net := newNetwork(t)
	var told []string
	c, err := New(Config{Mode: Auto, Kinds: Kinds(Configs{}), FellBack: func(from, to Mode, why error) {
		told = append(told, string(from)+" to "+string(to))
		t.Logf("%s -> %s: %v", from, to, why)
	}})
	if err != nil {
		t.Fatal(err)
	}
	mustSync(t, c)
	if c.Name() != string(Userspace) || len(told) != 2 {
		t.Errorf("mode %s in use after %v, want userspace after two others", c.Name(), told)
	}
	net.start(t).verify(t, false)
	if err := c.Cleanup(t.Context()); err != nil {
		t.Error(err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

// hideModules takes modules of the kernel away until the test ends.
func hideModules(t *testing.T, names ...string) {
	t.Helper()
	loaded, err := os.ReadFile("/proc/modules")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if strings.Contains("\n"+string(loaded), "\n"+name+" ") {
			t.Fatalf("module %s is loaded already", name)
		}
	}
	hidden := 0
	err = filepath.WalkDir("/lib/modules", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		name, _, _ := strings.Cut(d.Name(), ".ko")
		for _, n := range names {
			if name != n {
				continue
			}
			if err := os.Rename(path, path+".hidden"); err != nil {
				return err
			}
			t.Cleanup(func() {
				if err := os.Rename(path+".hidden", path); err != nil {
					t.Error(err)
				}
			})
			hidden++
		}
		return nil
	})
	if err != nil || hidden == 0 {
		t.Fatalf("%d modules hidden, error %v", hidden, err)
	}
}
