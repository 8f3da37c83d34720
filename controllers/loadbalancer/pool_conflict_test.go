// SPDX-License-Identifier: Apache-2.0

package loadbalancer

import (
	"context"
	"errors"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-lb/causeway/api/v1alpha1"
	"github.com/causeway-lb/causeway/internal/provisioner/pool"
)

// behindCache reads one pool in a version that is no longer the latest.
type behindCache struct {
	client.Client // nil: what is not below is not used
	pool          *v1alpha1.LoadBalancerPool
}

func (c behindCache) Get(_ context.Context, _ client.ObjectKey, into client.Object, _ ...client.GetOption) error {
	c.pool.DeepCopyInto(into.(*v1alpha1.LoadBalancerPool))
	return nil
}

func (c behindCache) conflict() error {
	return apierrors.NewConflict(schema.GroupResource{Resource: "loadbalancerpools"}, c.pool.Name, errors.New("changed"))
}

func (c behindCache) Patch(context.Context, client.Object, client.Patch, ...client.PatchOption) error {
	return c.conflict()
}

func (c behindCache) Status() client.SubResourceWriter { return behindStatus{cache: c} }

type behindStatus struct {
	client.SubResourceWriter
	cache behindCache
}

func (s behindStatus) Patch(context.Context, client.Object, client.Patch, ...client.SubResourcePatchOption) error {
	return s.cache.conflict()
}

// A status that could not be written because the cache lags behind our own last
// write brings no event of its own: the pool has to be looked at again.
func TestPoolReconcilerRetriesAfterConflict(t *testing.T) {
	for name, finalizers := range map[string][]string{"finalizer": nil, "status": {v1alpha1.LoadBalancerPoolFinalizer}} {
		p := &v1alpha1.LoadBalancerPool{ObjectMeta: metav1.ObjectMeta{Name: "a", Finalizers: finalizers},
			Spec: v1alpha1.LoadBalancerPoolSpec{Addresses: []v1alpha1.AddressRange{"192.0.2.0/24"}}}
		r := &PoolReconciler{Client: behindCache{pool: p}, Index: pool.NewIndex(), Recorder: events.NewFakeRecorder(10)}
		result, err := r.Reconcile(t.Context(), ctrl.Request{NamespacedName: types.NamespacedName{Name: "a"}})
		if err != nil || result.RequeueAfter == 0 {
			t.Errorf("%s: comes again after %v, error %v", name, result.RequeueAfter, err)
		}
	}
}
