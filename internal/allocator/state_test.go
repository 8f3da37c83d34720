// SPDX-License-Identifier: Apache-2.0

package allocator

import (
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/causeway-lb/causeway/internal/alloc/services"
)

// Two Services have an address or a port in common: both are named when the second
// is seen, whichever the reconciler looked at before, and when one of them goes or
// lets go of it. Events that change nothing name none.
func TestSharingServicesAreReported(t *testing.T) {
	for name, share := range map[string]func(*corev1.Service){
		"IPv4": func(s *corev1.Service) { s.Spec.ClusterIPs = []string{"10.96.0.9"} },
		"IPv6": func(s *corev1.Service) { s.Spec.ClusterIPs = []string{"fd00:96::9"} },
		"port": func(s *corev1.Service) { s.Spec.Ports = []corev1.ServicePort{{Port: 80, NodePort: 30123}} },
		"healthCheckNodePort": func(s *corev1.Service) {
			s.Spec.ExternalTrafficPolicy, s.Spec.HealthCheckNodePort = corev1.ServiceExternalTrafficPolicyLocal, 30124
		},
	} {
		t.Run(name, func(t *testing.T) {
			state := NewState(services.Config{}, time.Now, func(Change) {})
			version := 0
			service := func(name string, change func(*corev1.Service)) *corev1.Service {
				version++
				s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, UID: types.UID(name), ResourceVersion: string(rune('0' + version))}}
				s.Spec.Type = corev1.ServiceTypeLoadBalancer
				if change != nil {
					change(s)
				}
				if len(s.Spec.ClusterIPs) > 0 {
					s.Spec.ClusterIP = s.Spec.ClusterIPs[0]
				}
				return s
			}
			expect := func(what string, change Change, names ...string) {
				t.Helper()
				named := change.Sharing
				var want []types.NamespacedName
				for _, n := range names {
					want = append(want, types.NamespacedName{Namespace: "shop", Name: n})
				}
				slices.SortFunc(named, func(a, b types.NamespacedName) int { return slices.Compare([]byte(a.Name), []byte(b.Name)) })
				if !slices.Equal(named, want) {
					t.Errorf("%s: %v named, want %v", what, named, want)
				}
			}
			first := service("first", share)
			expect("alone", state.setService(first))
			expect("the second comes", state.setService(service("second", share)), "first", "second")
			expect("nothing that matters changes", state.setService(service("second", share)))
			expect("the second lets go", state.setService(service("second", nil)), "first", "second")
			expect("the second takes it again", state.setService(service("second", share)), "first", "second")
			expect("the first goes", state.forgetService(first), "first", "second")
		})
	}
}
