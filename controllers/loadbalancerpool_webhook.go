// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"github.com/causeway-lb/causeway/api/v1alpha1"
	"github.com/causeway-lb/causeway/internal/alloc"
	"github.com/causeway-lb/causeway/internal/provisioner/pool"
)

// LoadBalancerPoolValidator refuses pools that cannot be read or that overlap,
// and edits that take away addresses in use unless the pool is to drain. What
// only the CRD's rules need is checked there, too, so that a message comes even
// without the webhook.
type LoadBalancerPoolValidator struct {
	// Reader is a cache of pools and address records.
	Reader client.Reader
}

// +kubebuilder:webhook:path=/validate-causeway-dev-v1alpha1-loadbalancerpool,mutating=false,failurePolicy=fail,sideEffects=None,groups=causeway.dev,resources=loadbalancerpools,verbs=create;update;delete,versions=v1alpha1,name=loadbalancerpool.causeway.dev,admissionReviewVersions=v1,timeoutSeconds=5

// SetupWithManager adds the webhook to a manager's server.
func (v *LoadBalancerPoolValidator) SetupWithManager(mgr ctrl.Manager) error {
	if err := ctrl.NewWebhookManagedBy(mgr, &v1alpha1.LoadBalancerPool{}).WithValidator(v).Complete(); err != nil {
		return fmt.Errorf("set up webhook for LoadBalancerPools: %w", err)
	}
	return nil
}

// ValidateCreate implements admission.Validator.
func (v *LoadBalancerPoolValidator) ValidateCreate(ctx context.Context, obj *v1alpha1.LoadBalancerPool) (admission.Warnings, error) {
	_, err := v.check(ctx, obj)
	return nil, err
}

// ValidateUpdate implements admission.Validator. An object that is being
// deleted is let through: only its finalizers change. So are addresses that were
// outside the pool before: this edit does not take them away.
func (v *LoadBalancerPoolValidator) ValidateUpdate(ctx context.Context, before, now *v1alpha1.LoadBalancerPool) (admission.Warnings, error) {
	if !now.DeletionTimestamp.IsZero() || slices.Equal(before.Spec.Addresses, now.Spec.Addresses) && before.Generation == now.Generation {
		return nil, nil
	}
	p, err := v.check(ctx, now)
	if err != nil {
		return nil, err
	}
	had, unreadable := pool.FromPool(before)
	users, err := v.losers(ctx, now.Name, func(r pool.Record) bool {
		return !p.Contains(r.Address) && (unreadable != nil || had.Contains(r.Address))
	})
	if err != nil || len(users) == 0 {
		return nil, err
	}
	if now.Spec.RemovalPolicy == v1alpha1.RemovalDrain {
		return admission.Warnings{fmt.Sprintf("%s stay assigned until their Services let go of them", listSome(users))}, nil
	}
	return nil, fmt.Errorf("the edit would take away addresses that are in use: %s: keep them in spec.addresses, or set spec.removalPolicy: Drain to let the Services keep them until they are deleted", listSome(users))
}

// ValidateDelete implements admission.Validator.
func (v *LoadBalancerPoolValidator) ValidateDelete(ctx context.Context, obj *v1alpha1.LoadBalancerPool) (admission.Warnings, error) {
	users, err := v.losers(ctx, obj.Name, nil)
	if err != nil || len(users) == 0 {
		return nil, err
	}
	if obj.Spec.RemovalPolicy == v1alpha1.RemovalDrain {
		return admission.Warnings{fmt.Sprintf("the pool goes when the last of these is released: %s", listSome(users))}, nil
	}
	return nil, fmt.Errorf("addresses of the pool are in use: %s: delete the Services first, or set spec.removalPolicy: Drain to have the pool go with the last of them", listSome(users))
}

// losers are the users of the pool's addresses that gone says are taken away.
func (v *LoadBalancerPoolValidator) losers(ctx context.Context, name string, gone func(pool.Record) bool) ([]string, error) {
	list := &v1alpha1.LoadBalancerAddressList{}
	if err := v.Reader.List(ctx, list); err != nil {
		return nil, fmt.Errorf("list LoadBalancerAddresses: %w", err)
	}
	return usersOf(list, name, gone), nil
}

// check reads a pool and compares it with the others.
func (v *LoadBalancerPoolValidator) check(ctx context.Context, obj *v1alpha1.LoadBalancerPool) (pool.Pool, error) {
	p, err := pool.FromPool(obj)
	if err != nil {
		return p, errors.New(strings.ReplaceAll(err.Error(), "\n", "; "))
	}
	list := &v1alpha1.LoadBalancerPoolList{}
	if err := v.Reader.List(ctx, list); err != nil {
		return p, fmt.Errorf("list LoadBalancerPools: %w", err)
	}
	var others []alloc.Named[netip.Addr]
	for i := range list.Items {
		if other, err := pool.FromPool(&list.Items[i]); err == nil {
			others = append(others, alloc.Named[netip.Addr]{Name: other.Name, Spans: other.Ranges})
		}
	}
	addresses := alloc.Addresses()
	var clashes []string
	for _, c := range addresses.Clashes(alloc.Named[netip.Addr]{Name: p.Name, Spans: p.Ranges}, others) {
		clashes = append(clashes, addresses.ClashText(p.Name, c))
	}
	if len(clashes) > 0 {
		return p, fmt.Errorf("spec.addresses: %s: an address can be in one pool only", listSome(clashes))
	}
	return p, nil
}
