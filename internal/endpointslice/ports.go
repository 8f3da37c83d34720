// SPDX-License-Identifier: Apache-2.0

package endpointslice

import (
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"
)

// portKey identifies a list of ports whatever its order: slices with equal keys
// serve the same ports.
type portKey string

// keyOfPorts returns the key of a slice's port list. Absent fields differ from
// empty ones only where the API gives them different meanings (a nil port means
// every port).
func keyOfPorts(ports []discoveryv1.EndpointPort) portKey {
	parts := make([]string, len(ports))
	for i := range ports {
		parts[i] = keyOfPort(&ports[i])
	}
	slices.Sort(parts)
	return portKey(strings.Join(parts, ","))
}

func keyOfPort(port *discoveryv1.EndpointPort) string {
	number := "*"
	if port.Port != nil {
		number = strconv.Itoa(int(*port.Port))
	}
	protocol := ptr.Deref(port.Protocol, corev1.ProtocolTCP)
	return ptr.Deref(port.Name, "") + "|" + string(protocol) + "|" + number + "|" + ptr.Deref(port.AppProtocol, "")
}

// portResolver finds the port list of each Pod of a Service, and numbers the
// distinct lists. With numeric target ports there is one list and nothing is
// looked up.
type portResolver struct {
	ports   []corev1.ServicePort
	named   bool
	numbers []int32          // scratch: the number per ServicePort, 0 for none
	groups  map[string]int32 // by numbers
	lists   [][]discoveryv1.EndpointPort

	// missing[i] counts the Pods that lack the named target port of ports[i];
	// resolved counts all Pods.
	missing  []int
	resolved int
}

func newPortResolver(service *corev1.Service) *portResolver {
	r := &portResolver{
		ports:   service.Spec.Ports,
		numbers: make([]int32, len(service.Spec.Ports)),
		missing: make([]int, len(service.Spec.Ports)),
		groups:  map[string]int32{},
	}
	for i := range r.ports {
		r.named = r.named || r.ports[i].TargetPort.Type == intstr.String
	}
	return r
}

// group returns the number of the Pod's port list in r.lists.
func (r *portResolver) group(pod *corev1.Pod) int32 {
	r.resolved++
	if !r.named && len(r.lists) == 1 {
		return 0
	}
	for i := range r.ports {
		number, ok := findPort(pod, &r.ports[i])
		if !ok {
			number = 0
			r.missing[i]++
		}
		r.numbers[i] = number
	}
	key := make([]byte, 0, 32)
	for _, number := range r.numbers {
		key = append(strconv.AppendInt(key, int64(number), 10), ',')
	}
	if group, ok := r.groups[string(key)]; ok {
		return group
	}
	group := int32(len(r.lists))
	r.groups[string(key)] = group
	r.lists = append(r.lists, r.list())
	return group
}

// list returns r.numbers as a slice's port list, in the Service's order.
func (r *portResolver) list() []discoveryv1.EndpointPort {
	list := make([]discoveryv1.EndpointPort, 0, len(r.ports))
	for i := range r.ports {
		if port := &r.ports[i]; r.numbers[i] != 0 {
			list = append(list, discoveryv1.EndpointPort{
				Name: new(port.Name), Port: new(r.numbers[i]), Protocol: new(port.Protocol), AppProtocol: copyOf(port.AppProtocol),
			})
		}
	}
	return list
}

// copyOf returns a pointer to a copy of what p points at, nil for nil.
func copyOf[T any](p *T) *T {
	if p == nil {
		return nil
	}
	return new(*p)
}
