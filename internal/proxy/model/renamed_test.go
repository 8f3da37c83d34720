// SPDX-License-Identifier: Apache-2.0

package model_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"

	"github.com/causeway-lb/causeway/internal/proxy/model"
)

// Ports of a Service that has changed before its slices. A port is written
// "name port/protocol>targetPort", one of a slice "name number/protocol".
func TestPortsBeforeTheirSlices(t *testing.T) {
	for _, tc := range []struct {
		name    string
		ports   string
		slices  []string
		without bool // a selector
		former  string
		want    string
	}{
		{name: "followed", ports: "http 80/TCP>8080", slices: []string{"http 8080/TCP"}, want: "80/TCP>8080"},
		{name: "renamed", ports: "http-web 80/TCP>8080", slices: []string{"http 8080/TCP"}, want: "80/TCP>8080"},
		{name: "renamed, half of the slices have followed", ports: "http-web 80/TCP>8080", slices: []string{"http 8080/TCP", "http-web 8080/TCP"}, want: "80/TCP>8080"},
		{name: "named", ports: "http 80/TCP>8080", slices: []string{" 8080/TCP"}, want: "80/TCP>8080"},
		{name: "name taken away", ports: " 80/TCP>8080", slices: []string{"http 8080/TCP"}, want: "80/TCP>8080"},
		{name: "renamed, UDP and SCTP", ports: "x 53/UDP>5353,y 53/SCTP>5353", slices: []string{"dns 5353/UDP,dns-sctp 5353/SCTP"}, want: "53/UDP>5353 53/SCTP>5353"},
		{name: "one of two renamed", ports: "http-web 80/TCP>8080,admin 81/TCP>9090", slices: []string{"http 8080/TCP,admin 9090/TCP"}, want: "80/TCP>8080 81/TCP>9090"},
		{name: "swapped", ports: "b 80/TCP>8080,a 81/TCP>9090", slices: []string{"a 8080/TCP,b 9090/TCP"}, want: "80/TCP>8080 81/TCP>9090"},
		{name: "swapped, followed", ports: "b 80/TCP>8080,a 81/TCP>9090", slices: []string{"b 8080/TCP,a 9090/TCP"}, want: "80/TCP>8080 81/TCP>9090"},
		{name: "swapped, of two protocols", ports: "dns 53/TCP>53,dns-tcp 53/UDP>53", slices: []string{"dns 53/UDP,dns-tcp 53/TCP"}, want: "53/TCP>53 53/UDP>53"},
		{name: "three in turn", ports: "b 1/TCP>11,c 2/TCP>12,a 3/TCP>13", slices: []string{"a 11/TCP,b 12/TCP,c 13/TCP"}, want: "1/TCP>11 2/TCP>12 3/TCP>13"},
		{name: "another protocol", ports: "dns 53/TCP>53", slices: []string{"dns 53/UDP"}, want: "53/TCP>53"},
		{name: "another protocol and name", ports: "dns-tcp 53/TCP>53", slices: []string{"dns 53/UDP"}, want: "53/TCP>53"},
		{name: "another targetPort", ports: "http 80/TCP>9090", slices: []string{"http 8080/TCP"}, want: "80/TCP>8080"},
		{name: "another name, targetPort by name", ports: "http-web 80/TCP>web", slices: []string{"http 8080/TCP"}, want: "80/TCP>8080"},
		{name: "another name, two targetPorts by name", ports: "http-web 80/TCP>web,admin 81/TCP>adm", slices: []string{"http 8080/TCP,admin 9090/TCP"}, want: "80/TCP>8080 81/TCP>9090"},
		{name: "Pods of different numbers", ports: "http 80/TCP>web", slices: []string{"http 8080/TCP", "http 8081/TCP"}, want: "80/TCP>8080,8081"},

		{name: "a port that has come", ports: "http 80/TCP>8080,admin 81/TCP>9090", slices: []string{"http 8080/TCP"}, want: "80/TCP>8080 81/TCP>"},
		{name: "a port that has come, to the same number", ports: "http 80/TCP>8080,admin 81/TCP>8080", slices: []string{"http 8080/TCP"}, want: "80/TCP>8080 81/TCP>"},
		{name: "a port that has come, by name", ports: "http 80/TCP>web,admin 81/TCP>adm", slices: []string{"http 8080/TCP"}, want: "80/TCP>8080 81/TCP>"},
		{name: "a port that no Pod has", ports: "http 80/TCP>8080", slices: []string{"other 9090/TCP"}, want: "80/TCP>"},
		{name: "a port of another protocol", ports: "http 80/TCP>web", slices: []string{"http 8080/UDP"}, want: "80/TCP>"},
		{name: "two that nobody can tell apart", ports: "x 80/TCP>web,y 81/TCP>adm", slices: []string{"a 8080/TCP,b 9090/TCP"}, want: "80/TCP> 81/TCP>"},
		{name: "two that nobody could tell apart, but for what they were", ports: "x 80/TCP>web,y 81/TCP>adm", former: "a 80/TCP>web,b 81/TCP>adm", slices: []string{"a 8080/TCP,b 9090/TCP"}, want: "80/TCP>8080 81/TCP>9090"},
		{name: "swapped, targetPorts by name", ports: "b 80/TCP>web,a 81/TCP>adm", former: "a 80/TCP>web,b 81/TCP>adm", slices: []string{"a 8080/TCP,b 9090/TCP"}, want: "80/TCP>8080 81/TCP>9090"},
		{name: "swapped, targetPorts by name, Pods of different numbers", ports: "b 80/UDP>web,a 81/UDP>adm", former: "a 80/UDP>web,b 81/UDP>adm", slices: []string{"a 8080/UDP,b 9090/UDP", "a 8081/UDP,b 9090/UDP"}, want: "80/UDP>8080,8081 81/UDP>9090"},
		{name: "three in turn, one by name", ports: "b 1/TCP>x,c 2/TCP>12,a 3/TCP>z", former: "a 1/TCP>x,b 2/TCP>12,c 3/TCP>z", slices: []string{"a 11/TCP,b 12/TCP,c 13/TCP"}, want: "1/TCP>11 2/TCP>12 3/TCP>13"},
		{name: "another name, and a port that has come under the old one", ports: "b 80/TCP>web,a 81/TCP>adm", former: "a 80/TCP>web", slices: []string{"a 8080/TCP"}, want: "80/TCP>8080 81/TCP>"},
		{name: "another targetPort, and what it was is known", ports: "http 80/TCP>9090", former: "http 80/TCP>8080", slices: []string{"http 8080/TCP"}, want: "80/TCP>8080"},
		{name: "another protocol, and what it was is known", ports: "dns 53/TCP>53", former: "dns 53/UDP>53", slices: []string{"dns 53/UDP"}, want: "53/TCP>53"},
		{name: "slices of the user's own, whatever was before", ports: "b 80/TCP>web,a 81/TCP>adm", former: "a 80/TCP>web,b 81/TCP>adm", slices: []string{"a 8080/TCP,b 9090/TCP"}, without: true, want: "80/TCP>9090 81/TCP>8080"},
		{name: "slices of the user's own", ports: "http-web 80/TCP>8080", slices: []string{"http 8080/TCP"}, without: true, want: "80/TCP>"},
		{name: "slices of the user's own, another number", ports: "http 80/TCP>80", slices: []string{"http 8080/TCP"}, without: true, want: "80/TCP>8080"},
	} {
		for fam, address := range map[discoveryv1.AddressType][2]string{
			discoveryv1.AddressTypeIPv4: {"10.96.0.1", "10.244.0.1"}, discoveryv1.AddressTypeIPv6: {"fd00:10:96::1", "fd00:10:244::1"},
		} {
			svc := &corev1.Service{Spec: corev1.ServiceSpec{ClusterIP: address[0]}}
			if !tc.without {
				svc.Spec.Selector = map[string]string{"app": "web"}
			}
			svc.Spec.Ports = servicePorts(t, tc.ports)
			in := model.Input{Service: svc, Former: map[string][]corev1.ServicePort{}}
			for i, ports := range tc.slices {
				sl := &discoveryv1.EndpointSlice{AddressType: fam}
				sl.Name = fmt.Sprint("web-", i)
				sl.Endpoints = []discoveryv1.Endpoint{{Addresses: []string{address[1]}}}
				for p := range strings.SplitSeq(ports, ",") {
					name, rest, _ := strings.Cut(p, " ")
					number, proto := number(t, rest)
					sl.Ports = append(sl.Ports, discoveryv1.EndpointPort{Name: &name, Port: &number, Protocol: ptr.To(proto)})
				}
				in.Slices = append(in.Slices, sl)
				if tc.former != "" {
					in.Former[sl.Name] = servicePorts(t, tc.former)
				}
			}
			out, problems := model.ComputeService(in, model.Node{})
			if len(problems) > 0 {
				t.Errorf("%s: %v", tc.name, problems)
			}
			var got []string
			for _, f := range out.Frontends {
				var to []string
				for _, ap := range f.Serving {
					to = append(to, fmt.Sprint(ap.Port()))
				}
				if refused := f.Inside.Action == model.Reject; refused != (len(to) == 0) {
					t.Errorf("%s: %s %v with endpoints %v", tc.name, f.Key, f.Inside.Action, to)
				}
				got = append(got, fmt.Sprintf("%d/%s>%s", f.Port, f.Protocol, strings.Join(to, ",")))
			}
			if diff := cmp.Diff(tc.want, strings.Join(got, " ")); diff != "" {
				t.Errorf("%s, %s (-want +got):\n%s", tc.name, fam, diff)
			}
		}
	}
}

// servicePorts reads "name port/protocol>targetPort,...".
func servicePorts(t *testing.T, text string) (ports []corev1.ServicePort) {
	t.Helper()
	for p := range strings.SplitSeq(text, ",") {
		name, rest, _ := strings.Cut(p, " ")
		rest, targetPort, _ := strings.Cut(rest, ">")
		number, proto := number(t, rest)
		ports = append(ports, corev1.ServicePort{Name: name, Port: number, Protocol: proto, TargetPort: intstr.Parse(targetPort)})
	}
	return ports
}

// number reads "80/TCP".
func number(t *testing.T, text string) (n int32, proto corev1.Protocol) {
	t.Helper()
	if _, err := fmt.Sscanf(text, "%d/%s", &n, &proto); err != nil {
		t.Fatal(err)
	}
	return n, proto
}
