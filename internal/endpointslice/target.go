// SPDX-License-Identifier: Apache-2.0

package endpointslice

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// target is an endpoint that a family of a Service should have. It is compared
// with endpoints in place, and becomes an Endpoint only where a slice is
// written.
type target struct {
	// key is what stays the same while the endpoint is updated: the Pod's name,
	// or for hand-made Endpoints the address and host name. Unique in a family.
	key string

	address string
	more    []string // further addresses of the same family, as good as always none

	ready bool
	// lifecycle says that serving and terminating are known (for Pods).
	lifecycle, serving, terminating bool

	node, zone, hostname string // "" for none

	// What the endpoint stands for: a Pod, else ref (nil for nothing).
	pod *corev1.Pod
	ref *corev1.ObjectReference

	// hintZone and hintNode say who should prefer this endpoint, "" for no hint.
	// wasHinted is the one zone hint of the existing endpoint.
	hintZone, hintNode string
	wasHinted          string

	group  int32 // the port list it belongs to
	placed bool  // it has a place in a slice
}

// matches tells whether the endpoint is exactly what the target asks for. The
// resource version in the target reference is nobody's business.
func (t *target) matches(endpoint *discoveryv1.Endpoint) bool {
	return t.matchesAddresses(endpoint.Addresses) &&
		t.matchesConditions(&endpoint.Conditions) &&
		equalText(endpoint.NodeName, t.node) &&
		equalText(endpoint.Zone, t.zone) &&
		equalText(endpoint.Hostname, t.hostname) &&
		t.matchesReference(endpoint.TargetRef) &&
		t.matchesHints(endpoint.Hints)
}

func (t *target) matchesAddresses(addresses []string) bool {
	return len(addresses) == 1+len(t.more) && addresses[0] == t.address && slices.Equal(addresses[1:], t.more)
}

func (t *target) matchesConditions(conditions *discoveryv1.EndpointConditions) bool {
	if !t.lifecycle {
		return isTrue(conditions.Ready, t.ready) && conditions.Serving == nil && conditions.Terminating == nil
	}
	return isTrue(conditions.Ready, t.ready) && isTrue(conditions.Serving, t.serving) &&
		isTrue(conditions.Terminating, t.terminating)
}

func (t *target) matchesReference(got *corev1.ObjectReference) bool {
	if t.pod != nil {
		return got != nil && got.Kind == "Pod" && got.Name == t.pod.Name && got.Namespace == t.pod.Namespace &&
			got.UID == t.pod.UID && got.APIVersion == "" && got.FieldPath == ""
	}
	if t.ref == nil || got == nil {
		return t.ref == nil && got == nil
	}
	want, have := *t.ref, *got
	want.ResourceVersion, have.ResourceVersion = "", ""
	return want == have
}

func (t *target) matchesHints(hints *discoveryv1.EndpointHints) bool {
	if hints == nil {
		return t.hintZone == "" && t.hintNode == ""
	}
	zones, nodes := hints.ForZones, hints.ForNodes
	switch {
	case t.hintZone == "" && t.hintNode == "":
		return false // an empty hint is not the same as none
	case t.hintZone == "" && len(zones) > 0, t.hintZone != "" && (len(zones) != 1 || zones[0].Name != t.hintZone):
		return false
	case t.hintNode == "" && len(nodes) > 0, t.hintNode != "" && (len(nodes) != 1 || nodes[0].Name != t.hintNode):
		return false
	}
	return true
}

// endpoint returns the target as a slice holds it, sharing no memory.
func (t *target) endpoint() discoveryv1.Endpoint {
	endpoint := discoveryv1.Endpoint{
		Addresses:  append([]string{t.address}, t.more...),
		Conditions: discoveryv1.EndpointConditions{Ready: new(t.ready)},
		NodeName:   textOrNil(t.node),
		Zone:       textOrNil(t.zone),
		Hostname:   textOrNil(t.hostname),
		TargetRef:  copyOf(t.ref),
	}
	if t.lifecycle {
		endpoint.Conditions.Serving, endpoint.Conditions.Terminating = new(t.serving), new(t.terminating)
	}
	if t.pod != nil {
		endpoint.TargetRef = &corev1.ObjectReference{
			Kind: "Pod", Namespace: t.pod.Namespace, Name: t.pod.Name, UID: t.pod.UID,
		}
	}
	if t.hintZone != "" || t.hintNode != "" {
		endpoint.Hints = &discoveryv1.EndpointHints{}
	}
	if t.hintZone != "" {
		endpoint.Hints.ForZones = []discoveryv1.ForZone{{Name: t.hintZone}}
	}
	if t.hintNode != "" {
		endpoint.Hints.ForNodes = []discoveryv1.ForNode{{Name: t.hintNode}}
	}
	return endpoint
}

func textOrNil(text string) *string {
	if text == "" {
		return nil
	}
	return &text
}

// equalText compares an optional string with one where "" means none.
func equalText(got *string, want string) bool {
	if got == nil {
		return want == ""
	}
	return want != "" && *got == want
}

func isTrue(got *bool, want bool) bool { return got != nil && *got == want }

// keyFunc returns the key that an existing endpoint, of a slice with the given
// ports, has had as a target; false if no target of this kind can have made it.
type keyFunc func(*discoveryv1.Endpoint, portKey) (string, bool)

// podKey is the keyFunc for endpoints that stand for Pods of a namespace.
func podKey(namespace string) keyFunc {
	return func(endpoint *discoveryv1.Endpoint, _ portKey) (string, bool) {
		ref := endpoint.TargetRef
		if ref == nil || ref.Kind != "Pod" || ref.Namespace != namespace {
			return "", false
		}
		return ref.Name, true
	}
}
