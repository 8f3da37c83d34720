// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"sync/atomic"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-lb/causeway/api/v1alpha1"
)

// lbNet numbers the specs: each has 192 addresses of its own, 198.18.N.0/26 to
// 198.18.N.128/26, and 2001:db8:1b:N::/64.
var lbNet atomic.Int32

// lbSpec is the world of one spec: a namespace and ranges that nobody else uses.
type lbSpec struct {
	namespace string
	n         int32
}

func newLBSpec(ctx context.Context, labels ...map[string]string) lbSpec {
	return lbSpec{namespace: newNamespace(ctx, labels...), n: lbNet.Add(1)}
}

// v4 is the i-th IPv4 address of the spec, v6 the i-th IPv6 address.
func (s lbSpec) v4(i int) string { return fmt.Sprintf("198.18.%d.%d", s.n, i) }
func (s lbSpec) v6(i int) string { return fmt.Sprintf("2001:db8:1b:%x::%x", s.n, i) }

// v4Range and v6Range are addresses i to j.
func (s lbSpec) v4Range(i, j int) v1alpha1.AddressRange {
	return v1alpha1.AddressRange(s.v4(i) + "-" + s.v4(j))
}
func (s lbSpec) v6Range(i, j int) v1alpha1.AddressRange {
	return v1alpha1.AddressRange(s.v6(i) + "-" + s.v6(j))
}

// pool makes a pool for the spec's namespace, without quarantine.
func (s lbSpec) pool(ctx context.Context, change func(*v1alpha1.LoadBalancerPoolSpec), ranges ...v1alpha1.AddressRange) *v1alpha1.LoadBalancerPool {
	GinkgoHelper()
	p := &v1alpha1.LoadBalancerPool{
		ObjectMeta: metav1.ObjectMeta{GenerateName: "lb-"},
		Spec: v1alpha1.LoadBalancerPoolSpec{
			Addresses: ranges, NamespaceSelector: inNamespace(s.namespace),
			Quarantine: &metav1.Duration{}, RemovalPolicy: v1alpha1.RemovalDrain,
		},
	}
	if change != nil {
		change(&p.Spec)
	}
	create(ctx, p)
	return p
}

// service makes a Service of type LoadBalancer.
func (s lbSpec) service(ctx context.Context, name string, change func(*corev1.Service)) *corev1.Service {
	GinkgoHelper()
	svc := newService(s.namespace, name, func(svc *corev1.Service) {
		svc.Spec.Type = corev1.ServiceTypeLoadBalancer
		svc.Annotations = map[string]string{}
		if change != nil {
			change(svc)
		}
	})
	create(ctx, svc)
	return svc
}

func annotate(key, value string) func(*corev1.Service) {
	return func(svc *corev1.Service) { metav1.SetMetaDataAnnotation(&svc.ObjectMeta, key, value) }
}

func asksFor(addresses ...string) func(*corev1.Service) {
	return annotate(v1alpha1.AddressesAnnotation, strings.Join(addresses, ","))
}

// addressesOf are the ingress IPs that a Service has now.
func addressesOf(ctx context.Context, svc *corev1.Service) func(Gomega) []string {
	return func(g Gomega) (out []string) {
		g.Expect(k8sClient.Get(ctx, client.ObjectKeyFromObject(svc), svc)).To(Succeed())
		for _, in := range svc.Status.LoadBalancer.Ingress {
			out = append(out, in.IP)
		}
		return out
	}
}

// allocatedOf is the condition Allocated as "Status/Reason".
func allocatedOf(ctx context.Context, svc *corev1.Service) func(Gomega) string {
	return func(g Gomega) string {
		return serviceCondition(refresh(ctx, svc)(g), v1alpha1.ServiceAllocated)
	}
}

// recordOf reads the record of an address.
func recordOf(ctx context.Context, addr string) func(Gomega) *v1alpha1.LoadBalancerAddress {
	return func(g Gomega) *v1alpha1.LoadBalancerAddress {
		a := &v1alpha1.LoadBalancerAddress{}
		name := v1alpha1.LoadBalancerAddressName(netip.MustParseAddr(addr))
		g.Expect(k8sClient.Get(ctx, client.ObjectKey{Name: name}, a)).To(Succeed())
		return a
	}
}

// isGone reports whether an object is not there.
func isGone(ctx context.Context, obj client.Object) func() bool {
	return func() bool { return apierrors.IsNotFound(k8sClient.Get(ctx, client.ObjectKeyFromObject(obj), obj)) }
}

// edit changes an object, again when somebody else did.
func edit[T client.Object](ctx context.Context, obj T, change func(T)) {
	GinkgoHelper()
	Eventually(func(g Gomega) {
		g.Expect(k8sClient.Get(ctx, client.ObjectKeyFromObject(obj), obj)).To(Succeed())
		change(obj)
		g.Expect(k8sClient.Update(ctx, obj)).To(Succeed())
	}).Should(Succeed())
}
