// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"fmt"
	"time"

	ctrl "sigs.k8s.io/controller-runtime"
)

func init() {
	setups = append(setups, setup{
		name: "endpoints",
		when: func(f Features) bool { return f.Endpoints },
		add: func(mgr ctrl.Manager, opts Options) error {
			return setupEndpoints(mgr, opts.EndpointSlices, opts.EndpointSlicesOwnName)
		},
	})
}

// setupEndpoints adds the reconcilers of slices, of Endpoints objects, and of
// what mirrors these, on one feed.
func setupEndpoints(mgr ctrl.Manager, mode EndpointSliceMode, ownName bool) error {
	if err := mode.Validate(); err != nil {
		return err
	}
	feed := newEndpointFeed(mgr.GetCache())
	slices := &EndpointSliceReconciler{
		Client: mgr.GetClient(), Live: mgr.GetAPIReader(), Recorder: mgr.GetEventRecorder("causeway-endpointslice"),
		Mode: mode, OwnName: ownName, feed: feed,
		pacer: pacer{unit: 75 * time.Millisecond, limit: time.Second},
	}
	if err := slices.SetupWithManager(mgr); err != nil {
		return fmt.Errorf("slices: %w", err)
	}
	legacy := &EndpointsReconciler{
		Client: mgr.GetClient(), Mode: mode, feed: feed,
		pacer: pacer{unit: 5 * time.Millisecond, limit: time.Second},
	}
	if err := legacy.SetupWithManager(mgr); err != nil {
		return fmt.Errorf("endpoints objects: %w", err)
	}
	mirror := &EndpointSliceMirroringReconciler{
		Client: mgr.GetClient(), Live: mgr.GetAPIReader(), Recorder: mgr.GetEventRecorder("causeway-endpointslicemirroring"),
		Mode: mode, feed: feed,
	}
	if err := mirror.SetupWithManager(mgr); err != nil {
		return fmt.Errorf("mirrored slices: %w", err)
	}
	return nil
}
