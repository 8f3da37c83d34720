// SPDX-License-Identifier: Apache-2.0

package services

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"github.com/causeway-lb/causeway/api/v1alpha1"
	"github.com/causeway-lb/causeway/internal/alloc"
)

var t0 = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// fixture is a book with a dual-stack cluster, and a pool of each kind for
// namespaces with the label tenant=blue.
func fixture(t *testing.T) *Allocations {
	t.Helper()
	b := New(Config{})
	b.SetServiceCIDRs([]netip.Prefix{netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("fd00:10:96::/112")})
	blue := &metav1.LabelSelector{MatchLabels: map[string]string{"tenant": "blue"}}
	if err := b.SetClusterIPPool(&v1alpha1.ClusterIPPool{
		ObjectMeta: metav1.ObjectMeta{Name: "blue"},
		Spec: v1alpha1.ClusterIPPoolSpec{
			Ranges: []v1alpha1.AddressRange{"10.96.8.0/28", "fd00:10:96::800/124"}, NamespaceSelector: blue,
			Quarantine: &metav1.Duration{Duration: time.Minute},
		},
	}); err != nil {
		t.Fatal(err)
	}
	if err := b.SetNodePortPool(&v1alpha1.NodePortPool{
		ObjectMeta: metav1.ObjectMeta{Name: "blue"},
		Spec: v1alpha1.NodePortPoolSpec{
			Ranges: []v1alpha1.PortRange{"30100-30109"}, ReservedPorts: []v1alpha1.PortRange{"30109"}, NamespaceSelector: blue,
		},
	}); err != nil {
		t.Fatal(err)
	}
	return b
}

func request(svc *corev1.Service, tenant string, now time.Time) Request {
	return Request{
		Service: svc, NamespaceLabels: map[string]string{"tenant": tenant}, UID: fmt.Sprint("request-", rand.Uint64()),
		Now: now, Random: rand.Uint64,
	}
}

// stored is the Service as the API server stores it with a grant.
func stored(svc *corev1.Service, g Grant) *corev1.Service {
	svc = svc.DeepCopy()
	svc.UID = "uid-" + svc.UID
	if len(g.ClusterIPs) > 0 {
		svc.Spec.ClusterIPs, svc.Spec.ClusterIP = g.ClusterIPs, g.ClusterIPs[0]
	}
	for i, n := range g.NodePorts {
		svc.Spec.Ports[i].NodePort = int32(n)
	}
	svc.Spec.HealthCheckNodePort = int32(g.HealthCheckNodePort)
	return svc
}

func named(name string, changes ...func(*corev1.ServiceSpec)) *corev1.Service {
	svc := service(changes...)
	svc.Name = name
	return svc
}

func TestAdmitWithoutPools(t *testing.T) {
	b := New(Config{})
	b.SetServiceCIDRs([]netip.Prefix{netip.MustParsePrefix("10.96.0.0/16")})
	g, err := b.Admit(request(service(nodePorts(0)), "blue", t0))
	if diff := cmp.Diff(Grant{}, g); diff != "" || err != nil {
		t.Errorf("grant (-want +got):\n%s%v", diff, err)
	}
}

func TestServiceOutsidePoolsGetsRemainder(t *testing.T) {
	b := fixture(t)
	pool := netip.MustParsePrefix("10.96.8.0/28")
	seen := map[string]bool{}
	for i := range 2000 {
		svc := named(fmt.Sprint("s", i), nodePorts(0))
		g, err := b.Admit(request(svc, "red", t0))
		if err != nil {
			t.Fatal(err)
		}
		addr := netip.MustParseAddr(g.ClusterIPs[0])
		if pool.Contains(addr) || !netip.MustParsePrefix("10.96.0.0/16").Contains(addr) || seen[g.ClusterIPs[0]] || seen[fmt.Sprint(g.NodePorts[0])] {
			t.Fatalf("grant %d: %v", i, g)
		}
		if n := g.NodePorts[0]; n < 30000 || n > 32767 || n >= 30100 && n <= 30109 {
			t.Fatalf("grant %d: NodePort %d", i, n)
		}
		seen[g.ClusterIPs[0]], seen[fmt.Sprint(g.NodePorts[0])] = true, true
		b.Observe(stored(svc, g), t0)
	}
}

func TestAdmitDenials(t *testing.T) {
	for _, tc := range []struct {
		name, tenant string
		svc          *corev1.Service
		reason       Reason
		want         string
	}{
		{"an address of another's pool", "red", service(ips("10.96.8.3")), Foreign, "spec.clusterIPs[0]: 10.96.8.3 belongs to ClusterIPPool blue, which does not select this Service"},
		{"a port of another's pool", "red", service(nodePorts(30103)), Foreign, "spec.ports[0].nodePort: 30103 belongs to NodePortPool blue"},
		{"an external IP of another's pool", "red", service(func(s *corev1.ServiceSpec) { s.ExternalIPs = []string{"198.51.100.1", "10.96.8.4"} }), Foreign, "spec.externalIPs[1]: 10.96.8.4 belongs to"},
		{"an address of another's pool with leading zeros", "red", service(ips("10.96.008.003")), Foreign, "spec.clusterIPs[0]: 10.96.8.3 belongs to ClusterIPPool blue"},
		{"an external IP of another's pool with leading zeros", "red", service(func(s *corev1.ServiceSpec) { s.ExternalIPs = []string{"10.96.008.004"} }), Foreign, "spec.externalIPs[0]: 10.96.8.4 belongs to"},
		{"an address outside one's pool", "blue", service(ips("10.96.1.1")), Outside, "10.96.1.1 is not in ClusterIPPool blue, which serves this Service"},
		{"a port outside one's pool", "blue", service(nodePorts(30200)), Outside, "30200 is not in NodePortPool blue"},
		{"a reserved port", "blue", service(nodePorts(30109)), Reserved, "30109 is reserved in NodePortPool blue"},
		{"an address that is taken", "blue", service(ips("10.96.8.7")), Taken, "10.96.8.7 is held by Service shop/first"},
		{"a port that is taken", "blue", service(nodePorts(30107)), Taken, "30107 is held by Service shop/first"},
		{"more ports than there are", "blue", service(nodePorts(make([]int32, 9)...)), Full, "no port to give: pool blue has no free value: of 10, 1 are held, 8 on their way, 0 resting after release, 1 excluded"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := fixture(t)
			b.Observe(stored(named("first", ips("10.96.8.7"), nodePorts(30107)), Grant{}), t0)
			before := []alloc.Stats{b.addresses[v4].Stats("blue"), b.addresses[v6].Stats("blue"), b.ports.Stats("blue")}
			g, err := b.Admit(request(tc.svc, tc.tenant, t0))
			var denied *Denied
			if !errors.As(err, &denied) || denied.Reason != tc.reason || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want %s: %q", err, tc.reason, tc.want)
			}
			after := []alloc.Stats{b.addresses[v4].Stats("blue"), b.addresses[v6].Stats("blue"), b.ports.Stats("blue")}
			if diff := cmp.Diff(before, after); diff != "" || !cmp.Equal(g, Grant{}) {
				t.Errorf("a refusal left a trace (-before +after):\n%s%v", diff, g)
			}
		})
	}
}

// An update is judged by what it adds, whichever field brings it: what a Service
// had is never held against it.
func TestAdmitUpdateWithAddressOfOtherPool(t *testing.T) {
	externalIPs := func(addresses ...string) func(*corev1.Service) {
		return func(svc *corev1.Service) { svc.Spec.ExternalIPs = addresses }
	}
	annotated := func(value string) func(*corev1.Service) {
		return func(svc *corev1.Service) {
			metav1.SetMetaDataAnnotation(&svc.ObjectMeta, v1alpha1.AddressesAnnotation, value)
		}
	}
	foreign := func(name, value string) func(*corev1.Service) {
		return func(svc *corev1.Service) { metav1.SetMetaDataAnnotation(&svc.ObjectMeta, name, value) }
	}
	loadBalancer := func(svc *corev1.Service) {
		svc.Spec.Type, svc.Spec.AllocateLoadBalancerNodePorts = corev1.ServiceTypeLoadBalancer, ptr.To(false)
	}
	loadBalancerIP := func(svc *corev1.Service) { svc.Spec.LoadBalancerIP = "198.51.100.7" }
	none := func(*corev1.Service) {}
	for _, tc := range []struct {
		name     string
		old, new []func(*corev1.Service)
		want     string // empty: allowed
	}{
		{"an external IP more", []func(*corev1.Service){externalIPs("192.0.2.1")}, []func(*corev1.Service){externalIPs("192.0.2.1", "198.51.100.7")}, "spec.externalIPs[1]: 198.51.100.7 belongs to LoadBalancerPool lan"},
		{"an external IP in another order", []func(*corev1.Service){externalIPs("192.0.2.1", "198.51.100.7")}, []func(*corev1.Service){externalIPs("198.51.100.7", "192.0.2.1")}, ""},
		{"a label, the external IP was there", []func(*corev1.Service){externalIPs("198.51.100.7")}, []func(*corev1.Service){externalIPs("198.51.100.7"), func(svc *corev1.Service) { svc.Labels = map[string]string{"a": "b"} }}, ""},
		{"spec.loadBalancerIP", []func(*corev1.Service){loadBalancer}, []func(*corev1.Service){loadBalancer, loadBalancerIP}, "spec.loadBalancerIP: 198.51.100.7 belongs to LoadBalancerPool lan"},
		{"spec.loadBalancerIP, which was ignored till the type changed", []func(*corev1.Service){loadBalancerIP}, []func(*corev1.Service){loadBalancer, loadBalancerIP}, "spec.loadBalancerIP: 198.51.100.7 belongs to"},
		{"the annotation", []func(*corev1.Service){loadBalancer, annotated("192.0.2.1")}, []func(*corev1.Service){loadBalancer, annotated("192.0.2.1, 198.51.100.7")}, "metadata.annotations[causeway.dev/addresses]: 198.51.100.7 belongs to"},
		{"the annotation, which was ignored till the type changed", []func(*corev1.Service){annotated("198.51.100.7")}, []func(*corev1.Service){loadBalancer, annotated("198.51.100.7")}, "metadata.annotations[causeway.dev/addresses]: 198.51.100.7 belongs to"},
		{"another product's annotation that is heeded", []func(*corev1.Service){loadBalancer}, []func(*corev1.Service){loadBalancer, foreign("example.com/ips", "198.51.100.7")}, "metadata.annotations[example.com/ips]: 198.51.100.7 belongs to"},
		{"another product's, beside our own", []func(*corev1.Service){loadBalancer}, []func(*corev1.Service){loadBalancer, annotated("192.0.2.1"), foreign("example.com/ips", "198.51.100.7")}, ""},
		{"another product's, once our own has gone", []func(*corev1.Service){loadBalancer, annotated("192.0.2.1"), foreign("example.com/ips", "198.51.100.7")}, []func(*corev1.Service){loadBalancer, foreign("example.com/ips", "198.51.100.7")}, "metadata.annotations[example.com/ips]: 198.51.100.7 belongs to"},
		{"another product's, the same address as before", []func(*corev1.Service){loadBalancer, annotated("198.51.100.7")}, []func(*corev1.Service){loadBalancer, foreign("example.com/ips", "198.51.100.7")}, ""},
		{"another product's that is not heeded", []func(*corev1.Service){loadBalancer}, []func(*corev1.Service){loadBalancer, foreign("example.com/others", "198.51.100.7")}, ""},
		{"the annotation of a Service that is no load balancer", []func(*corev1.Service){none}, []func(*corev1.Service){annotated("198.51.100.7")}, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := fixture(t)
			b.config.AddressAnnotations = append(b.config.AddressAnnotations, "example.com/ips")
			if err := b.SetLoadBalancerPool(&v1alpha1.LoadBalancerPool{
				ObjectMeta: metav1.ObjectMeta{Name: "lan"},
				Spec: v1alpha1.LoadBalancerPoolSpec{
					Addresses: []v1alpha1.AddressRange{"198.51.100.0/28"}, NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"tenant": "blue"}},
				},
			}); err != nil {
				t.Fatal(err)
			}
			make := func(changes []func(*corev1.Service)) *corev1.Service {
				svc := service(ips("10.96.1.1"))
				for _, change := range changes {
					change(svc)
				}
				return svc
			}
			req := request(make(tc.new), "red", t0)
			req.Old = make(tc.old)
			_, err := b.Admit(req)
			var denied *Denied
			switch {
			case tc.want == "" && err != nil:
				t.Errorf("denied: %v", err)
			case tc.want != "" && (!errors.As(err, &denied) || denied.Reason != Foreign || !strings.HasPrefix(err.Error(), tc.want)):
				t.Errorf("got %v, want %s: %q", err, Foreign, tc.want)
			case tc.want != "" && !b.Concerns(req.Service, req.Old):
				t.Error("nobody would have asked: Concerns says no")
			}
			if _, err := b.Admit(Request{Service: req.Service, Old: req.Old, NamespaceLabels: map[string]string{"tenant": "blue"}, Now: t0, Random: rand.Uint64}); err != nil {
				t.Errorf("the tenant itself is denied: %v", err)
			}
		})
	}
}

func TestAdmitDryRunHasNoSideEffects(t *testing.T) {
	b := fixture(t)
	req := request(service(nodePorts(0), dual(corev1.IPFamilyPolicyRequireDualStack)), "blue", t0)
	req.DryRun = true
	for range 100 {
		if g, err := b.Admit(req); err != nil || !cmp.Equal(g, Grant{}) {
			t.Fatalf("dry run: %v, %v", g, err)
		}
	}
	for lease := range b.ports.All() {
		t.Errorf("a dry run left %v", lease)
	}
	if got := b.ports.Remembers(alloc.OwnerOf(req.Service)); len(got) > 0 {
		t.Errorf("a dry run is remembered: %v", got)
	}
}

// To ask with a dry run first, or to be denied for another reason, costs a Service
// nothing of what it can come back to.
func TestRecreatedServiceAfterDryRunAndDenial(t *testing.T) {
	b := fixture(t)
	svc := stored(named("web", ips("10.96.8.7"), nodePorts(30107)), Grant{})
	b.Observe(svc, t0)
	b.Forget(alloc.OwnerOf(svc), t0)
	now := t0.Add(time.Minute) // what was released is certain to be free
	dry := request(named("web", nodePorts(0)), "blue", now)
	dry.DryRun = true
	if _, err := b.Admit(dry); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Admit(request(named("web", nodePorts(make([]int32, 10)...)), "blue", now)); err == nil {
		t.Fatal("ten ports of nine were granted")
	}
	g, err := b.Admit(request(named("web", nodePorts(0)), "blue", now))
	if err != nil {
		t.Fatal(err)
	}
	if g.ClusterIPs[0] != "10.96.8.7" || g.NodePorts[0] != 30107 {
		t.Errorf("granted %v and %v, want what it had", g.ClusterIPs, g.NodePorts)
	}
}

// Ports that the API server would refuse are given to nobody.
func TestPortsOutsideTheAPIServersRange(t *testing.T) {
	b := fixture(t)
	set := func(ranges ...v1alpha1.PortRange) {
		if err := b.SetNodePortPool(&v1alpha1.NodePortPool{ObjectMeta: metav1.ObjectMeta{Name: "p"}, Spec: v1alpha1.NodePortPoolSpec{Ranges: ranges}}); err != nil {
			t.Fatal(err)
		}
	}
	set("29000-30001", "32767-40000", "20000")
	if diff := cmp.Diff([]string{"20000", "29000-29999", "32768-40000"}, b.NodePortPool("p", t0).Outside); diff != "" {
		t.Errorf("outside (-want +got):\n%s", diff)
	}
	for i := range 3 {
		g, err := b.Admit(request(named(fmt.Sprint("s", i), nodePorts(0)), "red", t0))
		if err != nil {
			t.Fatal(err)
		}
		if n := g.NodePorts[0]; n < 30000 || n > 32767 {
			t.Errorf("granted %d", n)
		}
	}
	_, err := b.Admit(request(named("one more", nodePorts(0)), "red", t0))
	var denied *Denied
	if !errors.As(err, &denied) || denied.Reason != Full {
		t.Errorf("a fourth port of three: %v", err)
	}
}

// Whoever may grant is not asked where there is nothing to grant.
func TestConcerns(t *testing.T) {
	onlyLoadBalancers := New(Config{})
	onlyLoadBalancers.SetServiceCIDRs([]netip.Prefix{netip.MustParsePrefix("10.96.0.0/16")})
	if err := onlyLoadBalancers.SetLoadBalancerPool(&v1alpha1.LoadBalancerPool{
		ObjectMeta: metav1.ObjectMeta{Name: "lan"}, Spec: v1alpha1.LoadBalancerPoolSpec{Addresses: []v1alpha1.AddressRange{"198.51.100.0/28"}},
	}); err != nil {
		t.Fatal(err)
	}
	externalIP := func(s *corev1.ServiceSpec) { s.ExternalIPs = []string{"198.51.100.3"} }
	for _, tc := range []struct {
		name     string
		b        *Allocations
		svc, old *corev1.Service
		want     bool
	}{
		{"no pools", New(Config{}), service(nodePorts(0)), nil, false},
		{"created", fixture(t), service(), nil, true},
		{"created headless", fixture(t), service(ips("None")), nil, false},
		{"created headless, with an external IP", fixture(t), service(ips("None"), externalIP), nil, true},
		{"touched", fixture(t), service(ips("10.96.8.7")), service(ips("10.96.8.7")), false},
		{"with a NodePort now", fixture(t), service(ips("10.96.8.7"), nodePorts(0)), service(ips("10.96.8.7")), true},
		{"created where there are only LoadBalancerPools", onlyLoadBalancers, service(nodePorts(0)), nil, false},
		{"created with an external IP there", onlyLoadBalancers, service(externalIP), nil, true},
		{"with an external IP now", onlyLoadBalancers, service(ips("10.96.0.5"), externalIP), service(ips("10.96.0.5")), true},
	} {
		if got := tc.b.Concerns(tc.svc, tc.old); got != tc.want {
			t.Errorf("%s: %v, want %v", tc.name, got, tc.want)
		}
	}
}

func TestRecreatedServiceGetsFormerValues(t *testing.T) {
	b := fixture(t)
	spec := []func(*corev1.ServiceSpec){nodePorts(0, 0, 0), dual(corev1.IPFamilyPolicyRequireDualStack)}
	first, err := b.Admit(request(named("web", spec...), "blue", t0))
	if err != nil {
		t.Fatal(err)
	}
	svc := stored(named("web", spec...), first)
	b.Observe(svc, t0)
	b.Forget(alloc.OwnerOf(svc), t0)
	for i := range 3 { // strangers meanwhile
		if _, err := b.Admit(request(named(fmt.Sprint("other", i)), "blue", t0)); err != nil {
			t.Fatal(err)
		}
	}
	again, err := b.Admit(request(named("web", spec...), "blue", t0.Add(time.Second)))
	if err != nil {
		t.Fatal(err)
	}
	if len(again.Former) != 2 {
		t.Errorf("former %v, want both addresses", again.Former)
	}
	again.Former = nil
	if diff := cmp.Diff(first, again); diff != "" {
		t.Errorf("second grant (-first +second):\n%s", diff)
	}
}

// Two requests at the same time compete and must not get one value; a retry gets what
// the first try was granted, so that retries use nothing up.
func TestConcurrentRequestsAndRetries(t *testing.T) {
	b := fixture(t)
	grant := func(now time.Time) string {
		g, err := b.Admit(request(named("web"), "blue", now))
		if err != nil {
			t.Fatal(err)
		}
		return g.ClusterIPs[0]
	}
	first := grant(t0)
	if rival := grant(t0.Add(100 * time.Millisecond)); rival == first {
		t.Errorf("two requests at once got %s", first)
	}
	for i := range 50 {
		grant(t0.Add(time.Duration(2+i) * time.Second))
	}
	if got := b.addresses[v4].Stats("blue"); got.Pending != 2 {
		t.Errorf("52 tries of one Service use up %d addresses, want 2", got.Pending)
	}
}

// The API server keeps booked what an update that it had to repeat was granted
// at first. So a repeated update gets something else, and nobody gets the first.
func TestRepeatedUpdates(t *testing.T) {
	b := fixture(t)
	old := stored(named("web", ips("10.96.8.7")), Grant{})
	b.Observe(old, t0)
	grant := func(now time.Time) []uint16 {
		req := request(named("web", ips("10.96.8.7"), nodePorts(0, 0)), "blue", now)
		req.Old = old
		g, err := b.Admit(req)
		if err != nil {
			t.Fatal(err)
		}
		return []uint16{g.NodePorts[0], g.NodePorts[1]}
	}
	seen := map[uint16]bool{}
	for i := range 4 { // 8 of the 9 ports
		for _, n := range grant(t0.Add(time.Duration(i) * 90 * time.Second)) {
			if seen[n] {
				t.Errorf("update %d got %d once more", i, n)
			}
			seen[n] = true
		}
	}
}

// A value of a Service that another Service had after it is quarantined for both names.
func TestQuarantinedValueIsForFormerName(t *testing.T) {
	b := fixture(t)
	if err := b.SetNodePortPool(&v1alpha1.NodePortPool{
		ObjectMeta: metav1.ObjectMeta{Name: "blue"},
		Spec: v1alpha1.NodePortPoolSpec{
			Ranges: []v1alpha1.PortRange{"30100-30109"}, NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"tenant": "blue"}},
			Quarantine: &metav1.Duration{Duration: time.Minute},
		},
	}); err != nil {
		t.Fatal(err)
	}
	released := t0
	for _, name := range []string{"first", "second"} {
		released = released.Add(time.Hour)
		svc := stored(named(name, ips("10.96.8.7"), nodePorts(30107)), Grant{})
		b.Observe(svc, released)
		b.Forget(alloc.OwnerOf(svc), released)
	}
	for _, tc := range []struct {
		after time.Duration
		again bool
	}{{100 * time.Millisecond, false}, {59 * time.Second, false}, {2 * time.Minute, true}} {
		req := request(named("first", nodePorts(0)), "blue", released.Add(tc.after))
		g, err := b.Admit(req)
		if err != nil {
			t.Fatal(err)
		}
		if got := g.NodePorts[0] == 30107; got != tc.again {
			t.Errorf("%s after the release: NodePort %d", tc.after, g.NodePorts[0])
		}
		if got := g.ClusterIPs[0] == "10.96.8.7"; got != tc.again {
			t.Errorf("%s after the release: ClusterIP %s", tc.after, g.ClusterIPs[0])
		}
		b.Forget(alloc.OwnerOf(req.Service), req.Now)
	}
}

func TestCheck(t *testing.T) {
	b := fixture(t)
	a := stored(named("a", ips("10.96.8.7"), nodePorts(30107)), Grant{})
	c := stored(named("c", ips("10.96.8.7"), nodePorts(30200)), Grant{})
	c.UID = "other"
	b.Observe(a, t0)
	b.Observe(c, t0)
	texts := func(svc *corev1.Service, tenant string) (out []string) {
		for _, p := range b.Check(svc, map[string]string{"tenant": tenant}) {
			out = append(out, p.Reason+": "+p.Message[:strings.Index(p.Message, ":")])
		}
		return out
	}
	thief := stored(named("thief", ips("10.96.1.1"), func(s *corev1.ServiceSpec) { s.ExternalIPs = []string{"192.0.2.1", "10.96.8.9"} }), Grant{})
	for _, tc := range []struct {
		svc    *corev1.Service
		tenant string
		want   []string
	}{
		{thief, "red", []string{"PoolMismatch: spec.externalIPs[1]"}},
		{a, "blue", []string{"Duplicate: ClusterIP 10.96.8.7 is held by Service shop/c, too"}},
		{c, "blue", []string{"Duplicate: ClusterIP 10.96.8.7 is held by Service shop/a, too", "OutsidePool: NodePort 30200 is not in NodePortPool blue, which serves this Service"}},
		{a, "red", []string{
			"Duplicate: ClusterIP 10.96.8.7 is held by Service shop/c, too",
			"PoolMismatch: ClusterIP 10.96.8.7 belongs to ClusterIPPool blue, which does not select this Service",
			"PoolMismatch: NodePort 30107 belongs to NodePortPool blue, which does not select this Service",
		}},
	} {
		if diff := cmp.Diff(tc.want, texts(tc.svc, tc.tenant)); diff != "" {
			t.Errorf("%s for tenant %s (-want +got):\n%s", tc.svc.Name, tc.tenant, diff)
		}
	}
}

func TestPoolsByPriority(t *testing.T) {
	b := fixture(t)
	for _, spec := range []struct {
		name     string
		priority int32
		ranges   v1alpha1.AddressRange
	}{{"high", 10, "10.96.9.1-10.96.9.1"}, {"low", -10, "10.96.10.0/24"}} {
		if err := b.SetClusterIPPool(&v1alpha1.ClusterIPPool{
			ObjectMeta: metav1.ObjectMeta{Name: spec.name},
			Spec:       v1alpha1.ClusterIPPoolSpec{Ranges: []v1alpha1.AddressRange{spec.ranges}, Priority: spec.priority, MaxPerNamespace: ptr.To[int32](3)},
		}); err != nil {
			t.Fatal(err)
		}
	}
	var got []string
	for i := range 20 {
		g, err := b.Admit(request(named(fmt.Sprint("s", i)), "blue", t0))
		if err != nil {
			if i != 18 && i != 19 {
				t.Fatal(err)
			}
			continue
		}
		got = append(got, b.addresses[v4].PoolsOf(netip.MustParseAddr(g.ClusterIPs[0]))...)
	}
	want := append([]string{"high"}, strings.Split(strings.Repeat("blue ", 14)+"low low low", " ")...)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("pools in order (-want +got):\n%s", diff)
	}
}

// BenchmarkRestart50000 is what a controller computes between the end of its
// cache's first list and its first grant: pools and 50,000 Services with an
// address of each family and two NodePorts each as far as there are any.
func BenchmarkRestart50000(b *testing.B) {
	v4, v6 := netip.MustParseAddr("10.96.0.1"), netip.MustParseAddr("fd00:10:96::1")
	services := make([]*corev1.Service, 50000)
	for i := range services {
		svc := named(fmt.Sprint("s", i))
		svc.UID = types.UID(svc.Name)
		svc.Spec.ClusterIP, svc.Spec.ClusterIPs = v4.String(), []string{v4.String(), v6.String()}
		if i < 1300 {
			svc.Spec.Type = corev1.ServiceTypeNodePort
			svc.Spec.Ports = []corev1.ServicePort{{Port: 80, NodePort: int32(30000 + 2*i)}, {Port: 81, NodePort: int32(30001 + 2*i)}}
		}
		services[i], v4, v6 = svc, v4.Next(), v6.Next()
	}
	for b.Loop() {
		bk := New(Config{})
		bk.SetServiceCIDRs([]netip.Prefix{netip.MustParsePrefix("10.96.0.0/12"), netip.MustParsePrefix("fd00:10:96::/108")})
		for i, ranges := range [][]v1alpha1.AddressRange{{"10.96.0.0/17", "fd00:10:96::/113"}, {"10.96.128.0/17", "fd00:10:96::8000/113"}} {
			_ = bk.SetClusterIPPool(&v1alpha1.ClusterIPPool{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint(i)}, Spec: v1alpha1.ClusterIPPoolSpec{Ranges: ranges}})
		}
		_ = bk.SetNodePortPool(&v1alpha1.NodePortPool{ObjectMeta: metav1.ObjectMeta{Name: "p"}, Spec: v1alpha1.NodePortPoolSpec{Ranges: []v1alpha1.PortRange{"30000-32000"}}})
		for _, svc := range services {
			bk.Observe(svc, t0)
		}
		if got := bk.Addresses(corev1.IPv4Protocol).Stats("0").Held + bk.Addresses(corev1.IPv4Protocol).Stats("1").Held; got != 50000 {
			b.Fatalf("%d addresses held", got)
		}
	}
}

// BenchmarkAdmit is the webhook's work without reading and writing JSON.
func BenchmarkAdmit(b *testing.B) {
	bk := New(Config{PendingFor: time.Millisecond})
	bk.SetServiceCIDRs([]netip.Prefix{netip.MustParsePrefix("10.96.0.0/12")})
	_ = bk.SetClusterIPPool(&v1alpha1.ClusterIPPool{ObjectMeta: metav1.ObjectMeta{Name: "p"}, Spec: v1alpha1.ClusterIPPoolSpec{Ranges: []v1alpha1.AddressRange{"10.96.0.0/16"}}})
	for i := range 10000 {
		svc := named(fmt.Sprint("s", i))
		g, err := bk.Admit(request(svc, "", t0))
		if err != nil {
			b.Fatal(err)
		}
		bk.Observe(stored(svc, g), t0)
	}
	now := t0
	for b.Loop() {
		now = now.Add(time.Second)
		if _, err := bk.Admit(request(named("x"), "", now)); err != nil {
			b.Fatal(err)
		}
	}
}
