// SPDX-License-Identifier: Apache-2.0

package endpoints

import (
	"errors"
	"time"

	ctrl "sigs.k8s.io/controller-runtime"

	"github.com/causeway-lb/causeway/internal/queue"
)

// SetupWithManager adds the reconcilers of slices, of Endpoints objects, and of
// what mirrors these, on one source. mode is that of Services without the
// annotation; ownName is endpointslice.Input.OwnName for all slices, so that an
// earlier version can be installed.
func SetupWithManager(mgr ctrl.Manager, mode Mode, ownName bool) error {
	if err := mode.Validate(); err != nil {
		return err
	}
	if err := queue.RegisterMetrics(sliceWrites, slicePasses, sliceDelay, sliceServices, sliceObjects); err != nil {
		return err
	}
	src := newSource(mgr.GetCache())
	slices := &SliceReconciler{
		Client: mgr.GetClient(), Live: mgr.GetAPIReader(), Recorder: mgr.GetEventRecorder("causeway-endpointslice"),
		Mode: mode, OwnName: ownName, source: src,
		throttle: queue.WriteThrottle{Unit: 75 * time.Millisecond, Limit: time.Second},
	}
	legacy := &LegacyReconciler{
		Client: mgr.GetClient(), Mode: mode, source: src,
		throttle: queue.WriteThrottle{Unit: 5 * time.Millisecond, Limit: time.Second},
	}
	mirror := &MirrorReconciler{
		Client: mgr.GetClient(), Live: mgr.GetAPIReader(), Recorder: mgr.GetEventRecorder("causeway-endpointslicemirroring"),
		Mode: mode, source: src,
	}
	return errors.Join(slices.setup(mgr), legacy.setup(mgr), mirror.setup(mgr))
}
