// SPDX-License-Identifier: Apache-2.0

package loadbalancer

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"github.com/causeway-lb/causeway/api/v1alpha1"
	"github.com/causeway-lb/causeway/controllers/validate"
	"github.com/causeway-lb/causeway/internal/alloc"
	"github.com/causeway-lb/causeway/internal/provisioner/pool"
	"github.com/causeway-lb/causeway/internal/quote"
)

// +kubebuilder:webhook:path=/validate-causeway-dev-v1alpha1-loadbalancerpool,mutating=false,failurePolicy=fail,sideEffects=None,groups=causeway.dev,resources=loadbalancerpools,verbs=create;update;delete,versions=v1alpha1,name=loadbalancerpool.causeway.dev,admissionReviewVersions=v1,timeoutSeconds=5

// poolValidator denies pools that cannot be read or that overlap, and edits that remove
// addresses in use unless the pool is to drain.
type poolValidator struct {
	reader client.Reader // of pools and address records
}

func poolWebhook(reader client.Reader) validate.Webhook[*v1alpha1.LoadBalancerPool] {
	v := poolValidator{reader}
	return validate.Webhook[*v1alpha1.LoadBalancerPool]{Check: v.check, Remove: v.remove}
}

// check ignores addresses that were outside the pool before: this edit does not remove
// them.
func (v poolValidator) check(ctx context.Context, before, now *v1alpha1.LoadBalancerPool) (admission.Warnings, error) {
	if before != nil && slices.Equal(before.Spec.Addresses, now.Spec.Addresses) && before.Generation == now.Generation {
		return nil, nil
	}
	p, err := v.disjoint(ctx, now)
	if err != nil || before == nil {
		return nil, err
	}
	had, unreadable := pool.FromPool(before)
	users, err := v.affected(ctx, now.Name, func(r pool.Record) bool {
		return !p.Contains(r.Address) && (unreadable != nil || had.Contains(r.Address))
	})
	if err != nil || users == "" {
		return nil, err
	}
	if now.Spec.RemovalPolicy == v1alpha1.RemovalDrain {
		return admission.Warnings{fmt.Sprintf("%s stay assigned until their Services let go of them", users)}, nil
	}
	return nil, fmt.Errorf("the edit would take away addresses that are in use: %s: keep them in spec.addresses, or set spec.removalPolicy: Drain to let the Services keep them until they are deleted", users)
}

func (v poolValidator) remove(ctx context.Context, last *v1alpha1.LoadBalancerPool) (admission.Warnings, error) {
	users, err := v.affected(ctx, last.Name, nil)
	if err != nil || users == "" {
		return nil, err
	}
	if last.Spec.RemovalPolicy == v1alpha1.RemovalDrain {
		return admission.Warnings{fmt.Sprintf("the pool goes when the last of these is released: %s", users)}, nil
	}
	return nil, fmt.Errorf("addresses of the pool are in use: %s: delete the Services first, or set spec.removalPolicy: Drain to have the pool go with the last of them", users)
}

// affected lists the users of the pool's addresses that are removed.
func (v poolValidator) affected(ctx context.Context, name string, removed func(pool.Record) bool) (string, error) {
	list := &v1alpha1.LoadBalancerAddressList{}
	if err := v.reader.List(ctx, list); err != nil {
		return "", fmt.Errorf("list LoadBalancerAddresses: %w", err)
	}
	return quote.List(usersOf(list, name, removed)), nil
}

// disjoint reads a pool and compares it with the others.
func (v poolValidator) disjoint(ctx context.Context, obj *v1alpha1.LoadBalancerPool) (pool.Pool, error) {
	p, err := pool.FromPool(obj)
	if err != nil {
		return p, validate.OneLine(err)
	}
	list := &v1alpha1.LoadBalancerPoolList{}
	if err := v.reader.List(ctx, list); err != nil {
		return p, fmt.Errorf("list LoadBalancerPools: %w", err)
	}
	var others []alloc.Named[netip.Addr]
	for i := range list.Items {
		if other, err := pool.FromPool(&list.Items[i]); err == nil {
			others = append(others, alloc.Named[netip.Addr]{Name: other.Name, Spans: other.Ranges})
		}
	}
	return p, validate.Disjoint(alloc.Addresses(), "spec.addresses", "an address can be in one pool only", alloc.Named[netip.Addr]{Name: p.Name, Spans: p.Ranges}, others)
}
