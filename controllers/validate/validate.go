// SPDX-License-Identifier: Apache-2.0

// Package validate is what the validating webhooks of all pools share: which
// requests are looked at, and that a value lies in one pool only. What else is
// wrong with a pool its own package knows. It may import internal/alloc.
package validate

import (
	"context"
	"errors"
	"fmt"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"github.com/causeway-lb/causeway/internal/alloc"
	"github.com/causeway-lb/causeway/internal/quote"
)

// Webhook is an admission.Validator of one kind of object.
type Webhook[T client.Object] struct {
	// Check looks at an object that is new or has changed; before is the zero
	// value of a new one. An object that is being deleted is let through: only
	// its finalizers change.
	Check func(ctx context.Context, before, now T) (admission.Warnings, error)
	// Remove looks at an object that is to be deleted; nil if the webhook is not
	// called for that.
	Remove func(ctx context.Context, last T) (admission.Warnings, error)
}

// Setup adds the webhook for objects of the type of example to a manager's server.
func (w Webhook[T]) Setup(mgr ctrl.Manager, example T) error {
	if err := ctrl.NewWebhookManagedBy(mgr, example).WithValidator(w).Complete(); err != nil {
		return fmt.Errorf("set up webhook for %T: %w", example, err)
	}
	return nil
}

// ValidateCreate implements admission.Validator.
func (w Webhook[T]) ValidateCreate(ctx context.Context, obj T) (admission.Warnings, error) {
	var none T
	return w.Check(ctx, none, obj)
}

// ValidateUpdate implements admission.Validator.
func (w Webhook[T]) ValidateUpdate(ctx context.Context, before, now T) (admission.Warnings, error) {
	if now.GetDeletionTimestamp() != nil {
		return nil, nil
	}
	return w.Check(ctx, before, now)
}

// ValidateDelete implements admission.Validator.
func (w Webhook[T]) ValidateDelete(ctx context.Context, obj T) (admission.Warnings, error) {
	if w.Remove == nil {
		return nil, nil
	}
	return w.Remove(ctx, obj)
}

// Disjoint returns an error that names each overlap of a pool's field with
// itself and with other pools: which range, which pool.
func Disjoint[V comparable](kind alloc.Kind[V], field, advice string, mine alloc.Named[V], others []alloc.Named[V]) error {
	if found := kind.Overlaps(mine, others); len(found) > 0 {
		return fmt.Errorf("%s: %s: %s", field, quote.List(found), advice)
	}
	return nil
}

// Selectors returns an error for label selectors that cannot be read, which the
// CRD does not check.
func Selectors(namespace, service *metav1.LabelSelector) error {
	var errs []error
	for field, s := range map[string]*metav1.LabelSelector{"spec.namespaceSelector": namespace, "spec.serviceSelector": service} {
		if _, err := metav1.LabelSelectorAsSelector(s); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", field, err))
		}
	}
	return errors.Join(errs...)
}

// OneLine returns an error with joined errors on one line; nil for nil.
func OneLine(err error) error {
	if err == nil {
		return nil
	}
	return errors.New(Text(err))
}

// Text returns the text of joined errors on one line.
func Text(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }
