// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"encoding/json"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/causeway-lb/causeway/api/v1alpha1"
	"github.com/causeway-lb/causeway/internal/proxy/model"
)

// FuzzSnapshot feeds whatever the API's types can hold, which is more than an API
// server lets pass: no object may end the agent, nor change what is made of the
// others. Each object is JSON.
func FuzzSnapshot(f *testing.F) {
	const v4 = discoveryv1.AddressTypeIPv4
	seed := func(objects ...any) {
		text := [5][]byte{}
		for i, o := range objects {
			text[i], _ = json.Marshal(o)
		}
		f.Add(text[0], text[1], text[2], text[3], text[4])
	}
	seed(lbService("a", corev1.ServiceExternalTrafficPolicyLocal, "192.0.2.201"), endpointsOn("a", v4, "node-1"),
		&corev1.Node{}, lbRecord("192.0.2.201", "p", "a"), &v1alpha1.LoadBalancerPool{})
	f.Add([]byte(`{"metadata":{"name":"b"},"status":{"loadBalancer":{"ingress":[{"ip":"::ffff:192.0.2.1"}]}}}`), []byte(`{"endpoints":[{}]}`),
		[]byte(`{"metadata":{"name":"n"},"spec":{"podCIDRs":["10.0.0.0/33"]},"status":{"addresses":[{"type":"InternalIP","address":"x"}]}}`),
		[]byte(`{"metadata":{"name":"x"},"spec":{"address":"fe80::1%eth0","services":[{}]}}`),
		[]byte(`{"metadata":{"name":"p"},"spec":{"interfaces":["["],"failback":{"mode":"Delayed"},"nodeSelector":{"matchExpressions":[{"key":"/","operator":"?"}]}}}`))
	f.Fuzz(func(t *testing.T, service, slice, node, record, pool []byte) {
		svc, eps, n, r, p := &corev1.Service{}, &discoveryv1.EndpointSlice{}, &corev1.Node{}, &v1alpha1.LoadBalancerAddress{}, &v1alpha1.LoadBalancerPool{}
		for _, one := range []struct {
			text []byte
			into any
		}{{service, svc}, {slice, eps}, {node, n}, {record, r}, {pool, p}} {
			if json.Unmarshal(one.text, one.into) != nil {
				return
			}
		}
		if r.Name == "192.0.2.200" || svc.Name == "good" && svc.Namespace == "default" {
			return // the good ones' own names
		}
		good := []any{lbService("good", corev1.ServiceExternalTrafficPolicyCluster, "192.0.2.200"), lbRecord("192.0.2.200", "none", "good")}
		store := NewStore()
		fill(t, store, append(good, svc, eps, n, r, p)...)
		var b snapshotter
		snap, _ := b.make(store, true, false)
		found := false
		for _, a := range snap.Addresses {
			found = found || a.Addr.String() == "192.0.2.200" && a.Local == nil
			if !a.Addr.IsValid() || a.Addr.Is4In6() || a.Pool == nil {
				t.Errorf("announced: %+v", a)
			}
			if a.Pool.Selects != nil {
				for _, n := range snap.Nodes {
					a.Pool.Selects(n.Labels)
				}
			}
		}
		if !found {
			t.Errorf("the good address is lost among %v", snap.Addresses)
		}
		if _, changed := b.make(store, true, false); changed {
			t.Error("the same Store counts as changed")
		}
		config := Config{Node: model.Node{Name: "node-1"}}
		config.modelNode(n, nil)
	})
}
