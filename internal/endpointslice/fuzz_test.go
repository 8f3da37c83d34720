// SPDX-License-Identifier: Apache-2.0

package endpointslice

import (
	"encoding/json"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// FuzzCompute feeds whatever the API's types can hold, as JSON: nothing may end
// the controller, nor be changed where it lies, in the caches of all.
func FuzzCompute(f *testing.F) {
	f.Add([]byte(`{"metadata":{"name":"web"},"spec":{"clusterIP":"10.96.0.1","ipFamilies":["IPv4"],"ports":[{"port":80,"targetPort":"http"}]}}`),
		[]byte(`{"metadata":{"name":"p"},"spec":{"nodeName":"node-1","containers":[{"ports":[{"name":"http","containerPort":8080}]}]},"status":{"podIP":"10.0.0.1","podIPs":[{"ip":"10.0.0.1"}],"conditions":[{"type":"Ready","status":"True"}]}}`),
		[]byte(`{"metadata":{"name":"s"},"addressType":"IPv4","endpoints":[{"addresses":["10.0.0.1"]}],"ports":[{"port":8080}]}`))
	f.Add([]byte(`{"spec":{"clusterIP":"None","ipFamilies":["?","IPv6"],"ports":[{"targetPort":-1}]}}`),
		[]byte(`{"status":{"podIPs":[{"ip":"::ffff:10.0.0.1"},{"ip":"x"}]}}`), []byte(`{"endpoints":[{},{"targetRef":{"kind":"Pod"}}],"ports":[{}]}`))
	f.Fuzz(func(t *testing.T, service, pod, slice []byte) {
		svc, p, s := &corev1.Service{}, &corev1.Pod{}, &discoveryv1.EndpointSlice{}
		if json.Unmarshal(service, svc) != nil || json.Unmarshal(pod, p) != nil || json.Unmarshal(slice, s) != nil {
			return
		}
		before := []any{svc.DeepCopy(), p.DeepCopy(), s.DeepCopy()}
		Compute(Input{Service: svc, Pods: []*corev1.Pod{p}, Slices: []*discoveryv1.EndpointSlice{s}, Nodes: func(string) (Node, bool) { return Node{}, true }})
		if diff := cmp.Diff(before, []any{svc, p, s}); diff != "" {
			t.Errorf("what it was given has changed (-before +after):\n%s", diff)
		}
	})
}
