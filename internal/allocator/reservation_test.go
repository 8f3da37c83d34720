// SPDX-License-Identifier: Apache-2.0

package allocator

import (
	"net/netip"
	"testing"
	"time"

	networkingv1 "k8s.io/api/networking/v1"

	"github.com/causeway-lb/causeway/internal/alloc"
)

func TestReservationOfFormerVersionIsRead(t *testing.T) {
	since := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	want := alloc.Allocation[netip.Addr]{
		Value: netip.MustParseAddr("10.96.0.9"), Owner: alloc.Owner{Namespace: "shop", Name: "web"}, Since: since, Until: since.Add(time.Hour),
	}
	current, former := NewReservation(want, "pool"), NewReservation(want, "pool")
	former.Annotations["causeway.dev/rests-until"] = former.Annotations[untilAnnotation]
	delete(former.Annotations, untilAnnotation)
	for name, ip := range map[string]*networkingv1.IPAddress{"current": current, "former": former} {
		owner, since, until, ok := readReservation(ip)
		if !ok || owner != want.Owner || !since.Equal(want.Since) || !until.Equal(want.Until) {
			t.Errorf("%s: %v from %v to %v, %v", name, owner, since, until, ok)
		}
	}
}
