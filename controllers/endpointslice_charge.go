// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-lb/causeway/api/v1alpha1"
	"github.com/causeway-lb/causeway/internal/endpointslice"
	"github.com/causeway-lb/causeway/internal/quote"
)

// EndpointSliceMode says who keeps the slices of a Service where both Causeway
// and kube-controller-manager could. It is the controller's flag
// --endpoint-slices, and for one Service the annotation
// causeway.dev/endpoint-slices.
//
//	            rival's slices            no rival's slices
//	auto        stand by                  keep
//	take-over   relabel and keep          keep
//	hand-back   stand by                  relabel ours for the rival, stand by
//
// Relabelling is one update of a slice, which stays where it is with all its
// endpoints: nothing is ever missing or doubled. To take over, switch
// kube-controller-manager's controllers off first
// (--controllers=*,-endpointslice-controller,-endpoints-controller,-endpointslice-mirroring-controller),
// to hand back, switch them on afterwards.
type EndpointSliceMode string

// The modes.
const (
	EndpointSlicesAuto     EndpointSliceMode = "auto"
	EndpointSlicesTakeOver EndpointSliceMode = "take-over"
	EndpointSlicesHandBack EndpointSliceMode = "hand-back"
)

// Validate returns an error if the mode is none of the three.
func (m EndpointSliceMode) Validate() error {
	switch m {
	case "", EndpointSlicesAuto, EndpointSlicesTakeOver, EndpointSlicesHandBack:
		return nil
	}
	return fmt.Errorf("endpoint slices mode %s: use auto, take-over or hand-back", quote.Text(string(m)))
}

// Reasons of the condition v1alpha1.ConditionEndpointSlices.
const (
	reasonInCharge   = "InCharge"
	reasonStandingBy = "StandingBy"
	reasonHandedBack = "HandedBack"
	reasonContested  = "Contested"
	reasonWrongMode  = "ModeInvalid"
)

// claim is what it depends on who is in charge of a Service's slices: those that
// follow from its selector, or those that mirror its Endpoints object.
type claim struct {
	service *corev1.Service
	mode    EndpointSliceMode // of Services without the annotation
	// rival is the name of the controller in kube-controller-manager.
	rival string
	// ours and rivals are the slices that there are.
	ours, rivals []*discoveryv1.EndpointSlice
	// began is when there was first something to make slices of.
	began time.Time
	// rivalAbout says that the rival keeps slices somewhere in this cluster.
	rivalAbout bool
	// alone says that there have been no slices of the rival's before. If there
	// are some now, it is alive, and not to be fought.
	alone bool
	// yielded is about slices that it took from us.
	yielded yielded
}

// yielded is until when slices are left to the rival that took them from us, and
// for how long that is. It was alive when it did; that it still is shows only
// when it takes them again.
type yielded struct {
	until time.Time
	wait  time.Duration
}

// next yields for as long again as before and more.
func (y yielded) next(now time.Time) yielded {
	wait := min(max(2*y.wait, yieldMin), yieldMax)
	return yielded{until: now.Add(wait), wait: wait}
}

const (
	// yieldMin and yieldMax bound how long slices are left to a rival that took
	// them from us, in mode take-over, before we take them back.
	yieldMin = 30 * time.Second
	yieldMax = 10 * time.Minute
)

// decision says who is in charge of a Service's slices, and what has to be done
// to make it so.
type decision struct {
	keep   bool                         // Causeway keeps the slices
	slices []*discoveryv1.EndpointSlice // those to begin with, if so
	// relabel are updates that give slices to the rival; withdraw are slices of
	// ours that the rival's make superfluous.
	relabel, withdraw []*discoveryv1.EndpointSlice
	again             time.Duration // decide again after this long; 0: when something changes
	alone             bool          // the next claim's
	yielded           yielded       // the next claim's

	reason, message string // "" if there is nothing to say
}

// plan returns the writes that hand slices over.
func (d *decision) plan() *endpointslice.Plan {
	return &endpointslice.Plan{Update: d.relabel, Delete: d.withdraw}
}

// decide looks at the slices that there are and at the mode.
func (c *claim) decide(now time.Time) decision {
	mode, invalid := modeOf(c.service, c.mode)
	var d decision
	switch mode {
	case EndpointSlicesTakeOver:
		d = c.takeOver(now)
	case EndpointSlicesHandBack:
		d = decision{
			relabel: endpointslice.HandBack(c.ours), reason: reasonHandedBack,
			message: "kube-controller-manager keeps the slices, if it runs its " + c.rival,
		}
	default:
		d = c.auto(now)
	}
	if invalid != nil && d.reason == "" {
		d.reason, d.message = reasonWrongMode, invalid.Error()
	}
	// What we hand back is the rival's from then on, whether it is alive or not.
	d.alone = len(c.rivals) == 0 && mode != EndpointSlicesHandBack || c.alone && mode == EndpointSlicesTakeOver
	return d
}

// takeOver makes the rival's slices ours. Slices that a rival makes when it had
// none before are the work of one that is alive: relabelling those would go on
// for ever, so they are left alone and reported. If it has taken ours, which it
// does with all that have its name, they are left to it and tried again now and
// then: once it is switched off, they stay ours.
func (c *claim) takeOver(now time.Time) decision {
	switch contested := len(c.rivals) > 0 && c.alone; {
	case !contested && len(c.rivals) == 0 && now.Before(c.yielded.until):
		return decision{keep: true, slices: c.ours, yielded: c.yielded}
	case !contested:
		return decision{keep: true, slices: slices.Concat(c.ours, c.rivals)}
	case len(c.ours) > 0:
		return decision{keep: true, slices: c.ours, reason: reasonContested, yielded: c.yielded,
			message: "kube-controller-manager makes slices of this Service too; switch off its " + c.rival + ", or set the mode to auto"}
	case !c.yielded.until.IsZero() && !now.Before(c.yielded.until):
		return decision{keep: true, slices: c.rivals, yielded: c.yielded.next(now)}
	case c.yielded.until.IsZero():
		c.yielded = c.yielded.next(now)
	}
	return decision{again: c.yielded.until.Sub(now), reason: reasonContested, yielded: c.yielded,
		message: "kube-controller-manager keeps the slices and has taken Causeway's; switch off its " + c.rival + ", or set the mode to auto"}
}

// auto stands by while the rival has slices. Ours, if there are any, stay and
// are kept until the rival's cover them.
func (c *claim) auto(now time.Time) decision {
	if len(c.rivals) > 0 {
		if len(c.ours) > 0 && !endpointslice.Covers(c.rivals, c.ours) {
			return decision{keep: true, slices: c.ours}
		}
		return decision{withdraw: c.ours, reason: reasonStandingBy,
			message: "kube-controller-manager keeps the slices; annotate the Service with " + v1alpha1.EndpointSlicesAnnotation + "=take-over to change that"}
	}
	if age := now.Sub(c.began); len(c.ours) == 0 && c.rivalAbout && age < graceForRival {
		return decision{again: graceForRival - age}
	}
	return decision{keep: true, slices: c.ours}
}

// modeOf returns the Service's mode, which is the given one unless it is
// annotated otherwise. An annotation that is none of the modes is an error, and
// otherwise ignored.
func modeOf(service *corev1.Service, otherwise EndpointSliceMode) (EndpointSliceMode, error) {
	text, ok := service.Annotations[v1alpha1.EndpointSlicesAnnotation]
	if !ok {
		return otherwise, nil
	}
	mode := EndpointSliceMode(text)
	if err := mode.Validate(); err != nil {
		return otherwise, fmt.Errorf("annotation %s: %w", v1alpha1.EndpointSlicesAnnotation, err)
	}
	return mode, nil
}

// publishCharge writes the condition, if there is something to say, or if what
// it says has ceased to be true. Most Services never have it, and cost no write.
func publishCharge(ctx context.Context, writer client.Client, service *corev1.Service, d *decision) error {
	old := meta.FindStatusCondition(service.Status.Conditions, v1alpha1.ConditionEndpointSlices)
	if old == nil && d.reason == "" {
		return nil
	}
	wanted := metav1.Condition{
		Type: v1alpha1.ConditionEndpointSlices, Status: metav1.ConditionFalse, Reason: d.reason, Message: d.message,
		ObservedGeneration: service.Generation, LastTransitionTime: metav1.Now(),
	}
	if d.keep {
		wanted.Status = metav1.ConditionTrue
	}
	if d.reason == "" {
		wanted.Reason, wanted.Message = reasonInCharge, "Causeway keeps the slices"
	}
	if old != nil && old.Status == wanted.Status && old.Reason == wanted.Reason && old.Message == wanted.Message {
		return nil
	}
	if old != nil && old.Status == wanted.Status {
		wanted.LastTransitionTime = old.LastTransitionTime
	}
	return patchCharge(ctx, writer, service, wanted)
}

// dropCharge removes the condition of a Service whose slices neither Causeway
// nor its rival would make.
func dropCharge(ctx context.Context, writer client.Client, service *corev1.Service) error {
	if meta.FindStatusCondition(service.Status.Conditions, v1alpha1.ConditionEndpointSlices) == nil {
		return nil
	}
	return patchCharge(ctx, writer, service, map[string]string{"$patch": "delete", "type": v1alpha1.ConditionEndpointSlices})
}

// patchCharge changes the one condition and leaves the others, which have other
// writers: that is what a strategic merge does.
func patchCharge(ctx context.Context, writer client.Client, service *corev1.Service, condition any) error {
	patch, err := json.Marshal(map[string]any{"status": map[string]any{"conditions": []any{condition}}})
	if err != nil {
		return fmt.Errorf("encode condition: %w", err)
	}
	err = writer.Status().Patch(ctx, service.DeepCopy(), client.RawPatch(types.StrategicMergePatchType, patch))
	if client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("write condition %s: %w", v1alpha1.ConditionEndpointSlices, err)
	}
	return nil
}
