// SPDX-License-Identifier: Apache-2.0

package explain

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"

	"github.com/causeway-lb/causeway/api/v1alpha1"
)

// The specs in package controllers break Services of a real API server. What
// follows are the cases that those do not have.

var now = time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)

func TestTroubleOfPods(t *testing.T) {
	running := func(change func(*corev1.Pod)) *corev1.Pod {
		pod := &corev1.Pod{
			Spec: corev1.PodSpec{NodeName: "node-1", Containers: []corev1.Container{{Name: "main"}}},
			Status: corev1.PodStatus{
				Phase: corev1.PodRunning, PodIP: "10.244.1.2",
				Conditions:        []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}},
				ContainerStatuses: []corev1.ContainerStatus{{Name: "main", Ready: true, State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}}},
			},
		}
		if change != nil {
			change(pod)
		}
		return pod
	}
	unready := func(p *corev1.Pod) { p.Status.Conditions[0].Status = corev1.ConditionFalse }
	for _, tc := range []struct {
		name string
		pod  *corev1.Pod
		want string
	}{
		{"none", running(nil), ""},
		{"deleted", running(func(p *corev1.Pod) { p.DeletionTimestamp = &metav1.Time{Time: now} }), "it is ending"},
		{"evicted", running(func(p *corev1.Pod) { p.Status.Phase, p.Status.Message = corev1.PodFailed, "low on memory" }), "it has ended (Failed) low on memory"},
		{"no address", running(func(p *corev1.Pod) { p.Status.PodIP = "" }), "it has no address yet"},
		{"probe", running(func(p *corev1.Pod) {
			unready(p)
			p.Status.ContainerStatuses[0].Ready, p.Spec.Containers[0].ReadinessProbe = false, &corev1.Probe{}
		}), "container main runs, and its readiness probe has not succeeded"},
		{"init container", running(func(p *corev1.Pod) {
			unready(p)
			p.Status.ContainerStatuses[0].State = corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "PodInitializing"}}
			p.Status.InitContainerStatuses = []corev1.ContainerStatus{{Name: "setup", State: corev1.ContainerState{
				Terminated: &corev1.ContainerStateTerminated{ExitCode: 3, Reason: "Error"},
			}}}
		}), "container setup ended with exit code 3: Error"},
		{"readiness gate", running(func(p *corev1.Pod) {
			unready(p)
			p.Spec.ReadinessGates = []corev1.PodReadinessGate{{ConditionType: "example.com/live"}}
		}), "its readiness gate example.com/live is not true"},
		{"kubelet's words", running(func(p *corev1.Pod) { unready(p); p.Status.Conditions[0].Message = "node is lost" }), "it is not ready: node is lost"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := troubleOf(tc.pod); got != tc.want {
				t.Errorf("%q, want %q", got, tc.want)
			}
		})
	}
}

func TestReport(t *testing.T) {
	node := func(name string) corev1.Node {
		return corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}, Status: corev1.NodeStatus{Conditions: []corev1.NodeCondition{
			{Type: corev1.NodeReady, Status: corev1.ConditionTrue},
			{Type: v1alpha1.NodeProxyModeSupported, Status: corev1.ConditionTrue, Message: "Proxy mode nftables is in use"},
		}}}
	}
	agent := func(name string) corev1.Pod {
		return corev1.Pod{Spec: corev1.PodSpec{NodeName: name}, Status: corev1.PodStatus{Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}}}
	}
	f := &Facts{
		Now: now,
		Service: &corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web", CreationTimestamp: metav1.Time{Time: now.Add(-time.Hour)}},
			Spec: corev1.ServiceSpec{
				Type: corev1.ServiceTypeClusterIP, ClusterIP: "10.96.1.2", ClusterIPs: []string{"10.96.1.2"}, Ports: []corev1.ServicePort{{Port: 53, Protocol: corev1.ProtocolUDP}},
				InternalTrafficPolicy: ptr.To(corev1.ServiceInternalTrafficPolicyLocal),
			},
			Status: corev1.ServiceStatus{Conditions: []metav1.Condition{{Type: v1alpha1.ServiceEndpointSlicesManaged, Status: metav1.ConditionFalse, Reason: "Standby", Message: "kube-controller-manager keeps the slices"}}},
		},
		Slices: []discoveryv1.EndpointSlice{{Endpoints: []discoveryv1.Endpoint{
			{Addresses: []string{"192.0.2.80"}, NodeName: ptr.To("node-1")},
			{Addresses: []string{"192.0.2.81"}, Conditions: discoveryv1.EndpointConditions{Ready: ptr.To(false)}},
			{Addresses: []string{"192.0.2.82"}, Conditions: discoveryv1.EndpointConditions{Ready: ptr.To(false), Serving: ptr.To(true), Terminating: ptr.To(true)}},
		}}},
		Nodes:       []corev1.Node{node("node-1"), node("node-2"), node("node-3")},
		Agents:      []corev1.Pod{agent("node-1"), agent("node-2")},
		Controllers: []corev1.Pod{agent("node-1")},
		Events: []corev1.Event{
			{Type: "Warning", Reason: "EndpointPortUnknown", Message: "port 53", Count: 3, LastTimestamp: metav1.Time{Time: now.Add(-5 * time.Minute)}},
		},
	}
	f.Nodes[1].Status.Conditions[1] = corev1.NodeCondition{Type: v1alpha1.NodeProxyModeSupported, Status: corev1.ConditionFalse, Message: "Proxy mode ipvs cannot be used on this node, which uses nftables instead: no ip_vs"}
	report := Explain(f)
	var got strings.Builder
	if _, err := report.WriteTo(&got); err != nil {
		t.Fatal(err)
	}
	want := `Service shop/web: ClusterIP, 53/UDP

  ok     It has ClusterIP 10.96.1.2.
  note   Causeway does not keep its EndpointSlices: kube-controller-manager keeps the slices.
  note   1 of 3 endpoints ready: 1 on node-1; 1 ending and still serving.
           192.0.2.81: its EndpointSlice says that it is not ready
           192.0.2.82: its EndpointSlice says that it is not ready
  note   internalTrafficPolicy is Local: clients on node-2, node-3 reach no endpoint by its ClusterIP.
  WRONG  1 of 3 nodes without an agent that is ready: what changes does not reach their kernels, and they announce nothing.
           node-3: it has none
  note   Some nodes use another proxy mode than they were told to.
           node-2: Proxy mode ipvs cannot be used on this node, which uses nftables instead: no ip_vs
           node-1, node-3: Proxy mode nftables is in use

  Last events:
    5m   Warning EndpointPortUnknown: port 53 (3 times)

One thing is wrong.
`
	if diff := cmp.Diff(want, got.String()); diff != "" {
		t.Errorf("report (-want +got):\n%s", diff)
	}
}

// TestPortsAndAddressesThatNobodyServes: a targetPort that no container declares is noted,
// and an external IP is wrong that the agents were not told to serve.
func TestPortsAndAddressesThatNobodyServes(t *testing.T) {
	const (
		port    = "Port 80 leads to 8081/TCP of its Pods, which none of their containers declares; they declare 8080/TCP, 8080/UDP"
		address = "External IP 198.51.100.7 is in no range that the administrator allows, so that no node answers for it"
	)
	tcp := func(target intstr.IntOrString) corev1.ServicePort {
		return corev1.ServicePort{Port: 80, Protocol: corev1.ProtocolTCP, TargetPort: target}
	}
	both := []corev1.ContainerPort{{Name: "http", ContainerPort: 8080}, {ContainerPort: 8080, Protocol: corev1.ProtocolUDP}}
	for _, tc := range []struct {
		name      string
		port      corev1.ServicePort
		declared  []corev1.ContainerPort
		addresses []string
		args      []string
		want      []string
	}{
		{name: "a number that is declared", port: tcp(intstr.FromInt32(8080)), declared: both},
		{name: "another number", port: tcp(intstr.FromInt32(8081)), declared: both, want: []string{port}},
		{name: "another protocol", port: corev1.ServicePort{Port: 53, Protocol: corev1.ProtocolUDP, TargetPort: intstr.FromInt32(53)},
			declared: []corev1.ContainerPort{{ContainerPort: 53, Protocol: corev1.ProtocolTCP}},
			want:     []string{"Port 53 leads to 53/UDP of its Pods, which none of their containers declares; they declare 53/TCP"}},
		{name: "nothing is declared", port: tcp(intstr.FromInt32(8081))},
		{name: "a name", port: tcp(intstr.FromString("http")), declared: both},
		{name: "the same as the port", port: corev1.ServicePort{Port: 8080, Protocol: corev1.ProtocolTCP}, declared: both},
		{name: "no range of external IPs", addresses: []string{"198.51.100.7"}, want: []string{address}},
		{name: "in a range", addresses: []string{"198.51.100.7", "2001:db8::7"}, args: []string{"--external-ip-ranges=192.0.2.0/24,198.51.100.0/24,2001:db8::/64"}},
		{name: "one of two in a range", addresses: []string{"198.51.100.7", "192.0.2.7"}, args: []string{"--external-ip-ranges", "192.0.2.0/24"}, want: []string{address}},
		{name: "kube-proxy forwards", addresses: []string{"198.51.100.7"}, args: []string{"--mode=none"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := &Facts{Now: now, Service: &corev1.Service{
				ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web"},
				Spec: corev1.ServiceSpec{
					Type: corev1.ServiceTypeClusterIP, ClusterIP: "10.96.1.2", ClusterIPs: []string{"10.96.1.2"},
					Selector: map[string]string{"app": "web"}, ExternalIPs: tc.addresses,
				},
			}}
			if tc.port.Port != 0 {
				f.Service.Spec.Ports = []corev1.ServicePort{tc.port}
			}
			f.Pods = []corev1.Pod{{Spec: corev1.PodSpec{Containers: []corev1.Container{{Ports: tc.declared}}}}}
			f.Agents = []corev1.Pod{{Spec: corev1.PodSpec{Containers: []corev1.Container{{Args: tc.args}}}}}
			var got []string
			for _, finding := range Explain(f).Findings {
				if strings.Contains(finding.Text, "declare") || strings.HasPrefix(finding.Text, "External IP") {
					got = append(got, finding.Text)
				}
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// What tenants write reaches the terminal on one line and without effect on it.
func TestForeignTextIsEscaped(t *testing.T) {
	evil := "\x1b[2J\x1b]0;owned\x07\n  ok     All is well."
	svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{
		Namespace: "shop", Name: "web", Annotations: map[string]string{v1alpha1.PoolAnnotation: evil, "causeway.dev/pol": "a"},
	}, Spec: corev1.ServiceSpec{
		Type: corev1.ServiceTypeLoadBalancer, ClusterIP: "10.96.0.1", ClusterIPs: []string{"10.96.0.1" + evil}, Selector: map[string]string{"app": evil},
		LoadBalancerSourceRanges: []string{evil}, LoadBalancerClass: ptr.To(evil),
	}, Status: corev1.ServiceStatus{Conditions: []metav1.Condition{
		{Type: v1alpha1.ServiceAllocated, Status: metav1.ConditionFalse, Reason: "NoPool", Message: strings.Repeat(evil, 10_000)},
		{Type: v1alpha1.ConditionInPool, Status: metav1.ConditionFalse, Reason: "Outside", Message: evil},
	}}}
	report := Explain(&Facts{Service: svc, Now: now, Events: []corev1.Event{{Reason: evil, Message: evil}}})
	var b strings.Builder
	if _, err := report.WriteTo(&b); err != nil {
		t.Fatal(err)
	}
	for _, line := range strings.Split(b.String(), "\n") {
		if strings.ContainsAny(line, "\x1b\x07\r") || strings.HasPrefix(line, "  ok     All is well") {
			t.Errorf("forged: %q", line)
		}
		if len(line) > 12_000 {
			t.Errorf("a line of %d bytes", len(line))
		}
	}
	if !strings.Contains(b.String(), "WRONG  There is no annotation causeway.dev/pol for Services") {
		t.Errorf("the misspelt annotation is not named:\n%s", b.String())
	}
}
