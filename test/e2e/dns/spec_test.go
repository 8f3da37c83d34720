// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-lb/causeway/internal/testkit"
)

const (
	found    = dnsmessage.RCodeSuccess
	notFound = dnsmessage.RCodeNameError

	typeA, typeAAAA, typeCNAME = dnsmessage.TypeA, dnsmessage.TypeAAAA, dnsmessage.TypeCNAME
	typeSRV, typePTR, typeTXT  = dnsmessage.TypeSRV, dnsmessage.TypePTR, dnsmessage.TypeTXT
)

// service returns a dual-stack Service with a named TCP and UDP port.
func service(name string, change func(*corev1.Service)) *corev1.Service {
	policy := corev1.IPFamilyPolicyRequireDualStack
	s := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
		Spec: corev1.ServiceSpec{
			IPFamilyPolicy: &policy,
			Selector:       map[string]string{"app": name},
			Ports: []corev1.ServicePort{
				{Name: "http", Port: 80, TargetPort: intstr.FromInt32(38001), Protocol: corev1.ProtocolTCP},
				{Name: "quic", Port: 443, TargetPort: intstr.FromInt32(38443), Protocol: corev1.ProtocolUDP},
			},
		},
	}
	if change != nil {
		change(s)
	}
	return s
}

func headless(s *corev1.Service) { s.Spec.ClusterIP = corev1.ClusterIPNone }

// server returns a Pod of the HTTP server.
func server(name, app string, change func(*corev1.Pod)) *corev1.Pod {
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, Labels: map[string]string{"app": app}},
		Spec:       serverSpec(),
	}
	if change != nil {
		change(pod)
	}
	return pod
}

func serverSpec() corev1.PodSpec {
	return corev1.PodSpec{
		TerminationGracePeriodSeconds: new(int64(5)),
		Containers: []corev1.Container{{
			Name: "server", Image: "go-http",
			Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 38001}},
			ReadinessProbe: &corev1.Probe{PeriodSeconds: 1, ProbeHandler: corev1.ProbeHandler{
				HTTPGet: &corev1.HTTPGetAction{Path: "/healthz", Port: intstr.FromString("http")},
			}},
		}},
	}
}

// addresses waits until the Pod has its addresses, and returns both.
func addresses(t *testing.T, ctx context.Context, pod *corev1.Pod) (v4, v6 string) {
	t.Helper()
	testkit.Eventually(t, 30*time.Second, "addresses of Pod "+pod.Name, func() error {
		if err := api.Get(ctx, client.ObjectKeyFromObject(pod), pod); err != nil {
			return err
		}
		if len(pod.Status.PodIPs) < 2 {
			return fmt.Errorf("status %+v", pod.Status)
		}
		return nil
	})
	return pod.Status.PodIPs[0].IP, pod.Status.PodIPs[1].IP
}

// reverse returns the name of an address for PTR queries.
func reverse(t *testing.T, address string) string {
	t.Helper()
	addr := netip.MustParseAddr(address)
	bytes := addr.AsSlice()
	name := ""
	for _, b := range bytes {
		if addr.Is4() {
			name = fmt.Sprintf("%d.", b) + name
		} else {
			name = fmt.Sprintf("%x.%x.", b&15, b>>4) + name
		}
	}
	if addr.Is4() {
		return name + "in-addr.arpa."
	}
	return name + "ip6.arpa."
}

// 2.2: the schema's version.
func TestSchemaVersion(t *testing.T) {
	ctx := need(t)
	wantAnswer(t, ctx, "dns-version.cluster.local.", typeTXT, found, "TXT 1.1.0")
}

// 2.3: Services with a ClusterIP, whether they have endpoints or not.
func TestServiceWithClusterIP(t *testing.T) {
	ctx := need(t)
	s := service("plain", nil)
	create(t, ctx, s)
	v4, v6 := s.Spec.ClusterIPs[0], s.Spec.ClusterIPs[1]
	const name = "plain.default.svc.cluster.local."
	wantAnswer(t, ctx, name, typeA, found, "A "+v4)
	wantAnswer(t, ctx, name, typeAAAA, found, "AAAA "+v6)
	wantAnswer(t, ctx, "_http._tcp."+name, typeSRV, found, "SRV 80 "+name)
	wantAnswer(t, ctx, "_quic._udp."+name, typeSRV, found, "SRV 443 "+name)
	wantAnswer(t, ctx, "_http._udp."+name, typeSRV, notFound)
	wantAnswer(t, ctx, reverse(t, v4), typePTR, found, "PTR "+name)
	wantAnswer(t, ctx, reverse(t, v6), typePTR, found, "PTR "+name)
	// Its Pods, of which there are none, have no say in any of this; and one port
	// without a name has no SRV record.
	unnamed := service("unnamed", func(s *corev1.Service) {
		s.Spec.IPFamilyPolicy, s.Spec.IPFamilies = new(corev1.IPFamilyPolicySingleStack), []corev1.IPFamily{corev1.IPv4Protocol}
		s.Spec.Ports = s.Spec.Ports[:1]
		s.Spec.Ports[0].Name = ""
	})
	create(t, ctx, unnamed)
	const bare = "unnamed.default.svc.cluster.local."
	wantAnswer(t, ctx, bare, typeA, found, "A "+unnamed.Spec.ClusterIP)
	wantAnswer(t, ctx, bare, typeAAAA, found) // the name is there, an IPv6 address is not
	wantAnswer(t, ctx, "_http._tcp."+bare, typeSRV, notFound)
	wantAnswer(t, ctx, "absent.default.svc.cluster.local.", typeA, notFound)
	wantAnswer(t, ctx, "plain.absent.svc.cluster.local.", typeA, notFound)
}

// 2.4: headless Services: the endpoints' addresses, host names, ports.
func TestHeadlessService(t *testing.T) {
	ctx := need(t)
	const name = "peers.default.svc.cluster.local."
	named := server("peers-0", "peers", func(p *corev1.Pod) { p.Spec.Hostname, p.Spec.Subdomain = "first", "peers" })
	plain := server("peers-1", "peers", nil)
	create(t, ctx, service("peers", headless), named, plain)
	a4, a6 := addresses(t, ctx, named)
	b4, b6 := addresses(t, ctx, plain)
	wantAnswer(t, ctx, name, typeA, found, "A "+a4, "A "+b4)
	wantAnswer(t, ctx, name, typeAAAA, found, "AAAA "+a6, "AAAA "+b6)
	wantAnswer(t, ctx, "first."+name, typeA, found, "A "+a4)
	wantAnswer(t, ctx, "first."+name, typeAAAA, found, "AAAA "+a6)
	wantAnswer(t, ctx, reverse(t, a4), typePTR, found, "PTR first."+name)
	wantAnswer(t, ctx, "second."+name, typeA, notFound)

	// SRV records have the target's port. A host name stands for both families;
	// an endpoint without one has a name for each address.
	dashed := func(address string) string {
		return strings.NewReplacer(".", "-", ":", "-").Replace(address) + "." + name
	}
	wantAnswer(t, ctx, "_http._tcp."+name, typeSRV, found,
		"SRV 38001 first."+name, "SRV 38001 "+dashed(b4), "SRV 38001 "+dashed(b6))

	if err := api.Delete(ctx, plain); err != nil {
		t.Fatal(err)
	}
	wantAnswer(t, ctx, name, typeA, found, "A "+a4)
	wantAnswer(t, ctx, "_http._tcp."+name, typeSRV, found, "SRV 38001 first."+name)
	if err := api.Delete(ctx, named); err != nil {
		t.Fatal(err)
	}
	wantAnswer(t, ctx, "first."+name, typeA, notFound)
	wantAnswer(t, ctx, reverse(t, a4), typePTR, notFound)
}

// 2.4: a headless Service need not have ports.
func TestHeadlessWithoutPorts(t *testing.T) {
	ctx := need(t)
	pod := server("portless-0", "portless", func(p *corev1.Pod) { p.Spec.Hostname, p.Spec.Subdomain = "zero", "portless" })
	create(t, ctx, service("portless", func(s *corev1.Service) {
		headless(s)
		s.Spec.Ports = nil
	}), pod)
	v4, v6 := addresses(t, ctx, pod)
	const name = "portless.default.svc.cluster.local."
	wantAnswer(t, ctx, name, typeA, found, "A "+v4)
	wantAnswer(t, ctx, "zero."+name, typeAAAA, found, "AAAA "+v6)
	wantAnswer(t, ctx, "_http._tcp."+name, typeSRV, notFound)
}

// 2.4: a Service without a selector: its endpoints are those that somebody
// wrote, as slices or as an Endpoints object, which Causeway mirrors.
func TestHandMadeEndpoints(t *testing.T) {
	ctx := need(t)
	byHand := func(name string) *corev1.Service {
		return service(name, func(s *corev1.Service) {
			headless(s)
			s.Spec.Selector = nil
		})
	}
	object := &corev1.Endpoints{ //nolint:staticcheck // the deprecated type is the point
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "mirrored"},
		Subsets: []corev1.EndpointSubset{{ //nolint:staticcheck
			Addresses:         []corev1.EndpointAddress{{IP: "198.51.100.7", Hostname: "seven"}, {IP: "2001:db8::7"}},
			NotReadyAddresses: []corev1.EndpointAddress{{IP: "198.51.100.8"}},
			Ports:             []corev1.EndpointPort{{Name: "http", Port: 8080, Protocol: corev1.ProtocolTCP}},
		}},
	}
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "default", Name: "written-1", Labels: map[string]string{discoveryv1.LabelServiceName: "written"},
		},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: new("http"), Port: new(int32(8080)), Protocol: new(corev1.ProtocolTCP)}},
	}
	var many []string
	for i := range 60 {
		address := fmt.Sprintf("198.51.100.%d", 100+i)
		slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{Addresses: []string{address}})
		many = append(many, "A "+address)
	}
	create(t, ctx, byHand("mirrored"), object, byHand("written"), slice)
	const name = "mirrored.default.svc.cluster.local."
	wantAnswer(t, ctx, name, typeA, found, "A 198.51.100.7")
	wantAnswer(t, ctx, name, typeAAAA, found, "AAAA 2001:db8::7")
	wantAnswer(t, ctx, "seven."+name, typeA, found, "A 198.51.100.7")
	wantAnswer(t, ctx, reverse(t, "198.51.100.7"), typePTR, found, "PTR seven."+name)

	// Sixty addresses are too many for a datagram of 512 bytes: it says so, and
	// the client asks again by TCP.
	const large = "written.default.svc.cluster.local."
	testkit.Eventually(t, 15*time.Second, "all addresses over TCP, some over UDP", func() error {
		whole, err := ask(ctx, "tcp", large, typeA)
		if err != nil {
			return err
		}
		slices.Sort(many)
		if whole.truncated || !slices.Equal(whole.records, many) {
			return fmt.Errorf("over TCP (truncated: %t): %s", whole.truncated, whole)
		}
		part, err := ask(ctx, "udp", large, typeA)
		if err != nil {
			return err
		}
		if !part.truncated || len(part.records) >= len(many) {
			return fmt.Errorf("over UDP (truncated: %t): %s", part.truncated, part)
		}
		return nil
	})
}

// 2.4: endpoints that are not ready are served only if the Service wants it.
func TestNotReady(t *testing.T) {
	ctx := need(t)
	pod := server("slow-0", "slow", func(p *corev1.Pod) {
		p.Spec.Containers[0].ReadinessProbe.HTTPGet.Port = intstr.FromInt32(1) // nothing listens there
	})
	published := service("slow-published", func(s *corev1.Service) {
		headless(s)
		s.Spec.Selector, s.Spec.PublishNotReadyAddresses = map[string]string{"app": "slow"}, true
	})
	create(t, ctx, service("slow", headless), published, pod)
	v4, _ := addresses(t, ctx, pod)
	wantAnswer(t, ctx, "slow-published.default.svc.cluster.local.", typeA, found, "A "+v4)
	wantAnswer(t, ctx, "slow.default.svc.cluster.local.", typeA, notFound)
	wantAnswer(t, ctx, "_http._tcp.slow.default.svc.cluster.local.", typeSRV, notFound)
}

// 2.4: a Pod that ceases to be ready leaves, and comes back.
func TestReadinessChanges(t *testing.T) {
	ctx := need(t)
	shared := t.TempDir()
	pod := server("fickle-0", "fickle", func(p *corev1.Pod) {
		p.Spec.Volumes = []corev1.Volume{{Name: "shared", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: shared}}}}
		container := &p.Spec.Containers[0]
		container.VolumeMounts = []corev1.VolumeMount{{Name: "shared", MountPath: "/srv/shared"}}
		container.ReadinessProbe = &corev1.Probe{PeriodSeconds: 1, FailureThreshold: 1, ProbeHandler: corev1.ProbeHandler{
			Exec: &corev1.ExecAction{Command: []string{"/usr/bin/test", "!", "-e", "/srv/shared/unready"}},
		}}
	})
	readable(shared)
	create(t, ctx, service("fickle", headless), pod)
	v4, _ := addresses(t, ctx, pod)
	const name = "fickle.default.svc.cluster.local."
	wantAnswer(t, ctx, name, typeA, found, "A "+v4)
	file := filepath.Join(shared, "unready")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	wantAnswer(t, ctx, name, typeA, notFound)
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	wantAnswer(t, ctx, name, typeA, found, "A "+v4)
}

// 2.4: a StatefulSet's Pods have names that stay when the Pods are replaced.
func TestStatefulSet(t *testing.T) {
	ctx := need(t)
	labels := map[string]string{"app": "db"}
	set := &appsv1.StatefulSet{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "db"},
		Spec: appsv1.StatefulSetSpec{
			ServiceName: "db", Replicas: new(int32(2)), PodManagementPolicy: appsv1.ParallelPodManagement,
			Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: serverSpec()},
		},
	}
	create(t, ctx, service("db", headless), set)
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "db-1"}}
	before, _ := addresses(t, ctx, pod)
	wantAnswer(t, ctx, "db-1.db.default.svc.cluster.local.", typeA, found, "A "+before)
	uid := pod.UID
	if err := api.Delete(ctx, pod); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, 30*time.Second, "a new db-1", func() error {
		if err := api.Get(ctx, client.ObjectKeyFromObject(pod), pod); err != nil {
			return err
		}
		if pod.UID == uid || len(pod.Status.PodIPs) == 0 {
			return fmt.Errorf("still %s", pod.UID)
		}
		return nil
	})
	wantAnswer(t, ctx, "db-1.db.default.svc.cluster.local.", typeA, found, "A "+pod.Status.PodIPs[0].IP)
}

// 2.5: ExternalName is a CNAME; a name in the cluster is followed.
func TestExternalName(t *testing.T) {
	ctx := need(t)
	target := service("target", nil)
	alias := func(name, to string) *corev1.Service {
		return &corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
			Spec:       corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: to},
		}
	}
	create(t, ctx, target, alias("outside", "www.example.org"), alias("inside", "target.default.svc.cluster.local"),
		alias("chain", "inside.default.svc.cluster.local"), alias("nowhere", "absent.default.svc.cluster.local"),
		alias("peer", "first.group.default.svc.cluster.local"))
	member := server("group-0", "group", func(p *corev1.Pod) { p.Spec.Hostname, p.Spec.Subdomain = "first", "group" })
	create(t, ctx, service("group", headless), member)
	m4, _ := addresses(t, ctx, member)
	const zone = ".default.svc.cluster.local."
	wantAnswer(t, ctx, "outside"+zone, typeCNAME, found, "CNAME www.example.org.")
	wantAnswer(t, ctx, "inside"+zone, typeA, found, "CNAME target"+zone, "A "+target.Spec.ClusterIPs[0])
	wantAnswer(t, ctx, "inside"+zone, typeAAAA, found, "CNAME target"+zone, "AAAA "+target.Spec.ClusterIPs[1])
	wantAnswer(t, ctx, "chain"+zone, typeA, found, "CNAME inside"+zone, "CNAME target"+zone, "A "+target.Spec.ClusterIPs[0])
	wantAnswer(t, ctx, "chain"+zone, typeAAAA, found, "CNAME inside"+zone, "CNAME target"+zone, "AAAA "+target.Spec.ClusterIPs[1])
	wantAnswer(t, ctx, "peer"+zone, typeA, found, "CNAME first.group"+zone, "A "+m4)
	// Whoever asks for an address is told the name, though it leads nowhere.
	wantAnswer(t, ctx, "nowhere"+zone, typeCNAME, found, "CNAME absent"+zone)
	wantAnswer(t, ctx, "outside"+zone, typeA, found, "CNAME www.example.org.")
}
