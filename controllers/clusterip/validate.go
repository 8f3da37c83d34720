// SPDX-License-Identifier: Apache-2.0

package clusterip

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"github.com/causeway-lb/causeway/api/v1alpha1"
	"github.com/causeway-lb/causeway/controllers/validate"
	"github.com/causeway-lb/causeway/internal/alloc"
)

// +kubebuilder:webhook:path=/validate-causeway-dev-v1alpha1-clusterippool,mutating=false,failurePolicy=fail,sideEffects=None,groups=causeway.dev,resources=clusterippools,verbs=create;update,versions=v1alpha1,name=clusterippool.causeway.dev,admissionReviewVersions=v1,timeoutSeconds=5
// +kubebuilder:webhook:path=/validate-causeway-dev-v1alpha1-nodeportpool,mutating=false,failurePolicy=fail,sideEffects=None,groups=causeway.dev,resources=nodeportpools,verbs=create;update,versions=v1alpha1,name=nodeportpool.causeway.dev,admissionReviewVersions=v1,timeoutSeconds=5

const oneMeaning = "a value can be in one pool only, so change one of the ranges"

// clusterIPPools denies pools whose ranges cannot be read or overlap. Two pools
// that are created in the same moment can slip through: the condition Disjoint
// then tells. reader lists pools.
func clusterIPPools(reader client.Reader) validate.Webhook[*v1alpha1.ClusterIPPool] {
	named := func(pool *v1alpha1.ClusterIPPool) (alloc.Named[netip.Addr], error) {
		out := alloc.Named[netip.Addr]{Name: pool.Name}
		ranges, err := alloc.ParseRanges("spec.ranges", pool.Spec.Ranges)
		for _, r := range ranges {
			out.Spans = append(out.Spans, r.Span)
		}
		return out, err
	}
	return validate.Webhook[*v1alpha1.ClusterIPPool]{Check: func(ctx context.Context, _, pool *v1alpha1.ClusterIPPool) (admission.Warnings, error) {
		mine, err := named(pool)
		if err := errors.Join(err, validate.Selectors(pool.Spec.NamespaceSelector, pool.Spec.ServiceSelector)); err != nil {
			return nil, validate.OneLine(err)
		}
		var list v1alpha1.ClusterIPPoolList
		if err := reader.List(ctx, &list); err != nil {
			return nil, fmt.Errorf("list ClusterIPPools: %w", err)
		}
		var others []alloc.Named[netip.Addr]
		for i := range list.Items {
			other, _ := named(&list.Items[i]) // what can be read
			others = append(others, other)
		}
		return nil, validate.Disjoint(alloc.Addresses(), "spec.ranges", oneMeaning, mine, others)
	}}
}

// nodePortPools is clusterIPPools for NodePortPools.
func nodePortPools(reader client.Reader) validate.Webhook[*v1alpha1.NodePortPool] {
	return validate.Webhook[*v1alpha1.NodePortPool]{Check: func(ctx context.Context, _, pool *v1alpha1.NodePortPool) (admission.Warnings, error) {
		mine, err := alloc.ParsePortRanges("spec.ranges", pool.Spec.Ranges)
		_, reserved := alloc.ParsePortRanges("spec.reservedPorts", pool.Spec.ReservedPorts)
		if err := errors.Join(err, reserved, validate.Selectors(pool.Spec.NamespaceSelector, pool.Spec.ServiceSelector)); err != nil {
			return nil, validate.OneLine(err)
		}
		var list v1alpha1.NodePortPoolList
		if err := reader.List(ctx, &list); err != nil {
			return nil, fmt.Errorf("list NodePortPools: %w", err)
		}
		var others []alloc.Named[uint16]
		for _, other := range list.Items {
			spans, _ := alloc.ParsePortRanges("", other.Spec.Ranges) // what can be read
			others = append(others, alloc.Named[uint16]{Name: other.Name, Spans: spans})
		}
		return nil, validate.Disjoint(alloc.Ports(), "spec.ranges", oneMeaning, alloc.Named[uint16]{Name: pool.Name, Spans: mine}, others)
	}}
}
