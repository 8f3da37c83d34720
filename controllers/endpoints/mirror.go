// SPDX-License-Identifier: Apache-2.0

package endpoints

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"github.com/causeway-lb/causeway/internal/endpointslice"
	"github.com/causeway-lb/causeway/internal/queue"
)

// +kubebuilder:rbac:groups="",resources=endpoints/finalizers,verbs=update

// MirrorReconciler mirrors the Endpoints objects that users write for Services without a
// selector into slices, so that proxies and DNS need slices only. It stands by where
// kube-controller-manager mirrors, takes over and hands back, as SliceReconciler does.
type MirrorReconciler struct {
	Client   client.Client
	Live     client.Reader
	Recorder events.EventRecorder
	Mode     Mode // as for slices

	source *serviceSource
	gauges sliceGauges
	states states[mirrorState]
}

// mirrorState is the state of a Service between passes.
type mirrorState struct {
	history
	unmirrored time.Time // when it was last reported that the object is not mirrored
}

func (r *MirrorReconciler) setup(mgr ctrl.Manager) error {
	return ctrl.NewControllerManagedBy(mgr).
		Named("endpointslicemirroring").
		WatchesRawSource(r.source.on(changeService | changeSlice)).
		WatchesRawSource(source.Kind[client.Object](mgr.GetCache(), &corev1.Endpoints{}, //nolint:staticcheck
			&handler.EnqueueRequestForObject{})).
		WithOptions(controller.Options{RateLimiter: queue.Retries()}).
		Complete(r)
}

// Reconcile brings the mirrored slices of one Endpoints object up to date.
func (r *MirrorReconciler) Reconcile(ctx context.Context, request ctrl.Request) (ctrl.Result, error) {
	for attempt := 1; ; attempt++ {
		result, err := r.reconcile(ctx, request)
		if errors.Is(err, errOutdated) && attempt < attempts {
			continue
		}
		if err != nil {
			return ctrl.Result{}, fmt.Errorf("mirror Endpoints %s: %w", request.NamespacedName, err)
		}
		return result, nil
	}
}

func (r *MirrorReconciler) reconcile(ctx context.Context, request ctrl.Request) (ctrl.Result, error) {
	view := r.source.index.View(request.NamespacedName)
	writer := sliceWriter{client: r.Client, live: r.Live, index: r.source.index}
	if view.Service != nil && len(view.Service.Spec.Selector) > 0 {
		r.forget(request.NamespacedName)
		return r.giveWay(ctx, &writer, &view)
	}
	endpoints := &corev1.Endpoints{} //nolint:staticcheck
	err := r.Client.Get(ctx, request.NamespacedName, endpoints)
	if client.IgnoreNotFound(err) != nil {
		return ctrl.Result{}, err
	}
	if apierrors.IsNotFound(err) || view.Service == nil || !endpointslice.Mirrors(endpoints) {
		if err := r.nothingToMirror(ctx, &writer, request.NamespacedName, &view); err != nil {
			return ctrl.Result{}, err
		}
		r.reportGenerated(&view, endpoints, time.Now())
		return ctrl.Result{}, nil
	}
	decision := r.decide(&view, endpoints, time.Now())
	if err := writer.carryOut(ctx, view.Service, &decision); err != nil {
		return ctrl.Result{}, err
	}
	if !decision.keep {
		r.gauges.set(request.NamespacedName, &serviceCount{})
		return ctrl.Result{RequeueAfter: decision.again}, nil
	}
	// Slices of a selector that the Service had before become mirrored ones; otherwise
	// their endpoints would stay alongside the new ones.
	existing := slices.Concat(decision.slices, endpointslice.Owned(view.Service, view.Slices))
	plan := endpointslice.ComputeMirror(view.Service, endpoints, existing)
	for _, problem := range plan.Problems {
		r.Recorder.Eventf(endpoints, nil, corev1.EventTypeWarning, problem.Reason, "Mirror", "%s", problem.Message)
	}
	if err := writer.write(ctx, &plan); err != nil {
		return ctrl.Result{}, err
	}
	r.gauges.set(request.NamespacedName, &serviceCount{managed: true, endpoints: plan.Endpoints, slices: plan.Slices, needed: plan.Needed})
	return ctrl.Result{}, nil
}

// decide returns who manages the slices that mirror the object.
func (r *MirrorReconciler) decide(view *endpointslice.View, endpoints *corev1.Endpoints, now time.Time) decision { //nolint:staticcheck
	name := client.ObjectKeyFromObject(view.Service)
	began := view.Service.CreationTimestamp.Time
	if made := endpoints.CreationTimestamp.Time; made.After(began) {
		began = made
	}
	state := r.states.of(name)
	o := ownership{
		service: view.Service, mode: r.Mode, controller: "endpointslice-mirroring-controller",
		ours: endpointslice.Mirrored(view.Slices), others: endpointslice.KubeMirrored(view.Slices),
		began: began, otherActive: r.source.index.KubeManagedSlices() > 0, history: state.history,
	}
	d := o.decide(now)
	state.history = d.history
	return d
}

// forget drops the state of a Service of which nothing is mirrored.
func (r *MirrorReconciler) forget(name types.NamespacedName) {
	r.gauges.set(name, nil)
	r.states.forget(name)
}

// nothingToMirror deletes mirrored slices whose Endpoints object or Service is gone, or
// whose object is not to be mirrored. It also deletes slices of a selector that the
// Service had before: no controller would remove Pods from them.
func (r *MirrorReconciler) nothingToMirror(ctx context.Context, writer *sliceWriter, name types.NamespacedName, view *endpointslice.View) error {
	r.gauges.set(name, nil)
	gone := endpointslice.Mirrored(view.Slices)
	if view.Service == nil {
		r.forget(name)
		return writer.delete(ctx, gone)
	}
	if err := dropOwnership(ctx, r.Client, view.Service); err != nil {
		return err
	}
	former := endpointslice.Owned(view.Service, view.Slices)
	if mode, _ := modeOf(view.Service, r.Mode); mode == TakeOver {
		former = append(former, slices.DeleteFunc(endpointslice.KubeManaged(view.Service, view.Slices), func(slice *discoveryv1.EndpointSlice) bool {
			return !endpointslice.SliceStandsForPods(slice)
		})...)
	}
	if err := writer.delete(ctx, slices.Concat(gone, former)); err != nil {
		return err
	}
	if len(former) > 0 && view.Service.DeletionTimestamp == nil && view.Service.Spec.Type != corev1.ServiceTypeExternalName {
		r.Recorder.Eventf(view.Service, nil, corev1.EventTypeNormal, "EndpointSlicesRemoved", "Mirror", "%s",
			"the Service no longer has a selector: the EndpointSlices that followed from it are deleted; write EndpointSlices of your own, or set a selector")
	}
	return nil
}

// reportGenerated reports on the Service why its Endpoints object is not mirrored, if a
// controller made it and it stays.
func (r *MirrorReconciler) reportGenerated(view *endpointslice.View, endpoints *corev1.Endpoints, now time.Time) { //nolint:staticcheck
	if view.Service == nil || endpoints.Name == "" || !endpointslice.Generated(endpoints) || leftBehind(view.Service, endpoints, r.Mode) {
		return
	}
	state := r.states.of(client.ObjectKeyFromObject(view.Service))
	if now.Sub(state.unmirrored) < reportEvery {
		return
	}
	state.unmirrored = now
	r.Recorder.Eventf(view.Service, nil, corev1.EventTypeWarning, endpointslice.ReasonNotMirrored, "Mirror",
		"Endpoints %s was made from the selector that the Service had, so that it is not mirrored to EndpointSlices; "+
			"delete it, or take its label %s and its annotation %s away if its addresses are yours",
		endpoints.Name, endpointslice.LegacyManagedByLabel, corev1.EndpointsLastChangeTriggerTime)
}

// giveWay deletes the mirrored slices of a Service that has a selector now, once
// there are slices that follow from it.
func (r *MirrorReconciler) giveWay(ctx context.Context, writer *sliceWriter, view *endpointslice.View) (ctrl.Result, error) {
	mirrored := endpointslice.Mirrored(view.Slices)
	if len(mirrored) == 0 {
		return ctrl.Result{}, nil
	}
	if len(endpointslice.Owned(view.Service, view.Slices))+len(endpointslice.KubeManaged(view.Service, view.Slices)) == 0 {
		return ctrl.Result{RequeueAfter: time.Second}, nil
	}
	return ctrl.Result{}, writer.delete(ctx, mirrored)
}
