// SPDX-License-Identifier: Apache-2.0

package explain

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/causeway-lb/causeway/api/v1alpha1"
	"github.com/causeway-lb/causeway/internal/netaddr"
	"github.com/causeway-lb/causeway/internal/provisioner"
)

// soon is how long controllers and agents may take before it counts as wrong.
const soon = 10 * time.Second

// Explain looks at everything that has to be right for the Service to work.
func Explain(f *Facts) Report {
	e := explainer{Facts: f, svc: f.Service}
	e.Title = fmt.Sprintf("Service %s/%s: %s", e.svc.Namespace, e.svc.Name, e.svc.Spec.Type)
	if ports := e.portsText(); ports != "" {
		e.Title += ", " + ports
	}
	e.deletion()
	e.annotations()
	if e.svc.Spec.Type == corev1.ServiceTypeExternalName {
		e.add(Note, "It is a DNS alias of %s: nothing is forwarded, and Causeway has no part in it", e.svc.Spec.ExternalName)
	} else {
		e.addresses()
		e.endpoints()
		if e.svc.Spec.Type == corev1.ServiceTypeLoadBalancer {
			e.loadBalancer()
		}
		e.processes()
	}
	for _, what := range f.Unread {
		e.add(Note, "Not looked at: %s", what)
	}
	for _, event := range f.Events[:min(len(f.Events), maxEvents)] {
		times := ""
		if n := max(event.Count, seriesCount(&event)); n > 1 {
			times = fmt.Sprintf(" (%d times)", n)
		}
		e.Lately = append(e.Lately, fmt.Sprintf("%-4s %-7s %s: %s%s", ago(f.Now.Sub(last(&event))), event.Type, event.Reason, event.Message, times))
	}
	return e.Report
}

func seriesCount(e *corev1.Event) int32 {
	if e.Series == nil {
		return 0
	}
	return e.Series.Count
}

// explainer gathers findings.
type explainer struct {
	Report
	*Facts
	svc *corev1.Service
}

func (e *explainer) condition(conditionType string) *metav1.Condition {
	return meta.FindStatusCondition(e.svc.Status.Conditions, conditionType)
}

// young tells whether the Service is so new that controllers may not have got to
// it yet.
func (e *explainer) young() bool { return e.Now.Sub(e.svc.CreationTimestamp.Time) < soon }

// late is the level of something that controllers have not done.
func (e *explainer) late() Level {
	if e.young() {
		return Note
	}
	return Wrong
}

func (e *explainer) portsText() string {
	var out []string
	for _, p := range e.svc.Spec.Ports {
		text := fmt.Sprintf("%d/%s", p.Port, p.Protocol)
		if p.NodePort != 0 {
			text += fmt.Sprintf(" (NodePort %d)", p.NodePort)
		}
		out = append(out, text)
	}
	return strings.Join(out, ", ")
}

func (e *explainer) deletion() {
	if e.svc.DeletionTimestamp.IsZero() {
		return
	}
	since := e.Now.Sub(e.svc.DeletionTimestamp.Time)
	level := Note
	if since > soon {
		level = Wrong
	}
	finding := e.add(level, "It was deleted %s ago and waits for its finalizers: %s", ago(since), strings.Join(e.svc.Finalizers, ", "))
	if slices.Contains(e.svc.Finalizers, v1alpha1.LoadBalancerFinalizer) {
		finding.Do = "The controller of its load balancer class (" + e.class() + ") takes its finalizer away when the address is released; see that it runs"
	}
}

// annotations looks for those to which nobody listens. Whether the controller
// heeds MetalLB's is not known here.
func (e *explainer) annotations() {
	for _, p := range provisioner.AnnotationProblems(e.svc, false) {
		level := Wrong
		if p.Reason == provisioner.ReasonAnnotationUnsupported {
			level = Note
		}
		e.add(level, "%s", strings.ToUpper(p.Message[:1])+p.Message[1:])
	}
}

// addresses looks at ClusterIPs and NodePorts.
func (e *explainer) addresses() {
	spec := &e.svc.Spec
	inPool := e.condition(v1alpha1.ConditionInPool)
	switch {
	case spec.ClusterIP == corev1.ClusterIPNone:
		e.add(Fine, "It is headless: DNS gives its Pods' addresses, and nothing is forwarded")
	case spec.ClusterIP == "":
		finding := e.add(Wrong, "It has no ClusterIP")
		if inPool != nil {
			finding.Do = inPool.Message
		} else {
			finding.Do = "An API server that does not allocate leaves that to Causeway's controller: see that it runs, and that a ClusterIPPool selects the Service"
		}
		return
	default:
		e.add(Fine, "It has ClusterIP %s", strings.Join(spec.ClusterIPs, ", "))
	}
	if inPool != nil && inPool.Status == metav1.ConditionFalse {
		e.add(Wrong, "%s", inPool.Message)
	}
	allocates := spec.Type == corev1.ServiceTypeNodePort ||
		spec.Type == corev1.ServiceTypeLoadBalancer && (spec.AllocateLoadBalancerNodePorts == nil || *spec.AllocateLoadBalancerNodePorts)
	for _, p := range spec.Ports {
		if allocates && p.NodePort == 0 {
			e.add(Wrong, "Port %d/%s has no NodePort", p.Port, p.Protocol).Do = "See that Causeway's controller runs and that a NodePortPool with free ports selects the Service"
		}
	}
	e.externalIPs()
	if len(spec.LoadBalancerSourceRanges) > 0 {
		e.add(Note, "Only clients from %s may use its load balancer addresses (spec.loadBalancerSourceRanges)", strings.Join(spec.LoadBalancerSourceRanges, ", "))
	}
}

// externalIPs looks for those that the agents do not serve.
func (e *explainer) externalIPs() {
	if len(e.svc.Spec.ExternalIPs) == 0 || len(e.Agents) == 0 {
		return
	}
	if flagOf(&e.Agents[0], "mode") == "none" {
		return // kube-proxy allows all
	}
	allowed := netaddr.ParsePrefixes(strings.Split(flagOf(&e.Agents[0], "external-ip-ranges"), ","))
	for _, raw := range e.svc.Spec.ExternalIPs {
		ip, ok := netaddr.Parse(raw)
		if ok && !slices.ContainsFunc(allowed, func(p netip.Prefix) bool { return p.Contains(ip) }) {
			e.add(Wrong, "External IP %s is in no range that the administrator allows, so that no node answers for it", ip).Do =
				"Add its range to the agents' flag --external-ip-ranges, or give the Service a load balancer address instead"
		}
	}
}

// flagOf returns the value of a flag of a Pod's containers, "" without it.
func flagOf(pod *corev1.Pod, name string) string {
	for i := range pod.Spec.Containers {
		c := &pod.Spec.Containers[i]
		args := slices.Concat(c.Command, c.Args)
		for i, arg := range args {
			if value, ok := strings.CutPrefix(arg, "--"+name+"="); ok {
				return value
			}
			if arg == "--"+name && i+1 < len(args) {
				return args[i+1]
			}
		}
	}
	return ""
}

// class is the load balancer class that serves, or served, the Service.
func (e *explainer) class() string {
	switch {
	case e.svc.Spec.LoadBalancerClass != nil:
		return *e.svc.Spec.LoadBalancerClass
	case e.svc.Annotations[v1alpha1.ProvisionerAnnotation] != "":
		return e.svc.Annotations[v1alpha1.ProvisionerAnnotation]
	}
	return v1alpha1.LoadBalancerClass
}

// kubectl is a command that shows more.
func (e *explainer) kubectl(format string, args ...any) string {
	return "kubectl -n " + e.svc.Namespace + " " + fmt.Sprintf(format, args...)
}
