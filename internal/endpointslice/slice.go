// SPDX-License-Identifier: Apache-2.0

package endpointslice

import (
	"fmt"
	"hash/fnv"
	"maps"
	"slices"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/causeway-lb/causeway/api/v1alpha1"
)

// Who keeps a slice: see Manager. But for ManagedBy these are the values of the
// label endpointslice.kubernetes.io/managed-by.
const (
	// ManagedBy names Causeway as the keeper of the slices of a Service with a
	// selector. Their label has the other controller's value, which clients and the
	// conformance tests look for, and v1alpha1.EndpointSliceKeeperLabel beside it.
	// Earlier versions made ManagedBy the label's value; see Input.OwnName.
	ManagedBy = "endpointslice-controller.causeway.dev"
	// ManagedByMirror marks the slices that mirror a hand-made Endpoints object.
	ManagedByMirror = "endpointslicemirroring-controller.causeway.dev"
	// KubeManagedBy and KubeManagedByMirror are those of
	// kube-controller-manager.
	KubeManagedBy       = "endpointslice-controller.k8s.io"
	KubeManagedByMirror = "endpointslicemirroring-controller.k8s.io"
)

// LabelsOf returns the labels of a Service's slices: the Service's own, the
// three that the API reserves, on which the Service's values are ignored, and
// the keeper's. With ownName they are as in Input.OwnName.
func LabelsOf(service *corev1.Service, ownName bool) map[string]string {
	labels := copiedLabels(service)
	labels[discoveryv1.LabelServiceName] = service.Name
	if _, copied := service.Labels[v1alpha1.EndpointSliceKeeperLabel]; copied || ownName {
		labels[discoveryv1.LabelManagedBy] = ManagedBy
		return labels
	}
	labels[discoveryv1.LabelManagedBy] = v1alpha1.EndpointSliceManagedBy
	labels[v1alpha1.EndpointSliceKeeperLabel] = v1alpha1.EndpointSliceKeeper
	return labels
}

// copiedLabels returns a Service's labels as its slices and its Endpoints object have
// them, with room for more.
func copiedLabels(service *corev1.Service) map[string]string {
	labels := make(map[string]string, len(service.Labels)+4)
	maps.Copy(labels, service.Labels)
	delete(labels, corev1.IsHeadlessService)
	if isHeadless(service) {
		labels[corev1.IsHeadlessService] = ""
	}
	return labels
}

// Manager returns the manager of a slice of the Service, which is nil if unknown:
// ManagedBy for Causeway, else the label's value. Slices with
// kube-controller-manager's value and the keeper's label are Causeway's, unless that
// label may be the Service's, which the other controller copies: slices of such a
// Service have ManagedBy for a label.
func Manager(service *corev1.Service, slice *discoveryv1.EndpointSlice) string {
	manager := slice.Labels[discoveryv1.LabelManagedBy]
	if manager != KubeManagedBy || slice.Labels[v1alpha1.EndpointSliceKeeperLabel] != v1alpha1.EndpointSliceKeeper {
		return manager
	}
	if service != nil {
		if _, copied := service.Labels[v1alpha1.EndpointSliceKeeperLabel]; copied {
			return manager
		}
	}
	return ManagedBy
}

// HasOwnName reports whether one of the slices is labelled as in Input.OwnName.
func HasOwnName(list []*discoveryv1.EndpointSlice) bool {
	return slices.ContainsFunc(list, func(slice *discoveryv1.EndpointSlice) bool {
		return slice.Labels[discoveryv1.LabelManagedBy] == ManagedBy
	})
}

// template is what all slices of one owner have in common.
type template struct {
	namespace, base string // the namespace, and the name that slice names begin with
	owner           metav1.OwnerReference
	labels          map[string]string
	// annotations that the slices must have; nil leaves them alone.
	annotations map[string]string
	triggerTime time.Time
}

// upToDate reports whether the slice's metadata is as the template wants it. The
// trigger time says when the endpoints changed, so it is none of it.
func (t *template) upToDate(slice *discoveryv1.EndpointSlice) bool {
	if !maps.Equal(slice.Labels, t.labels) || !ownedBy(slice, t.owner.UID) {
		return false
	}
	if t.annotations == nil {
		return true
	}
	has := maps.Clone(slice.Annotations)
	delete(has, corev1.EndpointsLastChangeTriggerTime)
	return maps.Equal(has, t.annotations)
}

// create returns a new slice without endpoints.
func (t *template) create(family discoveryv1.AddressType, name string) *discoveryv1.EndpointSlice {
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Name: name, Namespace: t.namespace},
		AddressType: family,
	}
	t.setMetadata(slice)
	return slice
}

// update returns a copy of the slice with the template's metadata and without
// endpoints and ports.
func (t *template) update(existing *discoveryv1.EndpointSlice) *discoveryv1.EndpointSlice {
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta:  *existing.ObjectMeta.DeepCopy(),
		AddressType: existing.AddressType,
	}
	t.setMetadata(slice)
	return slice
}

func (t *template) setMetadata(slice *discoveryv1.EndpointSlice) {
	slice.Labels = maps.Clone(t.labels)
	if !ownedBy(slice, t.owner.UID) {
		slice.OwnerReferences = []metav1.OwnerReference{*t.owner.DeepCopy()}
	}
	if t.annotations != nil {
		slice.Annotations = maps.Clone(t.annotations)
	}
	delete(slice.Annotations, corev1.EndpointsLastChangeTriggerTime)
	if !t.triggerTime.IsZero() {
		metav1.SetMetaDataAnnotation(&slice.ObjectMeta, corev1.EndpointsLastChangeTriggerTime, t.triggerTime.UTC().Format(time.RFC3339Nano))
	}
}

// name returns a name for a new slice that is not in taken, and adds it. Names
// follow from the owner, the family and how many are taken, not from chance: a
// create that was carried out though it was reported as failed cannot, when it
// is repeated, leave a second slice with the same endpoints.
func (t *template) name(family discoveryv1.AddressType, taken map[string]bool) string {
	for n := 0; ; n++ {
		hash := fnv.New64a()
		fmt.Fprintf(hash, "%s/%s/%d", t.owner.UID, family, n)
		suffix := strconv.FormatUint(hash.Sum64()|1<<63, 36)
		name := t.base + "-" + suffix[len(suffix)-8:]
		if !taken[name] {
			taken[name] = true
			return name
		}
	}
}

func ownedBy(slice *discoveryv1.EndpointSlice, uid types.UID) bool {
	return slices.ContainsFunc(slice.OwnerReferences, func(ref metav1.OwnerReference) bool { return ref.UID == uid })
}

func ownerReference(kind, name string, uid types.UID) metav1.OwnerReference {
	return metav1.OwnerReference{
		APIVersion: "v1", Kind: kind, Name: name, UID: uid, Controller: new(true), BlockOwnerDeletion: new(true),
	}
}
