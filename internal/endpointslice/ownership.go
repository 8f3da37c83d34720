// SPDX-License-Identifier: Apache-2.0

package endpointslice

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/utils/ptr"

	"github.com/causeway-lb/causeway/api/v1alpha1"
)

// Owned returns the slices that Causeway manages for a Service because of its
// selector; the Service is nil if it is gone.
func Owned(service *corev1.Service, list []*discoveryv1.EndpointSlice) []*discoveryv1.EndpointSlice {
	return managedBy(service, list, ManagedBy)
}

// Mirrored returns the slices that Causeway made from an Endpoints object.
func Mirrored(list []*discoveryv1.EndpointSlice) []*discoveryv1.EndpointSlice {
	return managedBy(nil, list, ManagedByMirror)
}

// KubeManaged returns the slices that another controller makes from the same
// selector: those of kube-controller-manager. Slices that a user wrote, or that
// have any other manager's name, add endpoints and conflict with none.
func KubeManaged(service *corev1.Service, list []*discoveryv1.EndpointSlice) []*discoveryv1.EndpointSlice {
	return managedBy(service, list, KubeManagedBy)
}

// KubeMirrored returns the slices that kube-controller-manager made from an
// Endpoints object.
func KubeMirrored(list []*discoveryv1.EndpointSlice) []*discoveryv1.EndpointSlice {
	return managedBy(nil, list, KubeManagedByMirror)
}

func isKubeManaged(slice *discoveryv1.EndpointSlice) bool {
	return Manager(nil, slice) == KubeManagedBy
}

// managedBy selects the slices of one manager.
func managedBy(service *corev1.Service, list []*discoveryv1.EndpointSlice, manager string) []*discoveryv1.EndpointSlice {
	return slices.DeleteFunc(slices.Clone(list), func(slice *discoveryv1.EndpointSlice) bool { return Manager(service, slice) != manager })
}

// Covers reports whether the slices in theirs serve each address that those in ours
// serve as ready, on the same ports, so that ours can be deleted without a gap.
func Covers(theirs, ours []*discoveryv1.EndpointSlice) bool {
	type place struct {
		family  discoveryv1.AddressType
		ports   portKey
		address string
	}
	served := map[place]bool{}
	each := func(list []*discoveryv1.EndpointSlice, visit func(place)) {
		for _, slice := range list {
			if slice.DeletionTimestamp != nil {
				continue
			}
			ports := keyOfPorts(slice.Ports)
			for i := range slice.Endpoints {
				if endpoint := &slice.Endpoints[i]; ptr.Deref(endpoint.Conditions.Ready, true) && len(endpoint.Addresses) > 0 {
					visit(place{slice.AddressType, ports, endpoint.Addresses[0]})
				}
			}
		}
	}
	each(theirs, func(p place) { served[p] = true })
	covered := true
	each(ours, func(p place) { covered = covered && served[p] })
	return covered
}

// HandBack returns copies of the slices that are labelled as managed by
// kube-controller-manager, with the same contents, so that no endpoint is missing or
// doubled meanwhile.
func HandBack(ours []*discoveryv1.EndpointSlice) []*discoveryv1.EndpointSlice {
	list := make([]*discoveryv1.EndpointSlice, len(ours))
	for i, slice := range ours {
		list[i] = slice.DeepCopy()
		list[i].Labels[discoveryv1.LabelManagedBy] = KubeManagedBy
		delete(list[i].Labels, v1alpha1.EndpointSliceKeeperLabel)
		if slice.Labels[discoveryv1.LabelManagedBy] == ManagedByMirror {
			list[i].Labels[discoveryv1.LabelManagedBy] = KubeManagedByMirror
		}
	}
	return list
}

// ForeignFamilies returns the names of hand-made slices whose address type the
// Service does not have, so that no proxy will use them.
func ForeignFamilies(list []*discoveryv1.EndpointSlice, families []discoveryv1.AddressType) []string {
	var names []string
	for _, slice := range list {
		switch slice.Labels[discoveryv1.LabelManagedBy] {
		case ManagedBy, ManagedByMirror, KubeManagedBy, KubeManagedByMirror:
			continue
		}
		if !slices.Contains(families, slice.AddressType) {
			names = append(names, slice.Name)
		}
	}
	return names
}
