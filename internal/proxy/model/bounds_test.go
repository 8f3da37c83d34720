// SPDX-License-Identifier: Apache-2.0

package model_test

import (
	"fmt"
	"math"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/causeway-lb/causeway/internal/proxy/model"
)

// big is a Service of type LoadBalancer with so many ports, and one slice of so
// many endpoints that carries all of them.
func big(ports, endpoints int) model.Input {
	svc := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "big"},
		Spec:       corev1.ServiceSpec{Type: corev1.ServiceTypeLoadBalancer, ClusterIP: "10.96.0.1"},
		Status:     corev1.ServiceStatus{LoadBalancer: corev1.LoadBalancerStatus{Ingress: []corev1.LoadBalancerIngress{{IP: "203.0.113.1"}}}},
	}
	sl := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Name: "big-1"}, AddressType: discoveryv1.AddressTypeIPv4}
	for i := range ports {
		name := fmt.Sprint("p", i)
		svc.Spec.Ports = append(svc.Spec.Ports, corev1.ServicePort{Name: name, Protocol: corev1.ProtocolTCP, Port: int32(i + 1)})
		sl.Ports = append(sl.Ports, discoveryv1.EndpointPort{Name: &name, Port: ptr.To(int32(i + 1))})
	}
	for i := range endpoints {
		a := netip.AddrFrom4([4]byte{10, 244, byte(i >> 8), byte(i)})
		sl.Endpoints = append(sl.Endpoints, discoveryv1.Endpoint{Addresses: []string{a.String()}})
	}
	return model.Input{Service: svc, Slices: []*discoveryv1.EndpointSlice{sl}}
}

// cpuSeconds is the least processor time of some calls: unlike the clock, it does
// not see what else the machine does.
func cpuSeconds(f func()) float64 {
	least := math.Inf(1)
	for range 3 {
		runtime.GC()
		var before, after unix.Rusage
		_ = unix.Getrusage(unix.RUSAGE_SELF, &before)
		f()
		_ = unix.Getrusage(unix.RUSAGE_SELF, &after)
		spent := func(r unix.Rusage) float64 { return float64(r.Utime.Nano()+r.Stime.Nano()) / 1e9 }
		least = min(least, spent(after)-spent(before))
	}
	return least
}

// A tenant's Service with many ports costs every node what it is long, not the
// square of that.
func TestPortsCostLinearly(t *testing.T) {
	const few, many = 1000, 8000
	cost := func(ports int) float64 {
		in := big(ports, 1)
		return cpuSeconds(func() { model.ComputeService(in, model.Node{Name: "node-1"}) })
	}
	a, b := cost(few), cost(many)
	if ratio := b / max(a, 1e-4); ratio > 4*many/few {
		t.Errorf("%d ports cost %.4f s, %d cost %.4f s: %.0f times as much", few, a, many, b, ratio)
	}
	out, problems := model.ComputeService(big(many, 1), model.Node{Name: "node-1"})
	if len(out.Frontends) != 2*many || len(problems) > 0 {
		t.Errorf("%d frontends of %d ports, %v", len(out.Frontends), many, problems)
	}
}

func slotsOf(svc *model.Service) (sum int) {
	for i := range svc.Frontends {
		f := &svc.Frontends[i]
		sum += model.Slots(f.Inside.Endpoints)
		if f.Outside != f.Inside {
			sum += model.Slots(f.Outside.Endpoints)
		}
	}
	return sum
}

// However large its ports, addresses, endpoints and weights make a Service, every
// one of its ports is served, within bounds, and it is said that not all is.
func TestSlotsAreBounded(t *testing.T) {
	external := func(n int) (in model.Input) {
		in = big(100, 3)
		for i := range n {
			in.Service.Spec.ExternalIPs = append(in.Service.Spec.ExternalIPs, netip.AddrFrom4([4]byte{198, 51, byte(i >> 8), byte(i)}).String())
		}
		return in
	}
	weighted := func(in model.Input) model.Input {
		for i, ep := range in.Slices[0].Endpoints {
			sl := *in.Slices[0]
			sl.Name, sl.Endpoints = fmt.Sprint("big-", i), []discoveryv1.Endpoint{ep}
			sl.Annotations = map[string]string{model.WeightAnnotation: fmt.Sprint(i%100 + 1)}
			in.Slices = append(in.Slices, &sl)
		}
		in.Slices = in.Slices[1:]
		return in
	}
	for _, tc := range []struct {
		name     string
		in       model.Input
		reasons  string
		fraction float64 // of the bound that is used at least
	}{
		{"ports and endpoints", big(2000, 70), "TooManyEndpoints", 0.9},
		{"more entries than are looked at", big(4000, 140), "TooManyEndpoints", 0.9},
		{"ordinary for some", big(15, 1000), "", 0},
		{"more endpoints", big(40, 2500), "TooManyEndpoints", 0.4},
		{"weights", weighted(big(200, 60)), "TooManyEndpoints", 0.05},
		{"external IPs", external(2000), "TooManyFrontends TooManyEndpoints", 0.5},
		{"a large but ordinary one", big(3, 5000), "", 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			node := func(name string) model.Node {
				return model.Node{Name: name, ExternalIPRanges: []netip.Prefix{netip.MustParsePrefix("198.51.0.0/16")}}
			}
			out, problems := model.ComputeService(tc.in, node("node-1"))
			var reasons []string
			for _, p := range problems {
				if !slices.Contains(reasons, p.Reason) {
					reasons = append(reasons, p.Reason)
				}
			}
			if got := strings.Join(reasons, " "); got != tc.reasons {
				t.Errorf("problems %q, want %q: %v", got, tc.reasons, problems)
			}
			if n := slotsOf(out); n > model.MaxSlots || float64(n) < tc.fraction*model.MaxSlots {
				t.Errorf("%d slots of %d", n, model.MaxSlots)
			}
			if len(out.Frontends) > model.MaxFrontends {
				t.Errorf("%d frontends", len(out.Frontends))
			}
			for i := range out.Frontends {
				if f := &out.Frontends[i]; len(f.Inside.Endpoints) == 0 || !slices.IsSortedFunc(f.Inside.Endpoints, func(a, b model.Endpoint) int { return a.AddrPort.Compare(b.AddrPort) }) {
					t.Fatalf("%s: %v", f.Key, f.Inside)
				}
			}
			again, _ := model.ComputeService(tc.in, node("node-1"))
			if !out.Equal(again) {
				t.Error("the same input gives something else")
			}
			if other, _ := model.ComputeService(tc.in, node("node-2")); tc.reasons == "TooManyEndpoints" && tc.name != "weights" && other.Equal(out) {
				t.Error("all nodes leave out the same endpoints")
			}
		})
	}
}

// Source ranges are for each frontend.
func TestSourceRangesAreBounded(t *testing.T) {
	in := big(1000, 1)
	for i := range 1000 {
		in.Service.Spec.LoadBalancerSourceRanges = append(in.Service.Spec.LoadBalancerSourceRanges, netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 0, byte(i >> 6), byte(i << 2)}), 30).String())
	}
	out, problems := model.ComputeService(in, model.Node{})
	n := 0
	for i := range out.Frontends {
		n += len(out.Frontends[i].SourceRanges)
	}
	if len(problems) != 1 || problems[0].Reason != "TooManySourceRanges" || n == 0 || n > model.MaxSlots {
		t.Errorf("%d source ranges, %v", n, problems)
	}
}

// What can't be an endpoint is none, whoever wrote the slice, and is said once a
// slice.
func TestImpossibleEndpoints(t *testing.T) {
	for fam, addrs := range map[discoveryv1.AddressType][]string{
		discoveryv1.AddressTypeIPv4: {"127.0.0.1", "127.9.9.9", "169.254.1.1", "169.254.169.254", "224.0.0.1", "239.1.2.3", "0.0.0.0", "255.255.255.255",
			"10.96.0.1", "010.096.000.001", "nonsense", "", "2001:db8::1", "127.000.000.001"},
		discoveryv1.AddressTypeIPv6: {"::1", "::", "fe80::1", "fe80::1%eth0", "febf::1", "ff02::1", "ff05::2", "fd00:10:96::1", "::ffff:127.0.0.1", "::ffff:192.0.2.1", "192.0.2.1"},
	} {
		for _, proto := range []corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP} {
			for _, a := range addrs {
				svc := &corev1.Service{Spec: corev1.ServiceSpec{ClusterIP: "10.96.0.1", ClusterIPs: []string{"10.96.0.1", "fd00:10:96::1"},
					Ports: []corev1.ServicePort{{Port: 80, Protocol: proto}}}}
				good := "10.244.1.2"
				if fam == discoveryv1.AddressTypeIPv6 {
					good = "fd00:10:244:1::2"
				}
				sl := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Name: "web-1"}, AddressType: fam,
					Ports:     []discoveryv1.EndpointPort{{Port: ptr.To[int32](80), Protocol: &proto}},
					Endpoints: []discoveryv1.Endpoint{{Addresses: []string{a}}, {Addresses: []string{good}}, {Addresses: []string{a}}}}
				out, problems := model.ComputeService(model.Input{Service: svc, Slices: []*discoveryv1.EndpointSlice{sl}}, model.Node{})
				if len(problems) != 1 || problems[0].Reason != "InvalidEndpoint" || !strings.Contains(problems[0].Message, "web-1") {
					t.Errorf("%s %q: %v", fam, a, problems)
				}
				for _, f := range out.Frontends {
					if n := len(f.Inside.Endpoints); f.Addr.Is4() == (fam == discoveryv1.AddressTypeIPv4) && n != 1 || n > 1 {
						t.Errorf("%s %q: %v", fam, a, f.Inside.Endpoints)
					}
					if len(f.Serving) > 1 {
						t.Errorf("%s %q serves: %v", fam, a, f.Serving)
					}
				}
			}
		}
	}
}

// A Service with many faults of a kind does not become as many events on every node.
func TestProblemsAreBounded(t *testing.T) {
	bad := big(500, 1)
	for i := range bad.Service.Spec.Ports {
		bad.Service.Spec.Ports[i].Port = int32(70000 + i)
	}
	if _, problems := model.ComputeService(bad, model.Node{}); len(problems) != 21 {
		t.Errorf("%d problems of 500 bad ports", len(problems))
	}
	first, second := big(500, 1), big(500, 1)
	second.Service.Name, second.Service.Spec.ClusterIP = "second", "10.96.0.2"
	_, problems := model.Compute(model.Snapshot{Services: []model.Input{first, second}})
	if len(problems) != 21 || problems[0].Reason != "FrontendConflict" {
		t.Errorf("%d problems of 500 ports at another's address", len(problems))
	}
}

func BenchmarkComputeService(b *testing.B) {
	for _, size := range []struct{ ports, endpoints int }{{1, 5}, {1, 100}, {1000, 1}, {1000, 100}, {16000, 1}} {
		in := big(size.ports, size.endpoints)
		b.Run(fmt.Sprintf("%dx%d", size.ports, size.endpoints), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				model.ComputeService(in, model.Node{Name: "node-1"})
			}
		})
	}
}
