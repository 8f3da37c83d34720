// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"github.com/causeway-lb/causeway/api/v1alpha1"
	"github.com/causeway-lb/causeway/internal/alloc"
)

// +kubebuilder:webhook:path=/validate-causeway-dev-v1alpha1-clusterippool,mutating=false,failurePolicy=fail,sideEffects=None,groups=causeway.dev,resources=clusterippools,verbs=create;update,versions=v1alpha1,name=clusterippool.causeway.dev,admissionReviewVersions=v1,timeoutSeconds=5
// +kubebuilder:webhook:path=/validate-causeway-dev-v1alpha1-nodeportpool,mutating=false,failurePolicy=fail,sideEffects=None,groups=causeway.dev,resources=nodeportpools,verbs=create;update,versions=v1alpha1,name=nodeportpool.causeway.dev,admissionReviewVersions=v1,timeoutSeconds=5

// ClusterIPPoolValidator refuses pools whose ranges cannot be read or overlap.
// Two pools that are created in the same moment can slip through: the condition
// Overlapping then tells.
type ClusterIPPoolValidator struct {
	// Reader lists pools.
	Reader client.Reader
}

// SetupWithManager adds the webhook to a manager's server.
func (v *ClusterIPPoolValidator) SetupWithManager(mgr ctrl.Manager) error {
	return ctrl.NewWebhookManagedBy(mgr, &v1alpha1.ClusterIPPool{}).WithValidator(v).Complete()
}

// ValidateCreate implements admission.Validator.
func (v *ClusterIPPoolValidator) ValidateCreate(ctx context.Context, pool *v1alpha1.ClusterIPPool) (admission.Warnings, error) {
	return nil, v.check(ctx, pool)
}

// ValidateUpdate implements admission.Validator. An object that is being
// deleted is let through.
func (v *ClusterIPPoolValidator) ValidateUpdate(ctx context.Context, _, pool *v1alpha1.ClusterIPPool) (admission.Warnings, error) {
	if !pool.DeletionTimestamp.IsZero() {
		return nil, nil
	}
	return nil, v.check(ctx, pool)
}

// ValidateDelete implements admission.Validator. It is not called.
func (v *ClusterIPPoolValidator) ValidateDelete(context.Context, *v1alpha1.ClusterIPPool) (admission.Warnings, error) {
	return nil, nil
}

func (v *ClusterIPPoolValidator) check(ctx context.Context, pool *v1alpha1.ClusterIPPool) error {
	ranges, err := alloc.ParseRanges("spec.ranges", pool.Spec.Ranges)
	if err := errors.Join(err, checkSelectors(pool.Spec.NamespaceSelector, pool.Spec.ServiceSelector)); err != nil {
		return oneLine(err)
	}
	var list v1alpha1.ClusterIPPoolList
	if err := v.Reader.List(ctx, &list); err != nil {
		return fmt.Errorf("list ClusterIPPools: %w", err)
	}
	named := func(name string, ranges []alloc.Range) alloc.Named[netip.Addr] {
		return alloc.Named[netip.Addr]{Name: name, Spans: append(alloc.SpansOf(ranges, corev1.IPv4Protocol), alloc.SpansOf(ranges, corev1.IPv6Protocol)...)}
	}
	var others []alloc.Named[netip.Addr]
	for _, other := range list.Items {
		ranges, _ := alloc.ParseRanges("", other.Spec.Ranges) // what can be read
		others = append(others, named(other.Name, ranges))
	}
	return refuseClashes(alloc.Addresses(), named(pool.Name, ranges), others)
}

// NodePortPoolValidator is ClusterIPPoolValidator for NodePortPools.
type NodePortPoolValidator struct {
	// Reader lists pools.
	Reader client.Reader
}

// SetupWithManager adds the webhook to a manager's server.
func (v *NodePortPoolValidator) SetupWithManager(mgr ctrl.Manager) error {
	return ctrl.NewWebhookManagedBy(mgr, &v1alpha1.NodePortPool{}).WithValidator(v).Complete()
}

// ValidateCreate implements admission.Validator.
func (v *NodePortPoolValidator) ValidateCreate(ctx context.Context, pool *v1alpha1.NodePortPool) (admission.Warnings, error) {
	return nil, v.check(ctx, pool)
}

// ValidateUpdate implements admission.Validator. An object that is being
// deleted is let through.
func (v *NodePortPoolValidator) ValidateUpdate(ctx context.Context, _, pool *v1alpha1.NodePortPool) (admission.Warnings, error) {
	if !pool.DeletionTimestamp.IsZero() {
		return nil, nil
	}
	return nil, v.check(ctx, pool)
}

// ValidateDelete implements admission.Validator. It is not called.
func (v *NodePortPoolValidator) ValidateDelete(context.Context, *v1alpha1.NodePortPool) (admission.Warnings, error) {
	return nil, nil
}

func (v *NodePortPoolValidator) check(ctx context.Context, pool *v1alpha1.NodePortPool) error {
	ranges, err := alloc.ParsePortRanges("spec.ranges", pool.Spec.Ranges)
	_, reserved := alloc.ParsePortRanges("spec.reservedPorts", pool.Spec.ReservedPorts)
	if err := errors.Join(err, reserved, checkSelectors(pool.Spec.NamespaceSelector, pool.Spec.ServiceSelector)); err != nil {
		return oneLine(err)
	}
	var list v1alpha1.NodePortPoolList
	if err := v.Reader.List(ctx, &list); err != nil {
		return fmt.Errorf("list NodePortPools: %w", err)
	}
	var others []alloc.Named[uint16]
	for _, other := range list.Items {
		spans, _ := alloc.ParsePortRanges("", other.Spec.Ranges) // what can be read
		others = append(others, alloc.Named[uint16]{Name: other.Name, Spans: spans})
	}
	return refuseClashes(alloc.Ports(), alloc.Named[uint16]{Name: pool.Name, Spans: ranges}, others)
}

// refuseClashes makes one error of all overlaps: which range, which pool.
func refuseClashes[V comparable](kind alloc.Kind[V], mine alloc.Named[V], others []alloc.Named[V]) error {
	var found []string
	for _, c := range kind.Clashes(mine, others) {
		found = append(found, kind.ClashText(mine.Name, c))
	}
	if len(found) == 0 {
		return nil
	}
	return fmt.Errorf("spec.ranges: %s: a value can be in one pool only, so change one of the ranges", listSome(found))
}

// checkSelectors reads label selectors, which the CRD does not check.
func checkSelectors(namespace, service *metav1.LabelSelector) error {
	var errs []error
	for field, s := range map[string]*metav1.LabelSelector{"spec.namespaceSelector": namespace, "spec.serviceSelector": service} {
		if _, err := metav1.LabelSelectorAsSelector(s); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", field, err))
		}
	}
	return errors.Join(errs...)
}

func oneLine(err error) error {
	if err == nil {
		return nil
	}
	return errors.New(strings.ReplaceAll(err.Error(), "\n", "; "))
}
