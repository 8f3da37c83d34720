// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"context"
	"fmt"
	"time"

	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/webhook"

	"github.com/causeway-lb/causeway/api/v1alpha1"
	"github.com/causeway-lb/causeway/internal/alloc"
	"github.com/causeway-lb/causeway/internal/alloc/book"
	"github.com/causeway-lb/causeway/internal/provisioner"
)

func init() {
	setups = append(setups, setup{
		name: "allocation",
		when: func(f Features) bool { return f.Allocation },
		add:  setupAllocation,
	})
}

// AllocationOptions are the operator's choices about ClusterIPs and NodePorts.
type AllocationOptions struct {
	// NodePortRange is the API server's --service-node-port-range, which the API
	// does not tell. Empty means 30000-32767.
	NodePortRange string
	// Hold is how long a grant is kept for a Service that does not appear. Zero
	// means book.DefaultHold; less is for tests.
	Hold time.Duration
	// Peers says how the replicas reach each other.
	Peers Peers
}

// setupAllocation adds the book, the term, the webhooks and the reconcilers of
// ClusterIPs and NodePorts.
func setupAllocation(mgr ctrl.Manager, opts Options) error {
	config := book.Config{Hold: opts.Allocation.Hold, AddressAnnotations: provisioner.AddressAnnotations(opts.MetalLBAnnotations)}
	if text := opts.Allocation.NodePortRange; text != "" {
		ports, err := alloc.ParsePortRange(text)
		if err != nil {
			return fmt.Errorf("read range of NodePorts: %w", err)
		}
		config.NodePorts = ports
	}
	b := newServiceBook(mgr.GetCache(), config)
	t := newTerm(mgr.GetConfig(), opts.SystemNamespace, opts.Allocation.Peers.Address, b.synced)
	audit := newPortAudit(mgr.GetClient(), b, t, opts.SystemNamespace)
	b.unproven = func() { audit.next(auditNow) }
	t.prepare = audit.begin
	keeper := &holdKeeper{client: mgr.GetClient(), book: b, term: t}
	for _, runnable := range []manager.Runnable{b, t, audit, keeper} {
		if err := mgr.Add(runnable); err != nil {
			return err
		}
	}
	// Until then nobody is to be sent here who could be served elsewhere.
	if err := mgr.AddReadyzCheck("allocation", b.ready); err != nil {
		return err
	}
	allocator := &ServiceAllocator{
		Client: mgr.GetClient(), Live: mgr.GetAPIReader(),
		exempt: client.ObjectKey{Namespace: opts.SystemNamespace, Name: auditName},
		book:   b, term: t, peer: newPeer(opts.Allocation.Peers, opts.SystemNamespace, mgr.GetAPIReader()),
	}
	mgr.GetWebhookServer().Register(serviceWebhookPath, &webhook.Admission{Handler: allocator, WithContextFunc: markForwarded})
	return setupAllocationControllers(mgr, allocator)
}

// setupAllocationControllers adds what only the leader runs, and the pools'
// webhooks.
func setupAllocationControllers(mgr ctrl.Manager, allocator *ServiceAllocator) error {
	b, found := allocator.book, newProblems()
	addressPulse, portPulse := newPulse(listClusterIPPools(mgr.GetClient())), newPulse(listNodePortPools(mgr.GetClient()))
	found.changed = func() { addressPulse.touch(); portPulse.touch() }
	b.changed = found.changed
	pools := newPulse(func(context.Context) []client.Object { return []client.Object{&v1alpha1.ClusterIPPool{}} })
	b.pools = pools.touch
	for _, part := range []interface{ SetupWithManager(ctrl.Manager) error }{
		&ServiceAddressReconciler{
			Client: mgr.GetClient(), Recorder: mgr.GetEventRecorder("causeway-controller"), allocator: allocator, problems: found, pools: pools,
		},
		&ClusterIPPoolReconciler{Client: mgr.GetClient(), book: b, problems: found, pulse: addressPulse},
		&NodePortPoolReconciler{Client: mgr.GetClient(), book: b, problems: found, pulse: portPulse},
		&ClusterIPPoolValidator{Reader: mgr.GetClient()},
		&NodePortPoolValidator{Reader: mgr.GetClient()},
	} {
		if err := part.SetupWithManager(mgr); err != nil {
			return fmt.Errorf("%T: %w", part, err)
		}
	}
	return nil
}
