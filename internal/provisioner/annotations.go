// SPDX-License-Identifier: Apache-2.0

package provisioner

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/causeway-lb/causeway/api/v1alpha1"
	"github.com/causeway-lb/causeway/internal/quote"
)

// Reasons of AnnotationProblems.
const (
	ReasonAnnotationUnknown     = "AnnotationUnknown"
	ReasonAnnotationUnsupported = "AnnotationUnsupported"
)

// ours are Causeway's annotations of Services.
var ours = []string{
	v1alpha1.AddressesAnnotation, v1alpha1.PoolAnnotation, v1alpha1.SharingKeyAnnotation, v1alpha1.ProvisionerAnnotation,
	v1alpha1.EndpointSlicesAnnotation, v1alpha1.SchedulerAnnotation,
}

// metalLB are MetalLB's names of Causeway's annotations; those before its version 0.15 last.
var metalLB = map[string][]string{
	v1alpha1.AddressesAnnotation:  {"metallb.io/loadBalancerIPs", "metallb.universe.tf/loadBalancerIPs"},
	v1alpha1.PoolAnnotation:       {"metallb.io/address-pool", "metallb.universe.tf/address-pool"},
	v1alpha1.SharingKeyAnnotation: {"metallb.io/allow-shared-ip", "metallb.universe.tf/allow-shared-ip"},
}

// foreign are the prefixes of other products' annotations.
var foreign = map[string]string{
	"metallb.io/": "MetalLB", "metallb.universe.tf/": "MetalLB", "kube-vip.io/": "kube-vip", "purelb.io/": "PureLB",
	"lbipam.cilium.io/": "Cilium", "io.cilium/lb-ipam": "Cilium",
}

// WithMetalLB returns the Service with Causeway's annotations in place of MetalLB's, unless it
// has them already. The Service is not changed.
func WithMetalLB(svc *corev1.Service) *corev1.Service {
	var annotations map[string]string
	for own, names := range metalLB {
		if svc.Annotations[own] != "" {
			continue
		}
		for _, name := range names {
			if value := svc.Annotations[name]; value != "" {
				if annotations == nil {
					annotations = maps.Clone(svc.Annotations)
				}
				annotations[own] = value
				break
			}
		}
	}
	if annotations == nil {
		return svc
	}
	out := *svc
	out.Annotations = annotations
	return &out
}

// AddressAnnotations returns the annotations that request LoadBalancer addresses, of which the
// first that a Service has counts, with MetalLB's if they are honoured.
func AddressAnnotations(metalLBHonoured bool) []string {
	names := []string{v1alpha1.AddressesAnnotation}
	if metalLBHonoured {
		names = append(names, metalLB[v1alpha1.AddressesAnnotation]...)
	}
	return names
}

// AnnotationProblem is an annotation of a Service that has no effect.
type AnnotationProblem struct {
	Reason string
	// Message says what is wrong and what to do.
	Message string
}

// AnnotationProblems returns what is wrong with the names of a Service's annotations, in order:
// Causeway's that do not exist, and those of other products. With metalLBHonoured those that
// WithMetalLB reads are fine.
func AnnotationProblems(svc *corev1.Service, metalLBHonoured bool) []AnnotationProblem {
	var out []AnnotationProblem
	for _, key := range slices.Sorted(maps.Keys(svc.Annotations)) {
		if unknown(key) {
			out = append(out, AnnotationProblem{ReasonAnnotationUnknown, fmt.Sprintf(
				"there is no annotation %s for Services, so that it does nothing: did you mean %s?", quote.Name(key), nearest(key))})
			continue
		}
		for prefix, product := range foreign {
			if !strings.HasPrefix(key, prefix) {
				continue
			}
			own := equivalent(key)
			switch {
			case own != "" && metalLBHonoured:
			case own != "":
				out = append(out, AnnotationProblem{ReasonAnnotationUnsupported, fmt.Sprintf(
					"annotation %s is %s's and does nothing unless the controller has --metallb-annotations: use %s", key, product, own)})
			default:
				out = append(out, AnnotationProblem{ReasonAnnotationUnsupported, fmt.Sprintf(
					"annotation %s is %s's and does nothing here: take it away, or see what %s can do", quote.Name(key), product, strings.Join(ours[:3], ", "))})
			}
		}
	}
	return out
}

// unknown reports whether a key is meant for Causeway, by its prefix, in any case or nearly
// equal, and is none of ours.
func unknown(key string) bool {
	prefix, _, ok := strings.Cut(key, "/")
	group := v1alpha1.GroupVersion.Group
	meant := ok && len(prefix) <= 2*len(group) && distance(strings.ToLower(prefix), group) <= 2
	return meant && !slices.Contains(ours, key)
}

// equivalent returns Causeway's annotation for MetalLB's; "" for none.
func equivalent(key string) string {
	for own, names := range metalLB {
		if slices.Contains(names, key) {
			return own
		}
	}
	return ""
}

// nearest returns the annotation of ours with the smallest distance.
func nearest(key string) string {
	if len(key) > 100 {
		key = key[:100]
	}
	key = strings.ToLower(key)
	return slices.MinFunc(ours, func(a, b string) int { return cmp.Compare(distance(key, a), distance(key, b)) })
}

// distance returns the Levenshtein distance.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := diagonal
			if a[i] != b[j] {
				change++
			}
			diagonal = row[j+1]
			row[j+1] = min(change, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
