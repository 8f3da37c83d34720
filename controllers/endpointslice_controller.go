// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"

	"github.com/causeway-lb/causeway/internal/endpointslice"
	"github.com/causeway-lb/causeway/internal/provisioner"
)

// +kubebuilder:rbac:groups="",resources=services;pods;nodes,verbs=list;watch
// +kubebuilder:rbac:groups="",resources=services/status,verbs=patch
// +kubebuilder:rbac:groups="",resources=services/finalizers,verbs=update
// +kubebuilder:rbac:groups=discovery.k8s.io,resources=endpointslices,verbs=list;watch;create;update;delete
// +kubebuilder:rbac:groups=events.k8s.io,resources=events,verbs=create;patch

const (
	// graceForRival is how long a new Service is left to another controller that
	// keeps slices in this cluster, before Causeway makes them.
	graceForRival = 3 * time.Second

	// compactAfter is how long the slices of a Service must have been sparse
	// before they are written for no other reason.
	compactAfter = 5 * time.Minute

	// pacedSlices is up to how many slices a Service is never held up.
	pacedSlices = 2

	// graceForHand is how long a Service without a selector may be without slices
	// before that is reported.
	graceForHand = 30 * time.Second

	// reportEvery is how often a problem that stays is reported, if there are
	// passes.
	reportEvery = 10 * time.Minute

	// renameAfter is how long slices keep the manager's name of an earlier version
	// after this process began to write, and renameWithin over how long they are
	// renamed then.
	renameAfter  = 10 * time.Minute
	renameWithin = 5 * time.Minute

	// attempts is how often a pass is repeated at once when another writer was
	// there first.
	attempts = 4
)

// EndpointSliceReconciler keeps the EndpointSlices of Services with a selector.
// A pass reads the index only, so its cost follows from the Service's size, and
// writes the slices that changed in parallel.
//
// It stands by for Services whose slices kube-controller-manager keeps; see
// EndpointSliceMode for taking over and handing back.
type EndpointSliceReconciler struct {
	Client   client.Client
	Live     client.Reader // past the cache
	Recorder events.EventRecorder
	Mode     EndpointSliceMode // of Services without the annotation; "" means auto

	// OwnName is endpointslice.Input.OwnName for all slices, so that an earlier
	// version can be installed.
	OwnName bool

	// Workers is how many Services are dealt with at a time; 0 means 8.
	Workers int

	feed   *endpointFeed
	gauges sliceGauges
	pacer  pacer

	mu     sync.Mutex
	began  time.Time // see renameIn
	states map[types.NamespacedName]*serviceState
}

// serviceState is what the reconciler remembers of a Service between passes.
// Nothing depends on it but when and how often something is done.
type serviceState struct {
	sparseSince time.Time            // zero: not sparse
	alone       bool                 // see claim
	yielded     yielded              // see claim
	reported    map[string]time.Time // when each Problem's reason was last reported
}

// SetupWithManager adds the reconciler to the manager.
func (r *EndpointSliceReconciler) SetupWithManager(mgr ctrl.Manager) error {
	return ctrl.NewControllerManagedBy(mgr).
		Named("endpointslice").
		WatchesRawSource(r.feed.Source(changeService | changePod | changeNode | changeSlice)).
		WithOptions(controller.Options{MaxConcurrentReconciles: cmp.Or(r.Workers, 8), RateLimiter: retries()}).
		Complete(r)
}

// Reconcile makes one pass over a Service.
func (r *EndpointSliceReconciler) Reconcile(ctx context.Context, request ctrl.Request) (ctrl.Result, error) {
	started := time.Now()
	if wait := r.pacer.wait(request.NamespacedName, started); wait > 0 {
		return ctrl.Result{RequeueAfter: wait}, nil
	}
	verified := false
	for attempt := 1; ; attempt++ {
		pass := r.newPass(request.NamespacedName)
		pass.verified = verified
		result, err := pass.run(ctx)
		verified = pass.verified
		if err != nil {
			r.feed.index.Retrigger(request.NamespacedName, pass.trigger)
		}
		if errors.Is(err, errOutdated) && attempt < attempts {
			continue
		}
		if err != nil {
			pass.outcome = "error"
			err = fmt.Errorf("keep slices of Service %s: %w", request.NamespacedName, err)
		}
		slicePasses.WithLabelValues(pass.outcome).Observe(time.Since(started).Seconds())
		return result, err
	}
}

// slicePass is one pass over one Service.
type slicePass struct {
	r       *EndpointSliceReconciler
	name    types.NamespacedName
	view    endpointslice.View
	trigger time.Time // when what the pass is due to happened
	state   *serviceState
	outcome string // for the metric
	// verified says that the index has just been compared with the API.
	verified bool
}

func (r *EndpointSliceReconciler) newPass(name types.NamespacedName) *slicePass {
	// The time first: a change between the two is then dealt with, and at worst
	// named once more.
	trigger := r.feed.index.TakeTrigger(name)
	pass := &slicePass{r: r, name: name, trigger: trigger, view: r.feed.index.View(name), outcome: "unchanged"}
	r.mu.Lock()
	defer r.mu.Unlock()
	if pass.view.Service == nil {
		delete(r.states, name)
		return pass
	}
	if r.states == nil {
		r.states = map[types.NamespacedName]*serviceState{}
	}
	if r.states[name] == nil {
		r.states[name] = &serviceState{}
	}
	pass.state = r.states[name]
	return pass
}

func (p *slicePass) writer() *sliceWriter {
	return &sliceWriter{client: p.r.Client, live: p.r.Live, index: p.r.feed.index}
}

func (p *slicePass) run(ctx context.Context) (ctrl.Result, error) {
	service := p.view.Service
	switch {
	case service == nil:
		// Its slices are the garbage collector's, by their owner reference.
		p.r.gauges.set(p.name, nil)
		p.r.pacer.forget(p.name)
		return ctrl.Result{}, nil
	case service.Spec.Type == corev1.ServiceTypeExternalName:
		// A name elsewhere has no endpoints here; DNS answers with a CNAME.
		p.r.gauges.set(p.name, nil)
		if err := dropCharge(ctx, p.r.Client, service); err != nil {
			return ctrl.Result{}, err
		}
		return ctrl.Result{}, p.writer().delete(ctx, endpointslice.Owned(service, p.view.Slices))
	case len(service.Spec.Selector) == 0:
		// Somebody else makes its slices, or EndpointSliceMirroringReconciler.
		p.r.gauges.set(p.name, nil)
		return p.checkHandMade(time.Now()), nil
	}
	decision := p.decide(time.Now())
	if err := p.writer().write(ctx, decision.plan()); err != nil {
		return ctrl.Result{}, err
	}
	if err := publishCharge(ctx, p.r.Client, service, &decision); err != nil {
		return ctrl.Result{}, err
	}
	if !decision.keep {
		p.outcome = "standby"
		p.r.gauges.set(p.name, &serviceCount{})
		return ctrl.Result{RequeueAfter: decision.again}, nil
	}
	return p.keep(ctx, decision.slices)
}

// decide says who is in charge of the Service's slices.
func (p *slicePass) decide(now time.Time) decision {
	c := claim{
		service: p.view.Service, mode: p.r.Mode, rival: "endpointslice-controller",
		ours: endpointslice.Owned(p.view.Service, p.view.Slices), rivals: endpointslice.Rivals(p.view.Service, p.view.Slices),
		began: p.view.Service.CreationTimestamp.Time, rivalAbout: p.r.feed.index.RivalSlices() > 0,
		alone: p.state.alone, yielded: p.state.yielded,
	}
	d := c.decide(now)
	p.state.alone, p.state.yielded = d.alone, d.yielded
	return d
}

// keep makes the slices what they should be.
func (p *slicePass) keep(ctx context.Context, existing []*discoveryv1.EndpointSlice) (ctrl.Result, error) {
	now := time.Now()
	renameIn := p.r.renameIn(p.name, now)
	compact := !p.state.sparseSince.IsZero() && now.Sub(p.state.sparseSince) >= compactAfter
	plan := endpointslice.Compute(endpointslice.Input{
		Service: p.view.Service, Pods: p.view.Pods, Slices: existing,
		Nodes: p.view.NodeByName, Shares: p.view.Shares, TriggerTime: p.trigger, Compact: compact,
		OwnName: p.r.OwnName || endpointslice.HasOwnName(existing) && renameIn > 0,
	})
	if plan.Duplicates > 0 && !p.verified {
		// Another replica may have removed an endpoint from the one slice, and we
		// from the other. Duplicates are rare: they are left by writes that failed.
		p.verified = true
		return ctrl.Result{}, cmp.Or(p.writer().refreshAll(ctx, p.name, p.view.Slices), errOutdated)
	}
	if err := p.writer().write(ctx, &plan); err != nil {
		return ctrl.Result{}, err
	}
	if !plan.Empty() {
		p.outcome = "written"
		if plan.Slices > pacedSlices {
			p.r.pacer.wrote(p.name, plan.Writes(), time.Now())
		}
		if !p.trigger.IsZero() {
			sliceDelay.Observe(now.Sub(p.trigger).Seconds())
		}
		ctrl.LoggerFrom(ctx).V(1).Info("Wrote slices", "service", p.name, "created", len(plan.Create),
			"updated", len(plan.Update)+len(plan.Shrink), "deleted", len(plan.Delete), "endpoints", plan.Endpoints)
	}
	p.r.gauges.set(p.name, &serviceCount{managed: true, endpoints: plan.Endpoints, slices: plan.Slices, needed: plan.Needed})
	p.report(slices.Concat(plan.Problems, p.foreignFamilies(), p.annotations()), now)
	result := p.scheduleCompaction(&plan, now)
	if renameIn > 0 && !p.r.OwnName && endpointslice.HasOwnName(existing) {
		result.RequeueAfter = soonest(result.RequeueAfter, renameIn)
	}
	return result, nil
}

// renameIn is how long the Service's slices still keep the manager's name that an
// earlier version gave them: that one knows them by it alone, and while an
// upgrade is under way it may lead once more.
func (r *EndpointSliceReconciler) renameIn(name types.NamespacedName, now time.Time) time.Duration {
	r.mu.Lock()
	if r.began.IsZero() {
		r.began = now
	}
	began := r.began
	r.mu.Unlock()
	spread := fnv.New32a()
	_, _ = spread.Write([]byte(name.String()))
	return began.Add(renameAfter + time.Duration(spread.Sum32())%renameWithin).Sub(now)
}

// scheduleCompaction remembers since when the slices are sparse, and comes back
// when they have been so for long enough.
func (p *slicePass) scheduleCompaction(plan *endpointslice.Plan, now time.Time) ctrl.Result {
	if !plan.Sparse() {
		p.state.sparseSince = time.Time{}
		return ctrl.Result{}
	}
	if p.state.sparseSince.IsZero() {
		p.state.sparseSince = now
	}
	return ctrl.Result{RequeueAfter: max(time.Second, compactAfter-now.Sub(p.state.sparseSince))}
}

// checkHandMade reports what is wrong with the slices that somebody keeps for a
// Service without a selector, or that there are none.
func (p *slicePass) checkHandMade(now time.Time) ctrl.Result {
	problems := append(p.foreignFamilies(), p.annotations()...)
	if len(p.view.Slices) == 0 {
		if wait := graceForHand - now.Sub(p.view.Service.CreationTimestamp.Time); wait > 0 {
			return ctrl.Result{RequeueAfter: wait}
		}
		problems = append(problems, endpointslice.Problem{Reason: endpointslice.ReasonSelectorEmpty, Message: "the Service has no selector, " +
			"and no EndpointSlice names it: connections are refused; set a selector, or write an EndpointSlice with the label kubernetes.io/service-name"})
	}
	p.report(problems, now)
	return ctrl.Result{}
}

// foreignFamilies reports slices that somebody wrote for a family which the
// Service does not have.
func (p *slicePass) foreignFamilies() []endpointslice.Problem {
	families := endpointslice.Families(p.view.Service)
	names := endpointslice.ForeignFamilies(p.view.Slices, families)
	if len(names) == 0 {
		return nil
	}
	slices.Sort(names)
	return []endpointslice.Problem{{Reason: endpointslice.ReasonFamilyForeign, Message: fmt.Sprintf(
		"EndpointSlice %s has an addressType that is not among the Service's ipFamilies, so nothing uses it; delete it or change ipFamilyPolicy",
		names[0])}}
}

// annotations reports annotations to which nobody listens. Those of Services of
// type LoadBalancer LoadBalancerReconciler reports.
func (p *slicePass) annotations() []endpointslice.Problem {
	if p.view.Service.Spec.Type == corev1.ServiceTypeLoadBalancer {
		return nil
	}
	var out []endpointslice.Problem
	for _, problem := range provisioner.AnnotationProblems(p.view.Service, false) {
		if problem.Reason == provisioner.ReasonAnnotationUnknown {
			out = append(out, endpointslice.Problem{Reason: problem.Reason, Message: problem.Message})
		}
	}
	return out
}

// report makes an event of each problem, of one reason not more often than once
// in reportEvery: what changes meanwhile is how many Pods are concerned.
func (p *slicePass) report(problems []endpointslice.Problem, now time.Time) {
	reported := make(map[string]time.Time, len(problems))
	for _, problem := range problems {
		reported[problem.Reason] = p.state.reported[problem.Reason]
		if now.Sub(reported[problem.Reason]) >= reportEvery {
			reported[problem.Reason] = now
			p.r.Recorder.Eventf(p.view.Service, nil, corev1.EventTypeWarning, problem.Reason, "KeepSlices", "%s", problem.Message)
		}
	}
	p.state.reported = reported
}
