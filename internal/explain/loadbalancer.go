// SPDX-License-Identifier: Apache-2.0

package explain

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/causeway-lb/causeway/api/v1alpha1"
	"github.com/causeway-lb/causeway/internal/netaddr"
)

// loadBalancer looks at the addresses that clients outside use.
func (e *explainer) loadBalancer() {
	allocated := e.condition(v1alpha1.ServiceAllocated)
	ingress := e.svc.Status.LoadBalancer.Ingress
	switch {
	case allocated == nil && e.svc.Spec.LoadBalancerClass != nil && e.class() != v1alpha1.LoadBalancerClass:
		level := Note
		if len(ingress) == 0 {
			level = e.late()
		}
		e.add(level, "Its load balancer class is %s, which Causeway is not configured to serve", e.class()).Do =
			"Look at the controller of that class, or leave spec.loadBalancerClass out (in a new Service: it cannot be changed)"
		return
	case allocated == nil:
		e.add(e.late(), "Causeway's controller has not dealt with it: it has no condition %s", v1alpha1.ServiceAllocated).Do =
			"See that the controller runs, and without --default-load-balancer=false if the Service has no loadBalancerClass"
		return
	case allocated.Status == metav1.ConditionFalse:
		finding := e.add(Wrong, "It was not given what it asks for (%s): %s", allocated.Reason, allocated.Message)
		if allocated.Reason == "PoolExhausted" || allocated.Reason == "NoPool" {
			finding.Do = "Look at the pools: kubectl get loadbalancerpools"
		}
	case allocated.Reason == "PartlyAllocated":
		e.add(Note, "It was given a part of what it asks for: %s", allocated.Message)
	}
	if healthy := e.condition(v1alpha1.ServiceHealthy); healthy != nil && healthy.Status != metav1.ConditionTrue {
		e.add(Wrong, "%s", healthy.Message)
	}
	for i := range ingress {
		e.ingress(&ingress[i])
	}
}

// ingress looks at one address: its ports, its record and who announces it.
func (e *explainer) ingress(in *corev1.LoadBalancerIngress) {
	for _, p := range in.Ports {
		if p.Error != nil {
			e.add(Wrong, "Port %d/%s is not served at %s: %s", p.Port, p.Protocol, in.IP, *p.Error)
		}
	}
	if e.class() != v1alpha1.LoadBalancerClass {
		e.add(Fine, "%s is served by %s", in.IP, e.class())
		return
	}
	if e.unread["LoadBalancerAddresses"] {
		if announced := e.condition(v1alpha1.ServiceAnnounced); announced != nil && announced.Status != metav1.ConditionTrue {
			e.add(Wrong, "%s", announced.Message)
		}
		return
	}
	i := slices.IndexFunc(e.Records, func(r v1alpha1.LoadBalancerAddress) bool {
		a, ok := netaddr.Parse(in.IP)
		return ok && r.Spec.Address == a.String()
	})
	if i < 0 {
		e.add(Wrong, "%s has no record (LoadBalancerAddress), so that nobody announces it", in.IP).Do = "The controller makes it: see that it runs"
		return
	}
	record := &e.Records[i]
	if c := v1alpha1.Contested(record.Status.Conditions); c != nil {
		e.add(Wrong, "Two hosts use %s: %s", in.IP, c.Message).Do = "Take the address off the other host, or take it out of pool " + record.Spec.Pool
	}
	if record.Status.Node != "" {
		e.announcer(record)
		return
	}
	announced := meta.FindStatusCondition(record.Status.Conditions, v1alpha1.AddressAnnounced)
	if announced == nil {
		e.add(e.late(), "No agent has said whether it announces %s", in.IP).Do = "See that the agents run on the nodes that pool " + record.Spec.Pool + " selects"
		return
	}
	// "Lead. node-1, node-2: reason; node-3: reason", as the agents write it.
	lead, nodes, listed := strings.Cut(announced.Message, ". ")
	if announced.Reason != "NoEligibleNode" || !listed {
		e.add(Wrong, "%s of pool %s is not announced: %s", in.IP, record.Spec.Pool, announced.Message)
		return
	}
	finding := e.add(Wrong, "%s of pool %s is announced by nobody: %s", in.IP, record.Spec.Pool, strings.ToLower(lead[:1])+lead[1:])
	finding.Details = strings.Split(nodes, "; ")
	finding.Do = "Put one of these reasons right; the address is announced within a second"
}

// announcer looks at the node that a record names. Where that one is dead and
// nobody took over, the others are dead, too, or do not reach the API server.
func (e *explainer) announcer(record *v1alpha1.LoadBalancerAddress) {
	status := &record.Status
	since := ""
	if status.Since != nil {
		since = " since " + ago(e.Now.Sub(status.Since.Time))
	}
	text := fmt.Sprintf("%s of pool %s is announced by %s on %s%s", record.Spec.Address, record.Spec.Pool, status.Node, status.Interface, since)
	i := slices.IndexFunc(e.Nodes, func(n corev1.Node) bool { return n.Name == status.Node })
	switch {
	case e.unread["Nodes"]:
		e.add(Fine, "%s", text)
	case i < 0:
		e.add(Wrong, "%s, a node that is gone", text).Do = "No agent has taken it over: see that the agents run and reach the API server"
	case !nodeReady(&e.Nodes[i]):
		e.add(Wrong, "%s, a node that is not ready", text).Do = "No agent has taken it over, or none can tell the API server: see that the other agents run"
	case !e.unread["agents"] && len(e.Agents) > 0 && !e.hasAgent(status.Node):
		e.add(Wrong, "%s, where no agent is ready", text).Do = "See why: kubectl -n " + e.System + " get pods -o wide"
	default:
		e.despite(text, record)
	}
}

// despite adds that an address is announced, and what speaks against the node
// that does, as the agents write it: "Lead: reasons, but no other node can do
// better. node-2: reason; node-3: reason".
func (e *explainer) despite(text string, record *v1alpha1.LoadBalancerAddress) {
	announced := meta.FindStatusCondition(record.Status.Conditions, v1alpha1.AddressAnnounced)
	if announced != nil && announced.Status == metav1.ConditionTrue {
		if _, despite, ok := strings.Cut(announced.Message, ": "); ok {
			lead, nodes, listed := strings.Cut(despite, ". ")
			finding := e.add(Note, "%s: %s", text, lead)
			if listed {
				finding.Details = strings.Split(nodes, "; ")
			}
			return
		}
	}
	e.add(Fine, "%s", text)
}

func nodeReady(n *corev1.Node) bool {
	return slices.ContainsFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool {
		return c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
	})
}
