// SPDX-License-Identifier: Apache-2.0

package explain

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/causeway-lb/causeway/api/v1alpha1"
	"github.com/causeway-lb/causeway/internal/endpointslice"
)

// processes looks at Causeway's own Pods: the controllers, and an agent on every
// node.
func (e *explainer) processes() {
	if !e.unread["controllers"] && !slices.ContainsFunc(e.Controllers, isReady) {
		finding := e.add(Wrong, "No controller of Causeway is ready: what has to change in the API does not")
		finding.Details = podsOf(e.Controllers)
		finding.Do = "kubectl -n " + e.System + " get pods, if that is where it was installed; --system-namespace says another"
	}
	if e.unread["agents"] || e.unread["Nodes"] || len(e.Nodes) == 0 {
		return
	}
	var lacking []string
	modes := map[string][]string{} // what the nodes' condition says -> nodes
	fellBack, level := false, Note // of a node that is dead there is no more to expect
	for i := range e.Nodes {
		node := &e.Nodes[i]
		if !e.hasAgent(node.Name) {
			lacking = append(lacking, e.agentTrouble(node))
			if nodeReady(node) {
				level = Wrong
			}
		}
		for _, c := range node.Status.Conditions {
			if c.Type == v1alpha1.NodeProxyModeSupported || c.Type == v1alpha1.FormerNodeProxyMode {
				modes[c.Message] = append(modes[c.Message], node.Name)
				fellBack = fellBack || c.Status == corev1.ConditionFalse
			}
		}
	}
	if len(lacking) > 0 {
		finding := e.add(level, "%d of %s without an agent that is ready: what changes does not reach their kernels, and they announce nothing", len(lacking), many(len(e.Nodes), "node"))
		finding.Details = lacking
	} else {
		e.add(Fine, "An agent is ready on each of %s", many(len(e.Nodes), "node"))
	}
	if !fellBack {
		return
	}
	finding := e.add(Note, "Some nodes use another proxy mode than they were told to")
	for _, message := range slices.Sorted(maps.Keys(modes)) {
		finding.Details = append(finding.Details, strings.Join(modes[message], ", ")+": "+message)
	}
}

func (e *explainer) hasAgent(node string) bool {
	return slices.ContainsFunc(e.Agents, func(p corev1.Pod) bool { return p.Spec.NodeName == node && isReady(p) })
}

func (e *explainer) agentTrouble(node *corev1.Node) string {
	for i := range e.Agents {
		if e.Agents[i].Spec.NodeName == node.Name {
			return node.Name + ": " + cmp.Or(troubleOf(&e.Agents[i]), "its agent is not ready")
		}
	}
	if !nodeReady(node) {
		return node.Name + ": it has none, and the node is not ready"
	}
	return node.Name + ": it has none"
}

func isReady(pod corev1.Pod) bool { return endpointslice.Ready(&pod) }

func podsOf(pods []corev1.Pod) (out []string) {
	for i := range pods {
		out = append(out, fmt.Sprintf("%s%s: %s", pods[i].Name, where(&pods[i]), cmp.Or(troubleOf(&pods[i]), "it is ready")))
	}
	return out
}
