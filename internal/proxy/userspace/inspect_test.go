// SPDX-License-Identifier: Apache-2.0

package userspace

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/causeway-lb/causeway/internal/proxy/model"
	"github.com/causeway-lb/causeway/internal/testkit/backendtest"
)

// A listener that is gone, and a frontend that the proxy does not know, are named, and
// nothing else.
func TestDifferencesNameWhatIsGone(t *testing.T) {
	b := fakeBackend(t, newFakeKernel())
	d := desired(model.TCP, 0, podA)
	mustSync(t, b, d)
	check := func(want ...string) {
		t.Helper()
		if diff := cmp.Diff(want, backendtest.Differences(t, b, d)); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	}
	check()
	_ = b.proxy.closers[0].Close()
	b.proxy.closers = b.proxy.closers[1:] // close is not to meet it again
	check("missing userspace listener for IPv4 TCP from inside")
	b.proxy.dropAll()
	check("default/web port 80/TCP: missing endpoint 10.244.1.2:8080 of ClusterIP 10.96.0.10:80/TCP (nft element ip causeway-userspace services { 10.96.0.10 . tcp . 80 : 0x5b000001 })",
		"missing userspace listener for IPv4 TCP from inside")
}
