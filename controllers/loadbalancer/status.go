// SPDX-License-Identifier: Apache-2.0

package loadbalancer

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-lb/causeway/api/v1alpha1"
	"github.com/causeway-lb/causeway/internal/alloc"
	"github.com/causeway-lb/causeway/internal/netaddr"
	"github.com/causeway-lb/causeway/internal/provisioner"
	"github.com/causeway-lb/causeway/internal/quote"
)

// outcome is the result for one Service.
type outcome struct {
	allocation provisioner.Allocation
	result     provisioner.Result
	err        error // of Ensure; result is zero then
}

// report writes the outcome to the Service's status, and an event for each
// condition that changed.
func (r *ServiceReconciler) report(ctx context.Context, svc *corev1.Service, out outcome) error {
	base := svc.DeepCopy()
	if out.err == nil {
		svc.Status.LoadBalancer.Ingress = ingressOf(svc, out.result.Ingress)
	}
	conditions := []metav1.Condition{allocated(out)}
	if len(out.allocation.Addresses) == 0 {
		meta.RemoveStatusCondition(&svc.Status.Conditions, v1alpha1.ServiceAnnounced)
		meta.RemoveStatusCondition(&svc.Status.Conditions, v1alpha1.ServiceHealthy)
	}
	conditions = append(conditions, out.result.Conditions...)
	for i := range conditions {
		conditions[i].Message = quote.Note(conditions[i].Message)
	}
	for _, c := range conditions {
		c.ObservedGeneration = svc.Generation
		meta.SetStatusCondition(&svc.Status.Conditions, c)
	}
	if err := r.patchStatus(ctx, svc, base); err != nil {
		return err
	}
	for _, c := range conditions {
		before := meta.FindStatusCondition(base.Status.Conditions, c.Type)
		r.announceChange(svc, before, c)
	}
	return nil
}

// allocated is the condition causeway.dev/Allocated.
func allocated(out outcome) metav1.Condition {
	c := metav1.Condition{Type: v1alpha1.ServiceAllocated, Status: metav1.ConditionTrue, Reason: "Allocated"}
	addrs := joinAddrs(out.allocation.Addresses)
	unmet := out.allocation.Unmet
	switch {
	case out.err != nil:
		c.Status, c.Reason = metav1.ConditionFalse, "NotServed"
		c.Message = fmt.Sprintf("The load balancer could not be configured and will be tried again: %v", out.err)
	case unmet == nil:
		c.Message = addrs
	case out.allocation.Enough:
		c.Reason, c.Message = "PartlyAllocated", fmt.Sprintf("%s. %s", addrs, unmet.Message)
	case addrs == "":
		c.Status, c.Reason, c.Message = metav1.ConditionFalse, unmet.Reason, unmet.Message
	default:
		c.Status, c.Reason = metav1.ConditionFalse, unmet.Reason
		c.Message = fmt.Sprintf("%s. The Service keeps %s", unmet.Message, addrs)
	}
	return c
}

// announceChange records an event for a changed condition, unless it is Unknown.
func (r *ServiceReconciler) announceChange(svc *corev1.Service, before *metav1.Condition, now metav1.Condition) {
	if before != nil && before.Status == now.Status && before.Reason == now.Reason && before.Message == now.Message {
		return
	}
	action := strings.TrimPrefix(now.Type, v1alpha1.GroupVersion.Group+"/")
	switch now.Status {
	case metav1.ConditionTrue:
		r.event(svc, corev1.EventTypeNormal, now.Reason, action, now.Message)
	case metav1.ConditionFalse:
		r.event(svc, corev1.EventTypeWarning, now.Reason, action, now.Message)
	}
}

// reportReleased records an event for addresses in the Service's status that it does not
// keep: a Service that requests none has one of a family.
func (r *ServiceReconciler) reportReleased(svc *corev1.Service, req provisioner.Request, held []netip.Addr) {
	shown := map[corev1.IPFamily]int{}
	for _, a := range req.Current {
		shown[alloc.FamilyOf(a)]++
	}
	lost := slices.DeleteFunc(slices.Clone(req.Current), func(a netip.Addr) bool {
		return shown[alloc.FamilyOf(a)] < 2 || slices.Contains(held, a)
	})
	if len(lost) == 0 || len(req.Addresses) > 0 {
		return
	}
	r.event(svc, corev1.EventTypeWarning, "AddressesReleased", "Allocate", fmt.Sprintf(
		"The status showed several addresses of one family; of these the Service gives up %s: list all that it needs in annotation %s",
		joinAddrs(lost), v1alpha1.AddressesAnnotation))
}

// reportAnnotations records an event for each annotation without effect, once and when
// they change.
func (r *ServiceReconciler) reportAnnotations(svc *corev1.Service) {
	key := client.ObjectKeyFromObject(svc)
	problems := provisioner.AnnotationProblems(svc, r.MetalLB)
	if len(problems) == 0 {
		r.annotationProblems.Delete(key)
		return
	}
	before, _ := r.annotationProblems.Swap(key, problems)
	reported, _ := before.([]provisioner.AnnotationProblem)
	for _, p := range problems {
		if !slices.Contains(reported, p) {
			r.event(svc, corev1.EventTypeWarning, p.Reason, "ReadAnnotations", p.Message)
		}
	}
}

// event records an event, cut to what the API accepts.
func (r *ServiceReconciler) event(obj client.Object, kind, reason, action, note string) {
	r.Recorder.Eventf(obj, nil, kind, reason, action, "%s", quote.Note(note))
}

// ingressOf returns the status for what a provisioner serves. Port errors are listed
// with all ports, in the Service's order.
func ingressOf(svc *corev1.Service, served []provisioner.Ingress) []corev1.LoadBalancerIngress {
	var out []corev1.LoadBalancerIngress
	for _, s := range served {
		mode := s.IPMode
		in := corev1.LoadBalancerIngress{IP: s.Address.String(), IPMode: &mode}
		for _, p := range svc.Spec.Ports {
			if len(s.PortErrors) == 0 {
				break
			}
			status := corev1.PortStatus{Port: p.Port, Protocol: p.Protocol}
			if text, bad := s.PortErrors[provisioner.Port{Protocol: p.Protocol, Port: uint16(p.Port)}]; bad {
				status.Error = &text
			}
			in.Ports = append(in.Ports, status)
		}
		out = append(out, in)
	}
	return out
}

// clearStatus removes what report wrote. A Service that is still of type LoadBalancer is
// now served by another controller, and loses only the addresses that it had here.
func (r *ServiceReconciler) clearStatus(ctx context.Context, svc *corev1.Service, held []netip.Addr) error {
	base := svc.DeepCopy()
	svc.Status.LoadBalancer.Ingress = slices.DeleteFunc(svc.Status.LoadBalancer.Ingress, func(in corev1.LoadBalancerIngress) bool {
		addr, ok := netaddr.Parse(in.IP)
		return svc.Spec.Type != corev1.ServiceTypeLoadBalancer || ok && slices.Contains(held, addr)
	})
	for _, c := range []string{v1alpha1.ServiceAllocated, v1alpha1.ServiceAnnounced, v1alpha1.ServiceHealthy} {
		meta.RemoveStatusCondition(&svc.Status.Conditions, c)
	}
	return client.IgnoreNotFound(r.patchStatus(ctx, svc, base))
}

// patchStatus writes the status if it differs from base, unless base is out of date: a
// leader that does not know that it was replaced must not undo the new one's work.
func (r *ServiceReconciler) patchStatus(ctx context.Context, svc, base *corev1.Service) error {
	if equality.Semantic.DeepEqual(svc.Status, base.Status) {
		return nil
	}
	patch := client.StrategicMergeFrom(base, client.MergeFromWithOptimisticLock{})
	err := r.Client.Status().Patch(ctx, svc, patch)
	if err != nil && !apierrors.IsConflict(err) {
		return fmt.Errorf("patch status of Service: %w", err)
	}
	return err
}

func joinAddrs(addrs []netip.Addr) string {
	words := make([]string, 0, len(addrs))
	for _, a := range addrs {
		words = append(words, a.String())
	}
	return strings.Join(words, ", ")
}
