// SPDX-License-Identifier: Apache-2.0

package endpoints

import (
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"github.com/causeway-lb/causeway/internal/endpointslice"
	"github.com/causeway-lb/causeway/internal/queue"
)

// The kinds of changes that concern a Service.
const (
	changeService queue.Kind = 1 << iota
	changePod
	changeNode
	changeSlice // one that we did not write just so
)

// serviceSource keeps an endpointslice.Index from the manager's informers. There is one
// of it however many controllers read from it.
//
//	informers: Service, Pod, Node, EndpointSlice
//	                |
//	              Index  ->  the Services concerned  ->  queues
//
// No controller's worker runs before the Index has seen everything that the
// informers listed at first: slices that look superfluous only because a Pod is
// not yet known would be deleted.
type serviceSource struct {
	index *endpointslice.Index
	queue *queue.Source
}

func newSource(from cache.Cache) *serviceSource {
	x := endpointslice.NewIndex()
	s := &serviceSource{index: x, queue: queue.NewSource(from)}
	s.queue.Watch(
		queue.On(&corev1.Node{}, changeNode,
			func(_, node *corev1.Node) []types.NamespacedName { return x.SetNode(endpointslice.NodeOf(node)) },
			func(node *corev1.Node) []types.NamespacedName { return x.DeleteNode(node.Name) }),
		queue.On(&corev1.Service{}, changeService,
			func(_, svc *corev1.Service) []types.NamespacedName { return x.SetService(svc) },
			func(svc *corev1.Service) []types.NamespacedName {
				return x.DeleteService(client.ObjectKeyFromObject(svc))
			}),
		queue.On(&corev1.Pod{}, changePod,
			func(_, pod *corev1.Pod) []types.NamespacedName { return x.SetPod(pod) },
			func(pod *corev1.Pod) []types.NamespacedName { return x.DeletePod(client.ObjectKeyFromObject(pod)) }),
		queue.On(&discoveryv1.EndpointSlice{}, changeSlice,
			func(before, now *discoveryv1.EndpointSlice) (moved []types.NamespacedName) {
				if before != nil && before.Labels[discoveryv1.LabelServiceName] != now.Labels[discoveryv1.LabelServiceName] {
					moved = x.DeleteSlice(before)
				}
				return append(moved, x.SetSlice(now)...)
			}, x.DeleteSlice),
	)
	return s
}

// on returns a controller's source of the Services that changes of these kinds
// concern.
func (s *serviceSource) on(kinds queue.Kind) source.SyncingSource {
	return s.queue.For(kinds, s.index.Names)
}
