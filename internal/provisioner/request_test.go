// SPDX-License-Identifier: Apache-2.0

package provisioner

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/causeway-lb/causeway/api/v1alpha1"
	"github.com/causeway-lb/causeway/internal/alloc"
)

func service(change func(*corev1.Service)) *corev1.Service {
	svc := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "web", UID: "1", Annotations: map[string]string{}},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeLoadBalancer, IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol},
			IPFamilyPolicy: ptr.To(corev1.IPFamilyPolicyPreferDualStack),
			Ports:          []corev1.ServicePort{{Name: "http", Port: 80, NodePort: 30080}, {Name: "dns", Port: 53, Protocol: corev1.ProtocolUDP}},
		},
	}
	if change != nil {
		change(svc)
	}
	return svc
}

var equateAddr = cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})

func TestParseRequest(t *testing.T) {
	svc := service(func(svc *corev1.Service) {
		svc.Annotations[v1alpha1.AddressesAnnotation] = " 192.0.2.7, 2001:db8::7 ,::ffff:192.0.2.8"
		svc.Annotations[v1alpha1.PoolAnnotation] = "gold"
		svc.Annotations[v1alpha1.SharingKeyAnnotation] = "k"
		svc.Spec.LoadBalancerIP = "198.51.100.1"
		svc.Spec.AllocateLoadBalancerNodePorts = ptr.To(false)
		svc.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
		svc.Spec.LoadBalancerSourceRanges = []string{"198.51.100.0/24"}
		svc.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "192.0.2.9"}, {Hostname: "lb.example.com"}}
		svc.Labels = map[string]string{"a": "b"}
		svc.Spec.Selector = map[string]string{"tier": "front", "app": "web"}
	})
	before := svc.DeepCopy()
	got, err := ParseRequest(svc, map[string]string{"c": "d"})
	if err != nil {
		t.Fatal(err)
	}
	want := Request{
		Owner:     alloc.Owner{Namespace: "ns", Name: "web", UID: "1"},
		Families:  []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol},
		Policy:    corev1.IPFamilyPolicyPreferDualStack,
		Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("2001:db8::7"), netip.MustParseAddr("192.0.2.8")},
		Current:   []netip.Addr{netip.MustParseAddr("192.0.2.9")},
		Pool:      "gold", SharingKey: "k",
		Ports:           []Port{{corev1.ProtocolTCP, 80}, {corev1.ProtocolUDP, 53}},
		HasSourceRanges: true, NoNodePorts: true, LocalPolicy: true, LocalPods: "ns/app=web,tier=front",
		Labels: map[string]string{"a": "b"}, NamespaceLabels: map[string]string{"c": "d"},
	}
	if diff := cmp.Diff(want, got, equateAddr); diff != "" {
		t.Errorf("request (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(before, svc); diff != "" {
		t.Errorf("the Service was changed:\n%s", diff)
	}
}

func TestParseRequestErrors(t *testing.T) {
	for asked, message := range map[string]string{
		"web.example.com":                "is not an IP address",
		"192.0.2.0/24":                   "without prefix length or zone",
		"fe80::1%eth0":                   "without prefix length or zone",
		"192.0.2.7,192.0.2.7":            "192.0.2.7 is listed twice",
		"192.0.2.7,":                     `"" is not an IP address`,
		strings.Repeat("192.0.2.7,", 20): "is listed twice",
		"192.0.2.1,192.0.2.2,192.0.2.3,192.0.2.4,192.0.2.5,192.0.2.6,192.0.2.7,192.0.2.8,192.0.2.9,192.0.2.10,192.0.2.11,192.0.2.12,192.0.2.13,192.0.2.14,192.0.2.15,192.0.2.16,192.0.2.17": "ask for at most 16",
	} {
		_, err := ParseRequest(service(func(svc *corev1.Service) { svc.Annotations[v1alpha1.AddressesAnnotation] = asked }), nil)
		var refused *AllocationError
		if !errors.As(err, &refused) || refused.Reason != ReasonInvalidRequest || !strings.Contains(refused.Message, message) {
			t.Errorf("%q: %v, want ...%s...", asked, err, message)
		}
	}
	// What the Service has is known all the same: it keeps that.
	for name, value := range map[string]string{
		v1alpha1.SharingKeyAnnotation: strings.Repeat("k", 254), v1alpha1.AddressesAnnotation: "nonsense",
	} {
		got, err := ParseRequest(service(func(svc *corev1.Service) {
			svc.Annotations[name] = value
			svc.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "192.0.2.9"}}
		}), nil)
		if err == nil || len(got.Current) != 1 {
			t.Errorf("bad annotation %s: %v, current addresses %v", name, err, got.Current)
		}
	}
	_, err := ParseRequest(service(func(svc *corev1.Service) {
		svc.Spec.IPFamilies = svc.Spec.IPFamilies[:1]
		svc.Spec.LoadBalancerIP = "2001:db8::1"
	}), nil)
	if err == nil || !strings.Contains(err.Error(), "add IPv6 to spec.ipFamilies") {
		t.Errorf("address of a family that the Service is not of: %v", err)
	}
}

// FuzzParseRequest: what is accepted is addresses of the Service's families,
// each once, in their one form.
func FuzzParseRequest(f *testing.F) {
	for _, seed := range []string{"192.0.2.7", "2001:db8::7, 192.0.2.1", "::ffff:192.0.2.8", "", ",", "fe80::1%eth0"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		got, err := ParseRequest(service(func(svc *corev1.Service) { svc.Annotations[v1alpha1.AddressesAnnotation] = text }), nil)
		if err != nil {
			return
		}
		seen := map[netip.Addr]bool{}
		for _, a := range got.Addresses {
			if seen[a] || a.Is4In6() || a.Zone() != "" || !a.IsValid() || !strings.Contains(strings.ToLower(text), ":") && !a.Is4() {
				t.Errorf("%q gives %v", text, got.Addresses)
			}
			seen[a] = true
		}
	})
}

func TestCapabilities(t *testing.T) {
	able := Capabilities{
		Protocols: []corev1.Protocol{corev1.ProtocolTCP}, Families: []corev1.IPFamily{corev1.IPv4Protocol},
		RequestedAddresses: true, NeedsNodePorts: true,
	}
	base := Request{Families: []corev1.IPFamily{corev1.IPv4Protocol}, Policy: corev1.IPFamilyPolicySingleStack, Ports: []Port{{corev1.ProtocolTCP, 80}}}
	if err := able.Check("c", base); err != nil {
		t.Fatal(err)
	}
	for what, change := range map[string]func(*Request){
		"serve UDP":                  func(r *Request) { r.Ports = append(r.Ports, Port{corev1.ProtocolUDP, 53}) },
		"give addresses of IPv6":     func(r *Request) { r.Families = []corev1.IPFamily{corev1.IPv6Protocol} },
		"addresses of both families": func(r *Request) { r.Policy = corev1.IPFamilyPolicyRequireDualStack },
		"share an address":           func(r *Request) { r.SharingKey = "k" },
		"take from a pool":           func(r *Request) { r.Pool = "p" },
		"loadBalancerSourceRanges":   func(r *Request) { r.HasSourceRanges = true },
		"externalTrafficPolicy":      func(r *Request) { r.LocalPolicy = true },
		"work without NodePorts":     func(r *Request) { r.NoNodePorts = true },
		"share an address (annotation causeway.dev/sharing-key), nor take": func(r *Request) { r.SharingKey, r.Pool = "k", "p" },
	} {
		req := base
		change(&req)
		var refused *AllocationError
		if err := able.Check("c", req); !errors.As(err, &refused) || refused.Reason != ReasonUnsupported || !strings.Contains(refused.Message, what) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestDesiredOf(t *testing.T) {
	svc := service(func(svc *corev1.Service) {
		svc.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
		svc.Spec.HealthCheckNodePort = 31000
		svc.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
		svc.Spec.LoadBalancerSourceRanges = []string{" 198.51.100.7/24", "nonsense"}
	})
	want := Desired{
		Owner:     alloc.OwnerOf(svc),
		Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.7")},
		Ports: []ServicePort{
			{Name: "http", Port: Port{corev1.ProtocolTCP, 80}, NodePort: 30080},
			{Name: "dns", Port: Port{corev1.ProtocolUDP, 53}}},
		LocalPolicy: true, HealthCheckNodePort: 31000, ClientIPAffinity: true,
		SourceRanges: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")},
	}
	if diff := cmp.Diff(want, DesiredOf(svc, want.Addresses), equateAddr); diff != "" {
		t.Errorf("desired (-want +got):\n%s", diff)
	}
}

// named is a provisioner of which only the class matters.
type named string

func (n named) Class() string                                       { return string(n) }
func (named) Capabilities() Capabilities                            { return Capabilities{} }
func (named) Allocate(context.Context, Request) (Allocation, error) { return Allocation{}, nil }
func (named) Reserve(context.Context, Request, []netip.Addr) error  { return nil }
func (named) Release(context.Context, alloc.Owner) error            { return nil }
func (named) Ensure(context.Context, Desired) (Result, error)       { return Result{}, nil }
func (named) Remove(context.Context, alloc.Owner) error             { return nil }

func TestRegistry(t *testing.T) {
	r, err := NewRegistry("a", named("a"), named("b"))
	if err != nil {
		t.Fatal(err)
	}
	none, err := NewRegistry("", named("a"))
	if err != nil {
		t.Fatal(err)
	}
	class := func(c string) func(*corev1.Service) {
		return func(svc *corev1.Service) { svc.Spec.LoadBalancerClass = &c }
	}
	for _, test := range []struct {
		name     string
		registry *Registry
		svc      *corev1.Service
		want     string
	}{
		{"no class: the default", r, service(nil), "a"},
		{"no class and no default", none, service(nil), ""},
		{"a class", r, service(class("b")), "b"},
		{"somebody else's class", r, service(class("c")), ""},
		{"another type", r, service(func(svc *corev1.Service) { svc.Spec.Type = corev1.ServiceTypeNodePort }), ""},
	} {
		got := ""
		if p, ok := test.registry.For(test.svc); ok {
			got = p.Class()
		}
		if got != test.want {
			t.Errorf("%s: got %q, want %q", test.name, got, test.want)
		}
	}
	if _, err := NewRegistry("", named("a"), named("a")); err == nil {
		t.Error("two provisioners of one class are accepted")
	}
	if _, err := NewRegistry("z", named("a")); err == nil {
		t.Error("a default that is not there is accepted")
	}
}
