// SPDX-License-Identifier: Apache-2.0

package endpointslice

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/utils/ptr"
)

// target is an endpoint that a family of a Service should have. It is compared
// with endpoints in place, and becomes an Endpoint only where a slice is
// written.
type target struct {
	// key is what stays the same while the endpoint is updated: the Pod's name,
	// or for hand-made Endpoints the address and host name. Unique in a family.
	key string

	address string
	more    []string // further addresses of the same family, nearly always none

	conditions conditions

	node, zone, hostname string // "" for none

	// What the endpoint stands for: a Pod, else ref (nil for nothing).
	pod *corev1.Pod
	ref *corev1.ObjectReference

	hint hint

	group  int32 // the port list it belongs to
	placed bool  // it has a place in a slice
}

// conditions are those of an endpoint.
type conditions struct {
	ready bool
	// lifecycle says that serving and terminating are known (for Pods).
	lifecycle, serving, terminating bool
}

// hint says which clients should prefer an endpoint: those in a zone, those on a
// node; "" for no hint.
type hint struct {
	zone, node string
	before     string // the one zone hint of the existing endpoint
}

// matches reports whether the endpoint is exactly the target's, apart from the resource
// version in the target reference.
func (t *target) matches(endpoint *discoveryv1.Endpoint) bool {
	return t.matchesAddresses(endpoint.Addresses) &&
		t.conditions.matches(&endpoint.Conditions) &&
		equalText(endpoint.NodeName, t.node) &&
		equalText(endpoint.Zone, t.zone) &&
		equalText(endpoint.Hostname, t.hostname) &&
		t.matchesReference(endpoint.TargetRef) &&
		t.hint.matches(endpoint.Hints)
}

func (t *target) matchesAddresses(addresses []string) bool {
	return len(addresses) == 1+len(t.more) && addresses[0] == t.address && slices.Equal(addresses[1:], t.more)
}

func (c *conditions) matches(got *discoveryv1.EndpointConditions) bool {
	if !c.lifecycle {
		return isTrue(got.Ready, c.ready) && got.Serving == nil && got.Terminating == nil
	}
	return isTrue(got.Ready, c.ready) && isTrue(got.Serving, c.serving) && isTrue(got.Terminating, c.terminating)
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

func (h *hint) matches(got *discoveryv1.EndpointHints) bool {
	if got == nil || h.zone == "" && h.node == "" {
		return got == nil && h.zone == "" && h.node == "" // an empty hint is not the same as none
	}
	return slices.Equal(got.ForZones, h.forZones()) && slices.Equal(got.ForNodes, h.forNodes())
}

func (h *hint) forZones() []discoveryv1.ForZone {
	if h.zone == "" {
		return nil
	}
	return []discoveryv1.ForZone{{Name: h.zone}}
}

func (h *hint) forNodes() []discoveryv1.ForNode {
	if h.node == "" {
		return nil
	}
	return []discoveryv1.ForNode{{Name: h.node}}
}

// endpoint returns the target as a slice holds it, sharing no memory.
func (t *target) endpoint() discoveryv1.Endpoint {
	endpoint := discoveryv1.Endpoint{
		Addresses:  append([]string{t.address}, t.more...),
		Conditions: discoveryv1.EndpointConditions{Ready: new(t.conditions.ready)},
		NodeName:   textOrNil(t.node),
		Zone:       textOrNil(t.zone),
		Hostname:   textOrNil(t.hostname),
		TargetRef:  copyOf(t.ref),
	}
	if t.conditions.lifecycle {
		endpoint.Conditions.Serving, endpoint.Conditions.Terminating = new(t.conditions.serving), new(t.conditions.terminating)
	}
	if t.pod != nil {
		endpoint.TargetRef = &corev1.ObjectReference{
			Kind: "Pod", Namespace: t.pod.Namespace, Name: t.pod.Name, UID: t.pod.UID,
		}
	}
	if t.hint.zone != "" || t.hint.node != "" {
		endpoint.Hints = &discoveryv1.EndpointHints{ForZones: t.hint.forZones(), ForNodes: t.hint.forNodes()}
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
	return (got == nil) == (want == "") && ptr.Deref(got, "") == want
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
