// SPDX-License-Identifier: Apache-2.0

package endpoints

import (
	"context"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-lb/causeway/api/v1alpha1"
	"github.com/causeway-lb/causeway/internal/endpointslice"
	"github.com/causeway-lb/causeway/internal/quote"
)

// Mode is which controller manages the slices of a Service where both Causeway and
// kube-controller-manager could. It is the controller's flag --endpoint-slices, and for one
// Service the annotation causeway.dev/endpoint-slices.
//
//	            the other's slices        no other's slices
//	auto        stand by                  keep
//	take-over   relabel and keep          keep
//	hand-back   stand by                  relabel ours for the other, stand by
//
// Relabelling is one update of a slice, which stays where it is with all its
// endpoints: nothing is ever missing or doubled. To take over, switch
// kube-controller-manager's controllers off first
// (--controllers=*,-endpointslice-controller,-endpoints-controller,-endpointslice-mirroring-controller),
// to hand back, switch them on afterwards.
type Mode string

// The modes.
const (
	Auto     Mode = "auto"
	TakeOver Mode = "take-over"
	HandBack Mode = "hand-back"
)

// Validate returns an error if the mode is none of the three.
func (m Mode) Validate() error {
	switch m {
	case "", Auto, TakeOver, HandBack:
		return nil
	}
	return fmt.Errorf("endpoint slices mode %s: use auto, take-over or hand-back", quote.Text(string(m)))
}

// Reasons of the condition v1alpha1.ServiceEndpointSlicesManaged.
const (
	reasonManaged    = "Managed"
	reasonStandingBy = "Standby"
	reasonHandedBack = "HandedBack"
	reasonConflict   = "OwnershipConflict"
	reasonWrongMode  = "ModeInvalid"
)

// ownership is what decides which controller manages a Service's slices, those of its
// selector or those that mirror its Endpoints object. The other controller is that of
// kube-controller-manager.
type ownership struct {
	service *corev1.Service
	mode    Mode // of Services without the annotation
	// controller is the name of the other controller.
	controller string
	// ours and others are the existing slices, by manager.
	ours, others []*discoveryv1.EndpointSlice
	// began is when there was first something to make slices of.
	began time.Time
	// otherActive is true if the other controller manages slices in this cluster.
	otherActive bool
	history
}

// history is what the next decision needs of the last one.
type history struct {
	// alone is true if there were no slices of the other controller. If there are some
	// now, it is alive, and its slices are left alone.
	alone bool
	// yielded is about slices that it took from us.
	yielded yielded
}

// yielded is until when, and for how long, slices are left to the other controller, which
// took them from Causeway. It was alive then; whether it still is shows only when it takes
// them again.
type yielded struct {
	until time.Time
	wait  time.Duration
}

// next yields for twice as long as before.
func (y yielded) next(now time.Time) yielded {
	wait := min(max(2*y.wait, yieldMin), yieldMax)
	return yielded{until: now.Add(wait), wait: wait}
}

const (
	// yieldMin and yieldMax bound how long slices that the other controller took are left
	// to it, in mode take-over, before Causeway takes them back.
	yieldMin = 30 * time.Second
	yieldMax = 10 * time.Minute
)

// decision is which controller manages a Service's slices, and the writes for that.
type decision struct {
	keep   bool                         // Causeway manages the slices
	slices []*discoveryv1.EndpointSlice // those to begin with, if so
	// relabel are updates that hand slices to the other controller; withdraw are slices
	// of Causeway that the other's make superfluous.
	relabel, withdraw []*discoveryv1.EndpointSlice
	again             time.Duration // decide again after this long; 0: when something changes
	history                         // for the next decision

	reason, message string // "" if there is nothing to say
}

// decide looks at the slices that there are and at the mode.
func (o *ownership) decide(now time.Time) decision {
	mode, invalid := modeOf(o.service, o.mode)
	var d decision
	switch mode {
	case TakeOver:
		d = o.takeOver(now)
	case HandBack:
		d = decision{
			relabel: endpointslice.HandBack(o.ours), reason: reasonHandedBack,
			message: "kube-controller-manager keeps the slices, if it runs its " + o.controller,
		}
	default:
		d = o.auto(now)
	}
	if invalid != nil && d.reason == "" {
		d.reason, d.message = reasonWrongMode, invalid.Error()
	}
	// What is handed back is the other's from then on, whether it is alive or not.
	d.alone = len(o.others) == 0 && mode != HandBack || o.alone && mode == TakeOver
	return d
}

// takeOver takes over the other controller's slices. If there are some where there were none
// before, the controller is alive: relabelling would never end, so they are left alone and
// reported. If it has taken Causeway's, as it does with all that have its name, they are
// left to it and taken back at intervals: once it is switched off, they stay Causeway's.
func (o *ownership) takeOver(now time.Time) decision {
	switch conflict := len(o.others) > 0 && o.alone; {
	case !conflict && len(o.others) == 0 && now.Before(o.yielded.until):
		return decision{keep: true, slices: o.ours, history: history{yielded: o.yielded}}
	case !conflict:
		return decision{keep: true, slices: slices.Concat(o.ours, o.others)}
	case len(o.ours) > 0:
		return decision{keep: true, slices: o.ours, reason: reasonConflict, history: history{yielded: o.yielded},
			message: "kube-controller-manager makes slices of this Service too; switch off its " + o.controller + ", or set the mode to auto"}
	case !o.yielded.until.IsZero() && !now.Before(o.yielded.until):
		return decision{keep: true, slices: o.others, history: history{yielded: o.yielded.next(now)}}
	case o.yielded.until.IsZero():
		o.yielded = o.yielded.next(now)
	}
	return decision{again: o.yielded.until.Sub(now), reason: reasonConflict, history: history{yielded: o.yielded},
		message: "kube-controller-manager keeps the slices and has taken Causeway's; switch off its " + o.controller + ", or set the mode to auto"}
}

// auto stands by while the other controller has slices. Causeway's, if there are any, are
// managed until the other's cover them.
func (o *ownership) auto(now time.Time) decision {
	if len(o.others) > 0 {
		if len(o.ours) > 0 && !endpointslice.Covers(o.others, o.ours) {
			return decision{keep: true, slices: o.ours}
		}
		return decision{withdraw: o.ours, reason: reasonStandingBy,
			message: "kube-controller-manager keeps the slices; annotate the Service with " + v1alpha1.EndpointSlicesAnnotation + "=take-over to change that"}
	}
	if age := now.Sub(o.began); len(o.ours) == 0 && o.otherActive && age < graceForOther {
		return decision{again: graceForOther - age}
	}
	return decision{keep: true, slices: o.ours}
}

// modeOf returns the mode of the Service's annotation, or else the given one. An invalid
// annotation is an error and otherwise ignored.
func modeOf(service *corev1.Service, otherwise Mode) (Mode, error) {
	text, ok := service.Annotations[v1alpha1.EndpointSlicesAnnotation]
	if !ok {
		return otherwise, nil
	}
	mode := Mode(text)
	if err := mode.Validate(); err != nil {
		return otherwise, fmt.Errorf("annotation %s: %w", v1alpha1.EndpointSlicesAnnotation, err)
	}
	return mode, nil
}

// carryOut hands slices over as decided, and publishes the decision.
func (w *sliceWriter) carryOut(ctx context.Context, service *corev1.Service, d *decision) error {
	if err := w.write(ctx, &endpointslice.Plan{Update: d.relabel, Delete: d.withdraw}); err != nil {
		return err
	}
	return publishOwnership(ctx, w.client, service, d)
}

// publishOwnership writes the condition, if there is something to report or if the condition
// is no longer true. Most Services never have it, and cost no write.
func publishOwnership(ctx context.Context, writer client.Client, service *corev1.Service, d *decision) error {
	old := meta.FindStatusCondition(service.Status.Conditions, v1alpha1.ServiceEndpointSlicesManaged)
	former := meta.FindStatusCondition(service.Status.Conditions, v1alpha1.FormerServiceEndpointSlices)
	if old == nil && former == nil && d.reason == "" {
		return nil
	}
	wanted := metav1.Condition{
		Type: v1alpha1.ServiceEndpointSlicesManaged, Status: metav1.ConditionFalse, Reason: d.reason, Message: d.message,
		ObservedGeneration: service.Generation,
	}
	if d.keep {
		wanted.Status = metav1.ConditionTrue
	}
	if d.reason == "" {
		wanted.Reason, wanted.Message = reasonManaged, "Causeway keeps the slices"
	}
	if former == nil && old != nil && old.Status == wanted.Status && old.Reason == wanted.Reason && old.Message == wanted.Message {
		return nil
	}
	changed := service.DeepCopy()
	meta.SetStatusCondition(&changed.Status.Conditions, wanted)
	meta.RemoveStatusCondition(&changed.Status.Conditions, v1alpha1.FormerServiceEndpointSlices)
	return patchStatus(ctx, writer, service, changed)
}

// dropOwnership removes the condition of a Service whose slices neither Causeway
// nor the other controller would make.
func dropOwnership(ctx context.Context, writer client.Client, service *corev1.Service) error {
	changed := service.DeepCopy()
	current := meta.RemoveStatusCondition(&changed.Status.Conditions, v1alpha1.ServiceEndpointSlicesManaged)
	former := meta.RemoveStatusCondition(&changed.Status.Conditions, v1alpha1.FormerServiceEndpointSlices)
	if !current && !former {
		return nil
	}
	return patchStatus(ctx, writer, service, changed)
}

// patchStatus changes the condition by a strategic merge, which leaves conditions of other
// writers.
func patchStatus(ctx context.Context, writer client.Client, before, changed *corev1.Service) error {
	err := writer.Status().Patch(ctx, changed, client.StrategicMergeFrom(before))
	if client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("write condition %s: %w", v1alpha1.ServiceEndpointSlicesManaged, err)
	}
	return nil
}
