// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"github.com/causeway-lb/causeway/internal/endpointslice"
)

// +kubebuilder:rbac:groups="",resources=endpoints/finalizers,verbs=update

// EndpointSliceMirroringReconciler mirrors the Endpoints objects that users
// write for Services without a selector into slices, so that proxies and DNS
// need to know slices only. It stands by where kube-controller-manager mirrors,
// takes over and hands back, as EndpointSliceReconciler does.
type EndpointSliceMirroringReconciler struct {
	Client   client.Client
	Live     client.Reader
	Recorder events.EventRecorder
	Mode     EndpointSliceMode // as for slices

	feed   *endpointFeed
	gauges sliceGauges

	mu    sync.Mutex
	alone map[types.NamespacedName]bool // see claim
}

// SetupWithManager adds the reconciler to the manager.
func (r *EndpointSliceMirroringReconciler) SetupWithManager(mgr ctrl.Manager) error {
	return ctrl.NewControllerManagedBy(mgr).
		Named("endpointslicemirroring").
		WatchesRawSource(r.feed.Source(changeService | changeSlice)).
		WatchesRawSource(source.Kind[client.Object](mgr.GetCache(), &corev1.Endpoints{}, //nolint:staticcheck
			&handler.EnqueueRequestForObject{})).
		WithOptions(controller.Options{RateLimiter: retries()}).
		Complete(r)
}

// Reconcile makes the mirrored slices of one Endpoints object what they should
// be.
func (r *EndpointSliceMirroringReconciler) Reconcile(ctx context.Context, request ctrl.Request) (ctrl.Result, error) {
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

func (r *EndpointSliceMirroringReconciler) reconcile(ctx context.Context, request ctrl.Request) (ctrl.Result, error) {
	view := r.feed.index.View(request.NamespacedName)
	writer := sliceWriter{client: r.Client, live: r.Live, index: r.feed.index}
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
		return ctrl.Result{}, r.nothingToMirror(ctx, &writer, request.NamespacedName, &view)
	}
	decision := r.decide(&view, endpoints, time.Now())
	if err := writer.write(ctx, decision.plan()); err != nil {
		return ctrl.Result{}, err
	}
	if err := publishCharge(ctx, r.Client, view.Service, &decision); err != nil {
		return ctrl.Result{}, err
	}
	if !decision.keep {
		r.gauges.set(request.NamespacedName, &serviceCount{})
		return ctrl.Result{RequeueAfter: decision.again}, nil
	}
	// Slices that followed from a selector which the Service had before become
	// mirrored ones, else their endpoints would stay for ever beside the new.
	existing := slices.Concat(decision.slices, endpointslice.Owned(view.Slices))
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

// decide says who is in charge of the slices that mirror the object.
func (r *EndpointSliceMirroringReconciler) decide(view *endpointslice.View, endpoints *corev1.Endpoints, now time.Time) decision { //nolint:staticcheck
	name := client.ObjectKeyFromObject(view.Service)
	began := view.Service.CreationTimestamp.Time
	if made := endpoints.CreationTimestamp.Time; made.After(began) {
		began = made
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	c := claim{
		service: view.Service, mode: r.Mode, rival: "endpointslice-mirroring-controller",
		ours: endpointslice.Mirrored(view.Slices), rivals: endpointslice.RivalMirrored(view.Slices),
		began: began, rivalAbout: r.feed.index.RivalSlices() > 0, alone: r.alone[name],
	}
	d := c.decide(now)
	if r.alone == nil {
		r.alone = map[types.NamespacedName]bool{}
	}
	r.alone[name] = d.alone
	return d
}

// forget drops what is remembered of a Service of which nothing is mirrored.
func (r *EndpointSliceMirroringReconciler) forget(name types.NamespacedName) {
	r.gauges.set(name, nil)
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.alone, name)
}

// nothingToMirror deletes mirrored slices of which the object is gone, or not to
// be mirrored, or the Service is gone.
func (r *EndpointSliceMirroringReconciler) nothingToMirror(ctx context.Context, writer *sliceWriter, name types.NamespacedName, view *endpointslice.View) error {
	r.forget(name)
	if view.Service != nil {
		if err := dropCharge(ctx, r.Client, view.Service); err != nil {
			return err
		}
	}
	return writer.delete(ctx, endpointslice.Mirrored(view.Slices))
}

// giveWay deletes the mirrored slices of a Service that has a selector now, once
// there are slices that follow from it.
func (r *EndpointSliceMirroringReconciler) giveWay(ctx context.Context, writer *sliceWriter, view *endpointslice.View) (ctrl.Result, error) {
	mirrored := endpointslice.Mirrored(view.Slices)
	if len(mirrored) == 0 {
		return ctrl.Result{}, nil
	}
	if len(endpointslice.Owned(view.Slices))+len(endpointslice.Rivals(view.Slices)) == 0 {
		return ctrl.Result{RequeueAfter: time.Second}, nil
	}
	return ctrl.Result{}, writer.delete(ctx, mirrored)
}
