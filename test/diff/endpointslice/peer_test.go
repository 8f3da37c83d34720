// SPDX-License-Identifier: Apache-2.0

package endpointslice

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	clientset "k8s.io/client-go/kubernetes"
	discoveryclient "k8s.io/client-go/kubernetes/typed/discovery/v1"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/record"
	upstream "k8s.io/endpointslice"
	"k8s.io/endpointslice/topologycache"
	upstreamutil "k8s.io/endpointslice/util"
	"k8s.io/klog/v2"

	"github.com/causeway-lb/causeway/internal/endpointslice"
)

// store holds the slices that one of the two has written, and counts the writes.
type store struct {
	slices map[string]*discoveryv1.EndpointSlice
	writes int
	serial int
}

func newStore() *store { return &store{slices: map[string]*discoveryv1.EndpointSlice{}} }

func (s *store) list() []*discoveryv1.EndpointSlice {
	list := make([]*discoveryv1.EndpointSlice, 0, len(s.slices))
	for _, slice := range s.slices {
		list = append(list, slice)
	}
	return list
}

func (s *store) create(slice *discoveryv1.EndpointSlice) *discoveryv1.EndpointSlice {
	s.writes++
	s.serial++
	slice = slice.DeepCopy()
	if slice.Name == "" {
		slice.Name = slice.GenerateName + strconv.Itoa(s.serial)
	}
	slice.UID, slice.Generation = types.UID(fmt.Sprintf("slice-%d", s.serial)), 1
	slice.ResourceVersion = strconv.Itoa(s.serial)
	s.slices[slice.Name] = slice
	return slice
}

func (s *store) update(slice *discoveryv1.EndpointSlice) *discoveryv1.EndpointSlice {
	s.writes++
	s.serial++
	old := s.slices[slice.Name]
	slice = slice.DeepCopy()
	slice.UID, slice.Generation, slice.ResourceVersion = old.UID, old.Generation+1, strconv.Itoa(s.serial)
	s.slices[slice.Name] = slice
	return slice
}

func (s *store) delete(name string) {
	s.writes++
	delete(s.slices, name)
}

// ours is Causeway's side.
type ours struct{ *store }

func (o *ours) pass(t *testing.T, h *history, limit int) {
	t.Helper()
	nodes := map[string]endpointslice.Node{}
	list := make([]endpointslice.Node, 0, len(h.nodes))
	for name, node := range h.nodes {
		nodes[name] = endpointslice.NodeOf(node)
		list = append(list, nodes[name])
	}
	plan := endpointslice.Compute(endpointslice.Input{
		Service: h.service, Pods: h.pods, Slices: o.list(),
		Nodes: func(name string) (endpointslice.Node, bool) {
			node, ok := nodes[name]
			return node, ok
		},
		Shares: endpointslice.ZoneShares(list), MaxEndpoints: limit, TriggerTime: h.clock,
	})
	for _, slice := range plan.Create {
		if o.slices[slice.Name] != nil {
			t.Fatalf("create of slice %s, which exists", slice.Name)
		}
		o.create(slice)
	}
	for _, slice := range slices.Concat(plan.Update, plan.Shrink) {
		if o.slices[slice.Name] == nil {
			t.Fatalf("update of slice %s, which does not exist", slice.Name)
		}
		o.update(slice)
	}
	for _, slice := range plan.Delete {
		o.delete(slice.Name)
	}
}

// theirs is the library's side: its Reconciler on a client that writes to the
// store.
type theirs struct {
	*store
	reconciler *upstream.Reconciler
	topology   *topologycache.TopologyCache
	nodes      *nodeLister
}

const peerName = "peer"

func newTheirs(limit int) *theirs {
	p := &theirs{store: newStore(), topology: topologycache.NewTopologyCache(), nodes: &nodeLister{}}
	p.reconciler = upstream.NewReconciler(&client{store: p.store}, p.nodes, int32(limit),
		upstreamutil.NewEndpointSliceTracker(), p.topology, &record.FakeRecorder{}, peerName,
		upstream.WithPreferSameTrafficDistributionEnabled(true))
	return p
}

func (p *theirs) pass(h *history) {
	p.nodes.nodes = h.nodes
	list := make([]*corev1.Node, 0, len(h.nodes))
	for _, node := range h.nodes {
		list = append(list, node.DeepCopy()) // it adds up the CPUs in place
	}
	p.topology.SetNodes(klog.Logger{}, list)
	existing := p.list()
	for i := range existing {
		existing[i] = existing[i].DeepCopy() // it sorts the ports in place
	}
	// Its errors are Pods on unknown Nodes, which it leaves out, as we do.
	_ = p.reconciler.Reconcile(klog.Logger{}, h.service, h.pods, existing, h.clock)
}

// client is as much of a clientset as the Reconciler needs.
type client struct {
	clientset.Interface
	store *store
}

func (c *client) DiscoveryV1() discoveryclient.DiscoveryV1Interface { return discovery{c: c} }

type discovery struct {
	discoveryclient.DiscoveryV1Interface
	c *client
}

func (d discovery) EndpointSlices(string) discoveryclient.EndpointSliceInterface {
	return slicesClient{store: d.c.store}
}

type slicesClient struct {
	discoveryclient.EndpointSliceInterface
	store *store
}

func (c slicesClient) Create(_ context.Context, slice *discoveryv1.EndpointSlice, _ metav1.CreateOptions) (*discoveryv1.EndpointSlice, error) {
	return c.store.create(slice), nil
}

func (c slicesClient) Update(_ context.Context, slice *discoveryv1.EndpointSlice, _ metav1.UpdateOptions) (*discoveryv1.EndpointSlice, error) {
	return c.store.update(slice), nil
}

func (c slicesClient) Delete(_ context.Context, name string, _ metav1.DeleteOptions) error {
	c.store.delete(name)
	return nil
}

type nodeLister struct {
	corelisters.NodeLister
	nodes map[string]*corev1.Node
}

func (l *nodeLister) Get(name string) (*corev1.Node, error) {
	if node, ok := l.nodes[name]; ok {
		return node, nil
	}
	return nil, apierrors.NewNotFound(schema.GroupResource{Resource: "nodes"}, name)
}

func (l *nodeLister) List(labels.Selector) ([]*corev1.Node, error) { return nil, nil }
