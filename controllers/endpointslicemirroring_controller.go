// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/tools/events"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
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

	feed *endpointFeed
}

// SetupWithManager adds the reconciler to the manager.
func (r *EndpointSliceMirroringReconciler) SetupWithManager(mgr ctrl.Manager) error {
	return ctrl.NewControllerManagedBy(mgr).
		Named("endpointslicemirroring").
		WatchesRawSource(r.feed.Source(changeService | changeSlice)).
		WatchesRawSource(source.Kind[client.Object](mgr.GetCache(), &corev1.Endpoints{}, //nolint:staticcheck
			&handler.EnqueueRequestForObject{})).
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
	mirrored := endpointslice.Mirrored(view.Slices)
	writer := sliceWriter{client: r.Client, live: r.Live, index: r.feed.index}
	if view.Service != nil && len(view.Service.Spec.Selector) > 0 {
		return r.giveWay(ctx, &writer, &view, mirrored)
	}
	endpoints := &corev1.Endpoints{} //nolint:staticcheck
	err := r.Client.Get(ctx, request.NamespacedName, endpoints)
	if client.IgnoreNotFound(err) != nil {
		return ctrl.Result{}, err
	}
	if apierrors.IsNotFound(err) || view.Service == nil || !endpointslice.Mirrors(endpoints) {
		return ctrl.Result{}, writer.delete(ctx, mirrored)
	}
	mode, _ := modeOf(view.Service, r.Mode) // a wrong one counts as none
	rivals := endpointslice.RivalMirrored(view.Slices)
	switch {
	case mode == EndpointSlicesHandBack:
		plan := endpointslice.Plan{Update: endpointslice.HandBack(mirrored)}
		return ctrl.Result{}, writer.write(ctx, &plan)
	case len(rivals) > 0 && mode != EndpointSlicesTakeOver:
		return ctrl.Result{}, writer.delete(ctx, mirrored)
	}
	// Slices that followed from a selector which the Service had before become
	// mirrored ones, else their endpoints would stay for ever beside the new.
	existing := slices.Concat(mirrored, rivals, endpointslice.Owned(view.Slices))
	plan := endpointslice.ComputeMirror(view.Service, endpoints, existing)
	for _, problem := range plan.Problems {
		r.Recorder.Eventf(endpoints, nil, corev1.EventTypeWarning, problem.Reason, "Mirror", "%s", problem.Message)
	}
	return ctrl.Result{}, writer.write(ctx, &plan)
}

// giveWay deletes the mirrored slices of a Service that has a selector now, once
// there are slices that follow from it.
func (r *EndpointSliceMirroringReconciler) giveWay(ctx context.Context, writer *sliceWriter, view *endpointslice.View, mirrored []*discoveryv1.EndpointSlice) (ctrl.Result, error) {
	if len(mirrored) == 0 {
		return ctrl.Result{}, nil
	}
	if len(endpointslice.Owned(view.Slices))+len(endpointslice.Rivals(view.Slices)) == 0 {
		return ctrl.Result{RequeueAfter: time.Second}, nil
	}
	return ctrl.Result{}, writer.delete(ctx, mirrored)
}
