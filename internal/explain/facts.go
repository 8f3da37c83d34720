// SPDX-License-Identifier: Apache-2.0

package explain

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-lb/causeway/api/v1alpha1"
	"github.com/causeway-lb/causeway/internal/netaddr"
)

// Facts are what the API says about one Service.
type Facts struct {
	Service *corev1.Service
	Slices  []discoveryv1.EndpointSlice
	// Pods are those that the selector matches; Others, read only when it matches
	// none, are the labels of all Pods in the namespace.
	Pods   []corev1.Pod
	Others []labels.Set
	Nodes  []corev1.Node
	// System is the namespace in which Causeway runs; Agents and Controllers are
	// its Pods.
	System              string
	Agents, Controllers []corev1.Pod
	// Records are those of the Service's LoadBalancer addresses.
	Records []v1alpha1.LoadBalancerAddress
	// Events are about the Service and its records, the latest first.
	Events []corev1.Event
	// Unread says what could not be read, and why.
	Unread []string
	Now    time.Time

	unread map[string]bool // by name of the field
}

// NewScheme knows the types that Read reads.
func NewScheme() (*runtime.Scheme, error) {
	scheme := runtime.NewScheme()
	if err := clientgoscheme.AddToScheme(scheme); err != nil {
		return nil, err
	}
	return scheme, v1alpha1.AddToScheme(scheme)
}

// Read reads the facts about a Service. Only a Service that cannot be read, and
// an API server that does not answer, is an error; what else the user may not
// read goes to Unread. system is the namespace in which Causeway runs.
func Read(ctx context.Context, api client.Reader, service client.ObjectKey, system string) (*Facts, error) {
	f := &Facts{Service: &corev1.Service{}, System: system, Now: time.Now(), unread: map[string]bool{}}
	if err := api.Get(ctx, service, f.Service); err != nil {
		return nil, fmt.Errorf("read Service %s: %w", service, err)
	}
	r := reader{Facts: f, ctx: ctx, api: api}
	in := client.InNamespace(service.Namespace)

	var sliceList discoveryv1.EndpointSliceList
	r.list("EndpointSlices", &sliceList, in, client.MatchingLabels{discoveryv1.LabelServiceName: service.Name})
	f.Slices = sliceList.Items
	r.pods(in)
	var nodes corev1.NodeList
	r.list("Nodes", &nodes)
	f.Nodes = nodes.Items
	f.Agents = r.own("agents", system, "causeway-agent")
	f.Controllers = r.own("controllers", system, "causeway-controller")
	if f.Service.Spec.Type == corev1.ServiceTypeLoadBalancer {
		var records v1alpha1.LoadBalancerAddressList
		r.list("LoadBalancerAddresses", &records)
		f.Records = slices.DeleteFunc(records.Items, func(a v1alpha1.LoadBalancerAddress) bool { return !concerns(&a, f.Service) })
	}
	r.events()
	return f, r.err
}

// concerns tells whether a record is one of the Service's, or of an address that
// the Service shows.
func concerns(record *v1alpha1.LoadBalancerAddress, svc *corev1.Service) bool {
	return slices.ContainsFunc(record.Spec.Services, func(ref v1alpha1.ServiceReference) bool {
		return ref.Namespace == svc.Namespace && ref.Name == svc.Name
	}) || slices.ContainsFunc(svc.Status.LoadBalancer.Ingress, func(in corev1.LoadBalancerIngress) bool {
		a, ok := netaddr.Parse(in.IP)
		return ok && a.String() == record.Spec.Address
	})
}

// reader reads one thing after the other until the API server does not answer.
type reader struct {
	*Facts
	ctx context.Context
	api client.Reader
	err error
}

func (r *reader) list(what string, into client.ObjectList, opts ...client.ListOption) {
	if r.err != nil {
		return
	}
	err := r.api.List(r.ctx, into, opts...)
	switch {
	case err == nil:
		return
	case apierrors.IsForbidden(err):
		r.Unread = append(r.Unread, what+": you may not list them")
	case meta.IsNoMatchError(err):
		r.Unread = append(r.Unread, what+": the API server does not know them; Causeway's custom resources are not installed")
	default:
		r.err = fmt.Errorf("read %s: %w", what, err)
	}
	r.unread[what] = true
}

func (r *reader) pods(in client.ListOption) {
	selector := r.Service.Spec.Selector
	if len(selector) == 0 || r.Service.Spec.Type == corev1.ServiceTypeExternalName {
		return
	}
	var pods corev1.PodList
	r.list("Pods", &pods, in, client.MatchingLabels(selector))
	r.Pods = pods.Items
	if len(r.Pods) > 0 || r.unread["Pods"] {
		return
	}
	var all metav1.PartialObjectMetadataList
	all.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("PodList"))
	r.list("Pods", &all, in)
	for i := range all.Items {
		r.Others = append(r.Others, all.Items[i].Labels)
	}
}

// own lists Pods of Causeway's own.
func (r *reader) own(what, system, name string) []corev1.Pod {
	var pods corev1.PodList
	r.list(what, &pods, client.InNamespace(system), client.MatchingLabels{"app.kubernetes.io/name": name})
	return slices.DeleteFunc(pods.Items, func(p corev1.Pod) bool { return p.DeletionTimestamp != nil })
}

func (r *reader) events() {
	of := func(namespace string, obj client.Object) {
		var events corev1.EventList
		r.list("Events", &events, client.InNamespace(namespace), client.MatchingFields{"involvedObject.uid": string(obj.GetUID())})
		r.Events = append(r.Events, events.Items...)
	}
	of(r.Service.Namespace, r.Service)
	for i := range r.Records {
		if !r.unread["Events"] {
			of(metav1.NamespaceDefault, &r.Records[i]) // where those of cluster-wide objects are
		}
	}
	slices.SortStableFunc(r.Events, func(a, b corev1.Event) int { return cmp.Compare(last(&b).UnixNano(), last(&a).UnixNano()) })
}

// last is when an event happened last, in whichever field its API put that.
func last(e *corev1.Event) time.Time {
	t := e.LastTimestamp.Time
	for _, other := range []time.Time{e.EventTime.Time, e.FirstTimestamp.Time} {
		if t.IsZero() {
			t = other
		}
	}
	if e.Series != nil && e.Series.LastObservedTime.After(t) {
		t = e.Series.LastObservedTime.Time
	}
	return t
}
