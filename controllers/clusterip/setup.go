// SPDX-License-Identifier: Apache-2.0

package clusterip

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/webhook"

	"github.com/causeway-lb/causeway/api/v1alpha1"
	"github.com/causeway-lb/causeway/internal/alloc"
	"github.com/causeway-lb/causeway/internal/alloc/services"
	"github.com/causeway-lb/causeway/internal/allocator"
	"github.com/causeway-lb/causeway/internal/provisioner"
	"github.com/causeway-lb/causeway/internal/queue"
)

// statusDelay is how long changes of the allocations are gathered before the pools' status
// is computed, so that a thousand Services cost a few writes.
const statusDelay = 500 * time.Millisecond

// Options are the operator's choices about ClusterIPs and NodePorts.
type Options struct {
	// SystemNamespace is where Causeway runs.
	SystemNamespace string
	// NodePortRange is the API server's --service-node-port-range, which the API does
	// not show. Empty means 30000-32767.
	NodePortRange string
	// PendingFor is how long a grant is kept for a Service that does not appear. Zero
	// means services.DefaultPendingFor; less is for tests.
	PendingFor time.Duration
	// Peers is how the replicas reach each other.
	Peers allocator.Peers
	// MetalLBAnnotations honours MetalLB's annotations on Services, too.
	MetalLBAnnotations bool
}

// SetupWithManager adds the allocator, the webhooks and the reconcilers of
// ClusterIPs and NodePorts to a manager.
func SetupWithManager(mgr ctrl.Manager, opts Options) error {
	if err := queue.RegisterMetrics(poolValues, serviceProblems); err != nil {
		return err
	}
	config := services.Config{PendingFor: opts.PendingFor, AddressAnnotations: provisioner.AddressAnnotations(opts.MetalLBAnnotations)}
	if opts.NodePortRange != "" {
		var err error
		if config.NodePorts, err = alloc.ParsePortRange(opts.NodePortRange); err != nil {
			return fmt.Errorf("read range of NodePorts: %w", err)
		}
	}
	every := func(list func() client.ObjectList) *queue.Debouncer {
		return queue.NewDebouncer(statusDelay, func(ctx context.Context) []reconcile.Request { return queue.List(ctx, mgr.GetClient(), list()) })
	}
	addressPools := every(func() client.ObjectList { return &v1alpha1.ClusterIPPoolList{} })
	portPools := every(func() client.ObjectList { return &v1alpha1.NodePortPoolList{} })
	changedServices := every(func() client.ObjectList { return &corev1.ServiceList{} })
	changed := func() { addressPools.Enqueue(); portPools.Enqueue() }
	a, err := allocator.New(mgr, allocator.Config{
		Namespace: opts.SystemNamespace, Peers: opts.Peers, Services: config,
		Changed: func(c allocator.Change) {
			changed()
			changedServices.EnqueueKeys(c.Sharing...)
			if c.Pools {
				changedServices.Enqueue()
			}
		},
	})
	if err != nil {
		return err
	}
	mgr.GetWebhookServer().Register(allocator.WebhookPath, &webhook.Admission{Handler: &Webhook{Allocator: a}, WithContextFunc: markForwarded})
	found := &problems{changed: changed, all: map[types.NamespacedName][]services.Problem{}}
	r := &ServiceReconciler{Client: mgr.GetClient(), Recorder: mgr.GetEventRecorder("causeway-controller"), Allocator: a, problems: found}
	return errors.Join(r.setup(mgr, changedServices),
		(&ClusterIPPoolReconciler{mgr.GetClient(), a.State, found}).setup(mgr, addressPools),
		(&NodePortPoolReconciler{mgr.GetClient(), a.State, found}).setup(mgr, portPools),
		clusterIPPools(mgr.GetClient()).Setup(mgr, &v1alpha1.ClusterIPPool{}),
		nodePortPools(mgr.GetClient()).Setup(mgr, &v1alpha1.NodePortPool{}))
}
