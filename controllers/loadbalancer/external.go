// SPDX-License-Identifier: Apache-2.0

package loadbalancer

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-lb/causeway/api/v1alpha1"
	"github.com/causeway-lb/causeway/internal/alloc"
	"github.com/causeway-lb/causeway/internal/netaddr"
	"github.com/causeway-lb/causeway/internal/provisioner"
	"github.com/causeway-lb/causeway/internal/provisioner/haproxy"
)

// ToBeDeletedTaint is set on a node by the cluster autoscaler before it removes the
// machine.
const ToBeDeletedTaint = "ToBeDeletedByClusterAutoscaler"

// slicesByService indexes cached EndpointSlices by their Service's name.
const slicesByService = "causeway.loadbalancer.service"

// externalProvisioners returns the provisioners that a file of external load balancers
// describes; none for an empty path.
func externalProvisioners(mgr ctrl.Manager, path string) ([]provisioner.Provisioner, error) {
	if path == "" {
		return nil, nil
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read external load balancers: %w", err)
	}
	configs, err := haproxy.Parse(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	var out []provisioner.Provisioner
	for _, config := range configs {
		config.Holders = func(ctx context.Context) ([]haproxy.Holder, error) {
			return holdersOf(ctx, mgr.GetClient(), config.Class)
		}
		p, err := haproxy.New(config)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		out = append(out, p)
	}
	return out, nil
}

// holdersOf lists the Services that a class serves, by their status.
func holdersOf(ctx context.Context, c client.Reader, class string) ([]haproxy.Holder, error) {
	list := &corev1.ServiceList{}
	if err := c.List(ctx, list); err != nil {
		return nil, err
	}
	var out []haproxy.Holder
	for i := range list.Items {
		svc := &list.Items[i]
		if svc.Annotations[v1alpha1.ProvisionerAnnotation] != class {
			continue
		}
		out = append(out, haproxy.Holder{Owner: alloc.OwnerOf(svc), Ports: portsOf(svc), Addresses: provisioner.IngressAddresses(svc)})
	}
	return out, nil
}

// CachedTraffic answers from the manager's cache.
type CachedTraffic struct {
	client.Reader
	// IgnoreExcludeLabel is Options'.
	IgnoreExcludeLabel bool
}

// Nodes implements TrafficReader. A node that is not ready stays (KEP-3458): the load
// balancer's own health checks know better.
func (c CachedTraffic) Nodes(ctx context.Context, svc *corev1.Service) ([]provisioner.Node, error) {
	nodes := &corev1.NodeList{}
	if err := c.List(ctx, nodes); err != nil {
		return nil, fmt.Errorf("list Nodes: %w", err)
	}
	endpoints, err := c.endpoints(ctx, svc)
	if err != nil {
		return nil, err
	}
	// Those that are about to be removed are used if there are no others.
	var out, last []provisioner.Node
	for i := range nodes.Items {
		node := &nodes.Items[i]
		addrs := nodeAddresses(node)
		if len(addrs) == 0 || !c.IgnoreExcludeLabel && v1alpha1.ExcludedByLabel(node.Labels) {
			continue
		}
		n := provisioner.Node{Name: node.Name, Addresses: addrs, ReadyEndpoints: endpoints[node.Name]}
		if takesTraffic(node) {
			out = append(out, n)
		} else {
			last = append(last, n)
		}
	}
	if len(out) == 0 {
		return last, nil
	}
	return out, nil
}

// endpoints counts a Service's ready endpoints by node. A Pod in slices of both families
// counts once.
func (c CachedTraffic) endpoints(ctx context.Context, svc *corev1.Service) (map[string]int, error) {
	list := &discoveryv1.EndpointSliceList{}
	if err := c.List(ctx, list, client.InNamespace(svc.Namespace), client.MatchingFields{slicesByService: svc.Name}); err != nil {
		return nil, fmt.Errorf("list EndpointSlices: %w", err)
	}
	seen := map[string]map[string]bool{}
	for _, slice := range list.Items {
		for _, e := range slice.Endpoints {
			if e.NodeName == nil || len(e.Addresses) == 0 || e.Conditions.Ready != nil && !*e.Conditions.Ready {
				continue
			}
			id := e.Addresses[0]
			if e.TargetRef != nil {
				id = string(e.TargetRef.UID)
			}
			if seen[*e.NodeName] == nil {
				seen[*e.NodeName] = map[string]bool{}
			}
			seen[*e.NodeName][id] = true
		}
	}
	counts := make(map[string]int, len(seen))
	for node, ids := range seen {
		counts[node] = len(ids)
	}
	return counts, nil
}

// takesTraffic reports whether load balancers should send to a node: not while it is being
// deleted or about to be removed.
func takesTraffic(node *corev1.Node) bool {
	return node.DeletionTimestamp.IsZero() &&
		!slices.ContainsFunc(node.Spec.Taints, func(t corev1.Taint) bool { return t.Key == ToBeDeletedTaint })
}

// nodeAddresses returns a node's InternalIPs, the first of each family.
func nodeAddresses(node *corev1.Node) []netip.Addr {
	var out []netip.Addr
	for _, a := range node.Status.Addresses {
		addr, ok := netaddr.Parse(a.Address)
		if ok && a.Type == corev1.NodeInternalIP && !slices.ContainsFunc(out, func(o netip.Addr) bool { return o.BitLen() == addr.BitLen() }) {
			out = append(out, addr)
		}
	}
	return out
}

// IndexSlices adds the index slicesByService.
func IndexSlices(mgr ctrl.Manager) error {
	err := mgr.GetFieldIndexer().IndexField(context.Background(), &discoveryv1.EndpointSlice{}, slicesByService, func(o client.Object) []string {
		return []string{o.GetLabels()[discoveryv1.LabelServiceName]}
	})
	if err != nil {
		return fmt.Errorf("index EndpointSlices: %w", err)
	}
	return nil
}
