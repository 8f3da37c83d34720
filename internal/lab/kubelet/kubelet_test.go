// SPDX-License-Identifier: Apache-2.0

package kubelet

import (
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	"k8s.io/utils/ptr"

	"github.com/causeway-lb/causeway/internal/lab/sandbox"
)

func TestExpandVariables(t *testing.T) {
	env := map[string]string{"A": "1", "B_2": "two"}
	for in, want := range map[string]string{
		"$(A)": "1", "x$(B_2)y": "xtwoy", "$(MISSING)": "$(MISSING)", "$$(A)": "$(A)", "$A": "$A", "$(A": "$(A", "$(A)$(A)": "11", "": "",
	} {
		if got := expandVariables(in, env); got != want {
			t.Errorf("expandVariables(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestBoundingSet(t *testing.T) {
	drop := func(names ...corev1.Capability) *corev1.Capabilities { return &corev1.Capabilities{Drop: names} }
	for _, test := range []struct {
		name string
		in   *corev1.Capabilities
		want []string
	}{
		{"nothing said", nil, sandbox.DefaultCapabilities},
		{"drop all", drop("ALL"), []string{}},
		{"drop all, add", &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}, Add: []corev1.Capability{"NET_RAW", "NET_ADMIN"}}, []string{"NET_ADMIN", "NET_RAW"}},
		{"add all", &corev1.Capabilities{Add: []corev1.Capability{"ALL"}}, nil},
		{"drop one", drop("KILL"), slices.DeleteFunc(slices.Clone(sandbox.DefaultCapabilities), func(s string) bool { return s == "KILL" })},
	} {
		t.Run(test.name, func(t *testing.T) {
			if diff := cmp.Diff(test.want, boundingSet(test.in)); diff != "" {
				t.Errorf("set (-want +got):\n%s", diff)
			}
		})
	}
}

func TestAddresses(t *testing.T) {
	a := newAddresses([]netip.Prefix{netip.MustParsePrefix("10.244.3.0/24"), netip.MustParsePrefix("fd00:10:244:3::/64")})
	seen := map[netip.Addr]bool{}
	for range 253 {
		_, got, err := a.take()
		if err != nil {
			t.Fatal(err)
		}
		if seen[got[0]] || seen[got[1]] {
			t.Fatalf("%v was handed out before", got)
		}
		seen[got[0]], seen[got[1]] = true, true
	}
	if seen[netip.MustParseAddr("10.244.3.0")] || seen[netip.MustParseAddr("10.244.3.1")] || seen[netip.MustParseAddr("10.244.3.255")] {
		t.Error("network, gateway or broadcast address was handed out")
	}
	if _, _, err := a.take(); err == nil {
		t.Error("a 254th address was handed out")
	}
	a.release(17)
	if _, got, err := a.take(); err != nil || got[0].String() != "10.244.3.17" {
		t.Errorf("after the release of .17: %v, %v", got, err)
	}
}

func TestImage(t *testing.T) {
	config := Config{Images: map[string]Image{"web": {Dir: "/x"}, "app": {}}}
	for _, reference := range []string{"web", "web:1", "registry.example:5000/team/web:1@sha256:00", "registry.example/web"} {
		if image, err := config.image(reference); err != nil || image.Dir != "/x" {
			t.Errorf("%s: %v, %v", reference, image, err)
		}
	}
	if _, err := config.image("webb"); err == nil || !strings.Contains(err.Error(), "app, web") {
		t.Errorf("unknown image: %v, want an error that names those there are", err)
	}
}

// states in short: w waiting, r running, R running and ready, c crashed and
// waiting for a restart, 0 and 1 ended with that code.
func statuses(short string) []corev1.ContainerStatus {
	var out []corev1.ContainerStatus
	for _, c := range short {
		var s corev1.ContainerStatus
		ended := func(code int32) *corev1.ContainerStateTerminated {
			return &corev1.ContainerStateTerminated{ExitCode: code}
		}
		switch c {
		case 'w':
			s.State.Waiting = &corev1.ContainerStateWaiting{}
		case 'r', 'R':
			s.State.Running = &corev1.ContainerStateRunning{}
			s.Ready = c == 'R'
		case 'c':
			s.State.Waiting = &corev1.ContainerStateWaiting{}
			s.LastTerminationState.Terminated = ended(1)
		case '0':
			s.State.Terminated = ended(0)
		case '1':
			s.State.Terminated = ended(1)
		}
		out = append(out, s)
	}
	return out
}

func TestPhaseAndReady(t *testing.T) {
	for _, test := range []struct {
		name           string
		policy         corev1.RestartPolicy
		init, main     string
		deleted, gated bool
		want           corev1.PodPhase
		ready          bool
	}{
		{name: "not started", main: "ww", want: corev1.PodPending},
		{name: "initialising", init: "r", main: "w", want: corev1.PodPending},
		{name: "one of two ready", main: "Rr", want: corev1.PodRunning},
		{name: "ready", init: "0", main: "RR", want: corev1.PodRunning, ready: true},
		{name: "gate closed", main: "R", gated: true, want: corev1.PodRunning},
		{name: "crashing", main: "cR", want: corev1.PodRunning},
		{name: "ended, restarts", main: "1", want: corev1.PodRunning},
		{name: "ended and deleted", main: "0", deleted: true, want: corev1.PodSucceeded},
		{name: "job done", policy: corev1.RestartPolicyOnFailure, main: "00", want: corev1.PodSucceeded},
		{name: "job to be tried again", policy: corev1.RestartPolicyOnFailure, main: "01", want: corev1.PodRunning},
		{name: "failed for good", policy: corev1.RestartPolicyNever, main: "01", want: corev1.PodFailed},
		{name: "one runs on", policy: corev1.RestartPolicyNever, main: "r1", want: corev1.PodRunning},
		{name: "init failed for good", policy: corev1.RestartPolicyNever, init: "1", main: "w", want: corev1.PodFailed},
	} {
		t.Run(test.name, func(t *testing.T) {
			pod := &corev1.Pod{Spec: corev1.PodSpec{RestartPolicy: or(test.policy, corev1.RestartPolicyAlways)}}
			if test.deleted {
				pod.DeletionTimestamp = ptr.To(metav1.Now())
			}
			if test.gated {
				pod.Spec.ReadinessGates = []corev1.PodReadinessGate{{ConditionType: "example.com/gate"}}
			}
			status := corev1.PodStatus{InitContainerStatuses: statuses(test.init), ContainerStatuses: statuses(test.main)}
			status.Phase = phase(pod, status)
			if status.Phase != test.want {
				t.Errorf("phase %s, want %s", status.Phase, test.want)
			}
			conditions := podConditions(pod, status, true)
			if got := conditionStatus(conditions, corev1.PodReady) == corev1.ConditionTrue; got != test.ready {
				t.Errorf("ready %t, want %t", got, test.ready)
			}
		})
	}
}

// The same status again is not written again, whatever the API does to times.
func TestStatusPatch(t *testing.T) {
	pod := &corev1.Pod{}
	running := statuses("R")
	running[0].State.Running.StartedAt = metav1.Now()
	want := corev1.PodStatus{Phase: corev1.PodRunning, ContainerStatuses: running}
	want.Conditions = podConditions(pod, want, true)
	if patch, err := statusPatch(pod, want); err != nil || patch == nil {
		t.Fatalf("first patch %s, %v", patch, err)
	}
	want.DeepCopyInto(&pod.Status)
	started := &pod.Status.ContainerStatuses[0].State.Running.StartedAt
	*started = started.Rfc3339Copy()
	pod.Status.Conditions = append(pod.Status.Conditions, corev1.PodCondition{Type: "example.com/other", Status: corev1.ConditionTrue})
	if patch, err := statusPatch(pod, want); err != nil || patch != nil {
		t.Errorf("patch of an equal status: %s, %v", patch, err)
	}
	want.ContainerStatuses[0].Ready = false
	if patch, err := statusPatch(pod, want); err != nil || patch == nil {
		t.Errorf("patch of another status: %s, %v", patch, err)
	}
}

// After a restart of the node the old addresses go; merging by address would
// leave two of a family, which the API server refuses for ever.
func TestStatusPatchReplacesAddresses(t *testing.T) {
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{UID: "u"}}
	pod.Status.PodIP = "10.244.1.2"
	pod.Status.PodIPs = []corev1.PodIP{{IP: "10.244.1.2"}}
	pod.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodScheduled, Status: corev1.ConditionTrue}}
	want := corev1.PodStatus{Phase: corev1.PodRunning, PodIP: "10.244.1.3", PodIPs: []corev1.PodIP{{IP: "10.244.1.3"}}}
	want.Conditions = podConditions(pod, want, true)
	patch, err := statusPatch(pod, want)
	if err != nil {
		t.Fatal(err)
	}
	before, err := json.Marshal(pod)
	if err != nil {
		t.Fatal(err)
	}
	after, err := strategicpatch.StrategicMergePatch(before, patch, corev1.Pod{})
	if err != nil {
		t.Fatal(err)
	}
	got := &corev1.Pod{}
	if err := json.Unmarshal(after, got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want.PodIPs, got.Status.PodIPs); diff != "" {
		t.Errorf("addresses (-want +got):\n%s", diff)
	}
	if conditionStatus(got.Status.Conditions, corev1.PodScheduled) != corev1.ConditionTrue || got.UID != "u" {
		t.Errorf("the scheduler's condition or the UID was lost: %s", after)
	}
}

func TestWriteFilesStaysInside(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "volume")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := writeFiles(dir, map[string]string{"../../escape": "x", "a/b": "y"}); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"escape", "a/b"} {
		if _, err := os.Stat(filepath.Join(dir, path)); err != nil {
			t.Error(err)
		}
	}
}

func TestSeekTail(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	for _, test := range []struct {
		content string
		lines   int
		want    string
	}{
		{"a\nb\nc\n", 2, "b\nc\n"}, {"a\nb\nc\n", 9, "a\nb\nc\n"}, {"a\nb\nc\n", 0, ""}, {"a\nb", 1, "b"}, {"", 3, ""}, {"\n\n", 1, "\n"},
	} {
		if err := os.WriteFile(path, []byte(test.content), 0o644); err != nil {
			t.Fatal(err)
		}
		file, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := seekTail(file, test.lines); err != nil {
			t.Fatal(err)
		}
		rest := make([]byte, 100)
		n, _ := file.Read(rest)
		file.Close()
		if got := string(rest[:n]); got != test.want {
			t.Errorf("last %d lines of %q: %q, want %q", test.lines, test.content, got, test.want)
		}
	}
}

func TestResolvConf(t *testing.T) {
	for name, test := range map[string]struct {
		spec corev1.PodSpec
		want string
	}{
		"cluster": {corev1.PodSpec{DNSPolicy: corev1.DNSClusterFirst},
			"nameserver 10.96.0.10\nsearch shop.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n"},
		"the node's network": {corev1.PodSpec{DNSPolicy: corev1.DNSClusterFirst, HostNetwork: true}, ""},
		"the node's network, cluster": {corev1.PodSpec{DNSPolicy: corev1.DNSClusterFirstWithHostNet, HostNetwork: true},
			"nameserver 10.96.0.10\nsearch shop.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n"},
		"its own": {corev1.PodSpec{DNSPolicy: corev1.DNSNone, DNSConfig: &corev1.PodDNSConfig{
			Nameservers: []string{"192.0.2.53"}, Searches: []string{"example.com"},
			Options: []corev1.PodDNSConfigOption{{Name: "ndots", Value: new("2")}, {Name: "edns0"}},
		}}, "nameserver 192.0.2.53\nsearch example.com\noptions edns0 ndots:2\n"},
		"cluster, and more": {corev1.PodSpec{DNSPolicy: corev1.DNSClusterFirst, DNSConfig: &corev1.PodDNSConfig{
			Searches: []string{"example.com"}, Options: []corev1.PodDNSConfigOption{{Name: "ndots", Value: new("2")}},
		}}, "nameserver 10.96.0.10\nsearch shop.svc.cluster.local svc.cluster.local cluster.local example.com\noptions ndots:2\n"},
	} {
		w := &worker{
			k:   &Kubelet{config: Config{DNS: netip.MustParseAddr("10.96.0.10")}},
			pod: &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop"}, Spec: test.spec},
		}
		if got := w.resolvConf(); got != test.want {
			t.Errorf("%s:\n%s\nwant\n%s", name, got, test.want)
		}
	}
}

func TestHostPortMatch(t *testing.T) {
	pod4, pod6 := netip.MustParseAddr("10.244.1.5"), netip.MustParseAddr("fd00::5")
	for _, test := range []struct {
		hostIP  string
		address netip.Addr
		want    string
	}{
		{"", pod4, "meta nfproto ipv4 fib daddr type local"},
		{"", pod6, "meta nfproto ipv6 fib daddr type local"},
		{"0.0.0.0", pod4, "meta nfproto ipv4 fib daddr type local"},
		{"0.0.0.0", pod6, ""},
		{"127.0.0.1", pod4, "ip daddr 127.0.0.1"},
		{"2001:db8::1", pod6, "ip6 daddr 2001:db8::1"},
		{"2001:db8::1", pod4, ""},
	} {
		if got, err := hostPortMatch(test.hostIP, test.address); got != test.want || err != nil {
			t.Errorf("hostPortMatch(%q, %s) = %q, %v; want %q", test.hostIP, test.address, got, err, test.want)
		}
	}
	if _, err := hostPortMatch("nowhere", pod4); err == nil {
		t.Error("no error for an address that is none")
	}
}
