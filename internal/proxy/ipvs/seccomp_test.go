// SPDX-License-Identifier: Apache-2.0

package ipvs

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/causeway-lb/causeway/internal/testkit/backendtest"
	"github.com/causeway-lb/causeway/internal/testkit/seccomp"
)

// TestWorksUnderRuntimeDefault: the mode does what it does under the seccomp profile
// of config/ too. A filter stays with its process, so this is another one.
func TestWorksUnderRuntimeDefault(t *testing.T) {
	const variable = "CAUSEWAY_TEST_SECCOMP"
	if os.Getenv(variable) == "" {
		newTestBackend(t, Config{}) // or this is left to the virtual machine
		cmd := exec.Command("/proc/self/exe", "-test.v", "-test.run=^"+t.Name()+"$")
		cmd.Env = append(os.Environ(), variable+"=1")
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()) {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	filter, err := seccomp.RuntimeDefault()
	if err != nil {
		t.Fatal(err)
	}
	if err := seccomp.Apply(filter); err != nil {
		t.Fatal(err)
	}
	if err := unix.Unshare(unix.CLONE_NEWNET); err != unix.EPERM {
		t.Fatalf("unshare: %v; the filter does not refuse it", err)
	}
	b := newTestBackend(t, Config{})
	story := backendtest.NewStory(1)
	for i := range 10 {
		story.Change()
		if err := story.Sync(t.Context(), b, i%5 == 0); err != nil {
			t.Fatal(err)
		}
	}
	if differences := backendtest.Differences(t, b, story.Desired()); len(differences) > 0 {
		t.Errorf("the kernel differs:\n%s", strings.Join(differences, "\n"))
	}
}
