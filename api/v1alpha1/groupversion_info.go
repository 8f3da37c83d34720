// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// GroupVersion is the API group and version of every type in this package.
var GroupVersion = schema.GroupVersion{Group: "causeway.dev", Version: "v1alpha1"}

var (
	schemeBuilder runtime.SchemeBuilder

	// AddToScheme registers this package's types with a scheme.
	AddToScheme = func(s *runtime.Scheme) error { return schemeBuilder.AddToScheme(s) }
)

// register adds list and object types to the scheme; each types file calls it
// from its init function.
func register(objects ...runtime.Object) {
	schemeBuilder.Register(func(s *runtime.Scheme) error {
		s.AddKnownTypes(GroupVersion, objects...)
		metav1.AddToGroupVersion(s, GroupVersion)
		return nil
	})
}
