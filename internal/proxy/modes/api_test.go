// SPDX-License-Identifier: Apache-2.0

package modes

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
)

// resource is what the API serves of one.
type resource struct {
	version, kind string
	object        any
}

// newAPI serves what kube-proxy asks an API server for: the Service of
// mustSync, as objects that never change. Everything else is not found.
func newAPI(t *testing.T) string {
	t.Helper()
	resources := map[string]resource{
		"/api/v1/services": {"v1", "Service", web()},
		"/api/v1/nodes":    {"v1", "Node", node1()},
		"/apis/discovery.k8s.io/v1/endpointslices": {"discovery.k8s.io/v1", "EndpointSlice", webSlice()},
		"/apis/networking.k8s.io/v1/servicecidrs":  {"networking.k8s.io/v1", "ServiceCIDR", serviceCIDR()},
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		res, ok := resources[r.URL.Path]
		switch {
		case r.URL.Path == "/api/v1/nodes/node-1":
			_ = json.NewEncoder(w).Encode(node1())
		case !ok:
			w.WriteHeader(http.StatusNotFound)
			_ = json.NewEncoder(w).Encode(metav1.Status{
				TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}, Status: metav1.StatusFailure,
				Reason: metav1.StatusReasonNotFound, Code: http.StatusNotFound,
			})
		case r.URL.Query().Get("watch") != "":
			res.watch(w, r)
		default:
			_ = json.NewEncoder(w).Encode(map[string]any{
				"apiVersion": res.version, "kind": res.kind + "List", "metadata": metav1.ListMeta{ResourceVersion: "1"}, "items": []any{res.object},
			})
		}
	}))
	t.Cleanup(server.Close)
	return server.URL
}

// watch tells of the object, if that is asked for, and then of nothing more.
func (res resource) watch(w http.ResponseWriter, r *http.Request) {
	if r.URL.Query().Get("sendInitialEvents") == "true" {
		for _, event := range []map[string]any{
			{"type": "ADDED", "object": res.object},
			{"type": "BOOKMARK", "object": map[string]any{
				"apiVersion": res.version, "kind": res.kind,
				"metadata": metav1.ObjectMeta{ResourceVersion: "1", Annotations: map[string]string{metav1.InitialEventsAnnotationKey: "true"}},
			}},
		} {
			_ = json.NewEncoder(w).Encode(event)
		}
	}
	_ = http.NewResponseController(w).Flush()
	<-r.Context().Done()
}

func web() corev1.Service {
	return corev1.Service{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Service"},
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web", ResourceVersion: "1"},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeNodePort, ClusterIP: "10.96.0.10", ClusterIPs: []string{"10.96.0.10"},
			IPFamilies:            []corev1.IPFamily{corev1.IPv4Protocol},
			InternalTrafficPolicy: ptr.To(corev1.ServiceInternalTrafficPolicyCluster),
			ExternalTrafficPolicy: corev1.ServiceExternalTrafficPolicyCluster,
			SessionAffinity:       corev1.ServiceAffinityNone,
			Ports:                 []corev1.ServicePort{{Port: 80, Protocol: corev1.ProtocolTCP, NodePort: 30080}},
		},
	}
}

func webSlice() discoveryv1.EndpointSlice {
	slice := discoveryv1.EndpointSlice{
		TypeMeta: metav1.TypeMeta{APIVersion: "discovery.k8s.io/v1", Kind: "EndpointSlice"},
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "default", Name: "web", ResourceVersion: "1", Labels: map[string]string{discoveryv1.LabelServiceName: "web"},
		},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: ptr.To(""), Port: ptr.To[int32](8080), Protocol: ptr.To(corev1.ProtocolTCP)}},
	}
	for _, address := range []string{"10.244.1.2", "10.244.1.4"} {
		slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{
			Addresses: []string{address}, NodeName: ptr.To("node-1"), Conditions: discoveryv1.EndpointConditions{Ready: ptr.To(true)},
		})
	}
	return slice
}

func serviceCIDR() networkingv1.ServiceCIDR {
	return networkingv1.ServiceCIDR{
		TypeMeta:   metav1.TypeMeta{APIVersion: "networking.k8s.io/v1", Kind: "ServiceCIDR"},
		ObjectMeta: metav1.ObjectMeta{Name: "kubernetes", ResourceVersion: "1"},
		Spec:       networkingv1.ServiceCIDRSpec{CIDRs: []string{"10.96.0.0/16"}},
	}
}

func node1() corev1.Node {
	return corev1.Node{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Node"},
		ObjectMeta: metav1.ObjectMeta{Name: "node-1", ResourceVersion: "1"},
		Spec:       corev1.NodeSpec{PodCIDR: "10.244.1.0/24", PodCIDRs: []string{"10.244.1.0/24"}},
		Status:     corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "192.0.2.11"}}},
	}
}
