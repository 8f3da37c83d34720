// SPDX-License-Identifier: Apache-2.0

package explain

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/causeway-lb/causeway/api/v1alpha1"
	"github.com/causeway-lb/causeway/internal/endpointslice"
)

// endpoint is one Pod, or one address without a Pod, as the slices have it.
type endpoint struct {
	name, node               string
	pod                      bool
	ready, serving, draining bool
}

// behind are the endpoints of all slices, once each, by name.
func (e *explainer) behind() map[string]endpoint {
	out := map[string]endpoint{}
	for i := range e.Slices {
		for _, have := range e.Slices[i].Endpoints {
			ep := endpoint{name: strings.Join(have.Addresses, ", ")}
			if have.TargetRef != nil && have.TargetRef.Kind == "Pod" {
				ep.name, ep.pod = have.TargetRef.Name, true
			}
			if have.NodeName != nil {
				ep.node = *have.NodeName
			}
			c := have.Conditions
			ep.draining = c.Terminating != nil && *c.Terminating
			ep.ready = c.Ready == nil || *c.Ready
			ep.serving = ep.ready || c.Serving != nil && *c.Serving
			before := out[ep.name]
			ep.ready, ep.serving = ep.ready || before.ready, ep.serving || before.serving
			out[ep.name] = ep
		}
	}
	return out
}

// endpoints looks at who stands behind the Service, and who could.
func (e *explainer) endpoints() {
	e.keeper()
	behind := e.behind()
	ready, serving, byNode := 0, 0, map[string]int{}
	for _, ep := range behind {
		switch {
		case ep.ready:
			ready++
			byNode[cmp.Or(ep.node, "(no node)")]++
		case ep.serving:
			serving++
		}
	}
	total := len(behind)
	for i := range e.Pods {
		if _, counted := behind[e.Pods[i].Name]; !counted {
			total++
		}
	}
	out := e.missing(behind)
	switch {
	case e.unread["EndpointSlices"]:
		return
	case len(e.svc.Spec.Selector) == 0 && total == 0:
		e.add(Wrong, "It has no selector and nobody has written an EndpointSlice for it, so that connections are refused").Do =
			"Give it a selector, or write an EndpointSlice with the label " + discoveryv1.LabelServiceName + "=" + e.svc.Name
	case total == 0 && !e.unread["Pods"]:
		e.noPods()
	case ready == 0 && serving > 0:
		e.add(Wrong, "No endpoint is ready; %d that are ending serve until they are gone", serving).Details = out
	case ready == 0:
		finding := e.add(Wrong, "None of %s is ready, so that connections are refused", many(total, "endpoint"))
		finding.Details, finding.Do = out, "Look at the Pods: "+e.kubectl("describe pods -l %s", labels.Set(e.svc.Spec.Selector))
		if len(e.svc.Spec.Selector) == 0 {
			finding.Do = "Whoever writes its EndpointSlices says so there: " + e.kubectl("get endpointslices -l %s=%s -o yaml", discoveryv1.LabelServiceName, e.svc.Name)
		}
	default:
		text := fmt.Sprintf("%d of %s ready: %s", ready, many(total, "endpoint"), counts(byNode))
		if serving > 0 {
			text += fmt.Sprintf("; %d ending and still serving", serving)
		}
		level := Fine
		if len(out) > 0 {
			level = Note
		}
		e.add(level, "%s", text).Details = out
	}
	e.stale(behind)
	e.shape()
	e.targetPorts()
	e.policies(byNode, ready)
}

func counts(byNode map[string]int) string {
	var out []string
	for _, node := range slices.Sorted(maps.Keys(byNode)) {
		out = append(out, fmt.Sprintf("%d on %s", byNode[node], node))
	}
	return strings.Join(out, ", ")
}

// keeper says who keeps the slices, where that is in question.
func (e *explainer) keeper() {
	c := e.condition(v1alpha1.ServiceEndpointSlicesManaged)
	switch {
	case c == nil:
	case c.Reason == "OwnershipConflict" || c.Reason == "ModeInvalid":
		e.add(Wrong, "%s", c.Message)
	case c.Status == metav1.ConditionFalse:
		e.add(Note, "Causeway does not keep its EndpointSlices: %s", c.Message)
	}
}

// noPods looks for what the selector may have been meant to match.
func (e *explainer) noPods() {
	finding := e.add(Wrong, "Its selector %s matches no Pod, so that connections are refused", labels.Set(e.svc.Spec.Selector))
	if len(e.Others) == 0 {
		finding.Do = "There is no Pod in namespace " + e.svc.Namespace + " at all: create them"
		return
	}
	for _, key := range slices.Sorted(maps.Keys(e.svc.Spec.Selector)) {
		has, values := 0, map[string]int{}
		for _, pod := range e.Others {
			if value, ok := pod[key]; ok && value == e.svc.Spec.Selector[key] {
				has++
			} else if ok {
				values[value]++
			}
		}
		switch {
		case has > 0:
			finding.Details = append(finding.Details, fmt.Sprintf("%s with %s=%s", many(has, "Pod"), key, e.svc.Spec.Selector[key]))
		case len(values) == 0:
			finding.Details = append(finding.Details, "no Pod has the label "+key)
		default:
			var have []string
			for _, value := range slices.Sorted(maps.Keys(values)) {
				have = append(have, fmt.Sprintf("%s=%s on %d", key, value, values[value]))
			}
			finding.Details = append(finding.Details, "no Pod has "+key+"="+e.svc.Spec.Selector[key]+"; there are "+strings.Join(have[:min(len(have), 5)], ", "))
		}
	}
	finding.Do = "Correct the selector or the Pods' labels: " + e.kubectl("get pods --show-labels")
}

// missing says of each Pod that the selector matches and that is not a ready
// endpoint why not. A Pod that is ready and in no slice is wrong in itself.
func (e *explainer) missing(behind map[string]endpoint) (out []string) {
	var lost []string
	for i := range e.Pods {
		pod := &e.Pods[i]
		ep, listed := behind[pod.Name]
		if ep.ready {
			continue
		}
		trouble := troubleOf(pod)
		if trouble == "" && !listed {
			lost = append(lost, pod.Name+where(pod))
			continue
		}
		out = append(out, pod.Name+where(pod)+": "+cmp.Or(trouble, "it is ready, and its EndpointSlice says that it is not"))
	}
	for _, name := range slices.Sorted(maps.Keys(behind)) {
		if ep := behind[name]; !ep.pod && !ep.ready {
			out = append(out, name+": its EndpointSlice says that it is not ready")
		}
	}
	if len(lost) > 0 && !e.unread["EndpointSlices"] {
		finding := e.add(e.late(), "%s ready and in no EndpointSlice, and so without traffic", many(len(lost), "Pod"))
		finding.Details = lost
		finding.Do = "See that Causeway's controller runs, or, if it leaves the slices to kube-controller-manager, that one's endpointslice-controller"
	}
	return out
}

// stale tells of endpoints whose Pod is gone, or is selected no more.
func (e *explainer) stale(behind map[string]endpoint) {
	if e.unread["Pods"] || len(e.svc.Spec.Selector) == 0 {
		return
	}
	var gone []string
	for _, name := range slices.Sorted(maps.Keys(behind)) {
		if ep := behind[name]; ep.pod && !slices.ContainsFunc(e.Pods, func(p corev1.Pod) bool { return p.Name == name }) {
			gone = append(gone, name+" on "+cmp.Or(ep.node, "no node"))
		}
	}
	if len(gone) > 0 {
		finding := e.add(Wrong, "%s of Pods that are gone or that the selector does not match any more: connections to them fail", many(len(gone), "endpoint"))
		finding.Details = gone
		finding.Do = "See that the controller that keeps the EndpointSlices runs"
	}
}

// shape says what keeps Pods from being endpoints that is neither theirs nor
// their readiness: names of ports, families, nodes.
func (e *explainer) shape() {
	if len(e.svc.Spec.Selector) == 0 {
		return
	}
	in := endpointslice.Input{Service: e.svc, Nodes: func(name string) (endpointslice.Node, bool) {
		known := e.unread["Nodes"] || slices.ContainsFunc(e.Nodes, func(n corev1.Node) bool { return n.Name == name })
		return endpointslice.Node{Name: name}, known
	}}
	for i := range e.Pods {
		in.Pods = append(in.Pods, &e.Pods[i])
	}
	for _, problem := range endpointslice.Compute(in).Problems {
		switch problem.Reason {
		case endpointslice.ReasonHintsUnavailable: // of Compute, which is not told the nodes' zones
		case endpointslice.ReasonHostnameDuplicate:
			e.add(Note, "%s", problem.Message)
		default:
			e.add(Wrong, "%s", problem.Message)
		}
	}
}

// targetPorts looks for numbers that no container declares, where containers declare some:
// a typing error refuses every connection, and nothing else tells. Declarations are
// information only, and a process may listen all the same.
func (e *explainer) targetPorts() {
	declared := map[string]bool{}
	for i := range e.Pods {
		spec := &e.Pods[i].Spec
		for _, c := range slices.Concat(spec.InitContainers, spec.Containers) { // sidecars are among the former
			for _, p := range c.Ports {
				declared[fmt.Sprintf("%d/%s", p.ContainerPort, cmp.Or(p.Protocol, corev1.ProtocolTCP))] = true
			}
		}
	}
	if len(declared) == 0 {
		return
	}
	for _, p := range e.svc.Spec.Ports {
		port := p.TargetPort.IntVal
		if p.TargetPort.Type == intstr.String {
			continue // shape has looked
		}
		if port == 0 {
			port = p.Port
		}
		target := fmt.Sprintf("%d/%s", port, cmp.Or(p.Protocol, corev1.ProtocolTCP))
		if !declared[target] {
			e.add(Note, "Port %d leads to %s of its Pods, which none of their containers declares; they declare %s", p.Port, target,
				strings.Join(slices.Sorted(maps.Keys(declared)), ", ")).Do = "See that a process listens there, or correct the targetPort"
		}
	}
}

// policies says which nodes have nothing to offer under policy Local.
func (e *explainer) policies(byNode map[string]int, ready int) {
	var without []string
	for i := range e.Nodes {
		if byNode[e.Nodes[i].Name] == 0 {
			without = append(without, e.Nodes[i].Name)
		}
	}
	if len(without) == 0 || ready == 0 {
		return
	}
	nodes := strings.Join(without, ", ")
	if p := e.svc.Spec.InternalTrafficPolicy; p != nil && *p == corev1.ServiceInternalTrafficPolicyLocal {
		e.add(Note, "internalTrafficPolicy is Local: clients on %s reach no endpoint by its ClusterIP", nodes)
	}
	if e.svc.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal {
		e.add(Note, "externalTrafficPolicy is Local: %s have no ready endpoint and do not announce it", nodes)
	}
}

func where(pod *corev1.Pod) string {
	if pod.Spec.NodeName == "" {
		return ""
	}
	return " on " + pod.Spec.NodeName
}

// troubleOf says why a Pod is not ready to serve; empty when it is.
func troubleOf(pod *corev1.Pod) string {
	switch {
	case pod.DeletionTimestamp != nil:
		return "it is ending"
	case pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed:
		return strings.TrimSpace(fmt.Sprintf("it has ended (%s) %s", pod.Status.Phase, pod.Status.Message))
	}
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodScheduled && c.Status == corev1.ConditionFalse {
			return "no node takes it: " + cmp.Or(c.Message, c.Reason)
		}
	}
	for _, status := range slices.Concat(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses) {
		if text := containerTrouble(pod, &status); text != "" {
			return "container " + status.Name + " " + text
		}
	}
	if endpointslice.Ready(pod) {
		if pod.Status.PodIP == "" {
			return "it has no address yet"
		}
		return ""
	}
	for _, gate := range pod.Spec.ReadinessGates {
		if !slices.ContainsFunc(pod.Status.Conditions, func(c corev1.PodCondition) bool {
			return c.Type == gate.ConditionType && c.Status == corev1.ConditionTrue
		}) {
			return fmt.Sprintf("its readiness gate %s is not true", gate.ConditionType)
		}
	}
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodReady && (c.Message != "" || c.Reason != "") {
			return "it is not ready: " + cmp.Or(c.Message, c.Reason)
		}
	}
	if pod.Spec.NodeName == "" {
		return "it waits for a node"
	}
	return "it is not ready"
}

// containerTrouble says what a container does instead of being ready.
func containerTrouble(pod *corev1.Pod, status *corev1.ContainerStatus) string {
	switch state := status.State; {
	case state.Waiting != nil && state.Waiting.Reason != "" && state.Waiting.Reason != "PodInitializing":
		return "waits: " + strings.TrimSuffix(state.Waiting.Reason+": "+state.Waiting.Message, ": ")
	case state.Terminated != nil && state.Terminated.ExitCode != 0:
		return fmt.Sprintf("ended with exit code %d: %s", state.Terminated.ExitCode, cmp.Or(state.Terminated.Message, state.Terminated.Reason))
	case state.Running != nil && !status.Ready:
		probed := slices.ContainsFunc(pod.Spec.Containers, func(c corev1.Container) bool { return c.Name == status.Name && c.ReadinessProbe != nil })
		if probed {
			return "runs, and its readiness probe has not succeeded"
		}
		return "runs, and is not ready"
	}
	return ""
}
