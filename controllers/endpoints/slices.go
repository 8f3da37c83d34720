// SPDX-License-Identifier: Apache-2.0

package endpoints

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"slices"
	"sync"
	"sync/atomic"
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
	"github.com/causeway-lb/causeway/internal/queue"
)

// +kubebuilder:rbac:groups="",resources=services;pods;nodes,verbs=list;watch
// +kubebuilder:rbac:groups="",resources=services/status,verbs=patch
// +kubebuilder:rbac:groups="",resources=services/finalizers,verbs=update
// +kubebuilder:rbac:groups=discovery.k8s.io,resources=endpointslices,verbs=list;watch;create;update;delete
// +kubebuilder:rbac:groups=events.k8s.io,resources=events,verbs=create;patch

const (
	// graceForOther is how long a new Service is left to another controller that
	// keeps slices in this cluster, before Causeway makes them.
	graceForOther = 3 * time.Second

	// compactAfter is how long the slices of a Service must have been sparse
	// before they are written for no other reason.
	compactAfter = 5 * time.Minute

	// pacedSlices is the number of slices up to which a Service is not throttled.
	pacedSlices = 2

	// graceForManual is how long a Service without a selector may be without slices
	// before that is reported.
	graceForManual = 30 * time.Second

	// reportEvery is how often a problem that stays is reported, if there are
	// passes.
	reportEvery = 10 * time.Minute

	// renameAfter is how long slices keep the manager's name of an earlier version
	// after this process began to write, and renameWithin over how long they are
	// renamed then.
	renameAfter  = 10 * time.Minute
	renameWithin = 5 * time.Minute

	// attempts is how often a pass is repeated immediately when another writer was
	// there first.
	attempts = 4
)

// SliceReconciler manages the EndpointSlices of Services with a selector. A pass reads the
// index only, so that its cost depends on the Service's size, and writes the slices that
// changed in parallel.
//
// It stands by for Services whose slices kube-controller-manager manages; see Mode for
// taking over and handing back.
type SliceReconciler struct {
	Client   client.Client
	Live     client.Reader // past the cache
	Recorder events.EventRecorder
	Mode     Mode // of Services without the annotation; "" means auto

	// OwnName is endpointslice.Input.OwnName for all slices, so that an earlier
	// version can be installed.
	OwnName bool

	// Workers is how many Services are reconciled in parallel; 0 means 8.
	Workers int

	source   *serviceSource
	gauges   sliceGauges
	throttle queue.WriteThrottle

	states states[serviceState]
	began  atomic.Int64 // UnixNano of the first pass; see renameIn
}

// serviceState is the state of a Service between passes. Only when and how often something
// is done depends on it.
type serviceState struct {
	history
	sparseSince time.Time            // zero: not sparse
	reported    map[string]time.Time // when each Problem's reason was last reported
}

// states has a reconciler's state of each Service between passes. The lock is for the map:
// a Service has one pass at a time.
type states[T any] struct {
	mu  sync.Mutex
	all map[types.NamespacedName]*T
}

// of returns the state of a Service, zero at first.
func (s *states[T]) of(name types.NamespacedName) *T {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.all == nil {
		s.all = map[types.NamespacedName]*T{}
	}
	if s.all[name] == nil {
		s.all[name] = new(T)
	}
	return s.all[name]
}

func (s *states[T]) forget(name types.NamespacedName) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.all, name)
}

func (r *SliceReconciler) setup(mgr ctrl.Manager) error {
	return ctrl.NewControllerManagedBy(mgr).
		Named("endpointslice").
		WatchesRawSource(r.source.on(changeService | changePod | changeNode | changeSlice)).
		WithOptions(controller.Options{MaxConcurrentReconciles: cmp.Or(r.Workers, 8), RateLimiter: queue.Retries()}).
		Complete(r)
}

// Reconcile makes one pass over a Service.
func (r *SliceReconciler) Reconcile(ctx context.Context, request ctrl.Request) (ctrl.Result, error) {
	started := time.Now()
	if wait := r.throttle.Wait(request.NamespacedName, started); wait > 0 {
		return ctrl.Result{RequeueAfter: wait}, nil
	}
	verified := false
	for attempt := 1; ; attempt++ {
		pass := r.newPass(request.NamespacedName)
		pass.verified = verified
		result, err := pass.run(ctx)
		verified = pass.verified
		if err != nil {
			r.source.index.Retrigger(request.NamespacedName, pass.trigger)
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
	r       *SliceReconciler
	name    types.NamespacedName
	view    endpointslice.View
	trigger time.Time // when the change happened that caused the pass
	state   *serviceState
	outcome string // for the metric
	// verified says that the index has just been compared with the API.
	verified bool
}

func (r *SliceReconciler) newPass(name types.NamespacedName) *slicePass {
	// The trigger first: a change between the two calls is then handled in this pass, and
	// at worst triggers once more.
	trigger := r.source.index.TakeTrigger(name)
	pass := &slicePass{r: r, name: name, trigger: trigger, view: r.source.index.View(name), outcome: "unchanged"}
	if pass.view.Service == nil {
		r.states.forget(name)
	} else {
		pass.state = r.states.of(name)
	}
	return pass
}

func (p *slicePass) writer() *sliceWriter {
	return &sliceWriter{client: p.r.Client, live: p.r.Live, index: p.r.source.index}
}

func (p *slicePass) run(ctx context.Context) (ctrl.Result, error) {
	service := p.view.Service
	switch {
	case service == nil:
		// Its slices are the garbage collector's, by their owner reference.
		p.r.gauges.set(p.name, nil)
		p.r.throttle.Forget(p.name)
		return ctrl.Result{}, nil
	case service.Spec.Type == corev1.ServiceTypeExternalName:
		// A name elsewhere has no endpoints here; DNS answers with a CNAME.
		p.r.gauges.set(p.name, nil)
		if err := dropOwnership(ctx, p.r.Client, service); err != nil {
			return ctrl.Result{}, err
		}
		return ctrl.Result{}, p.writer().delete(ctx, endpointslice.Owned(service, p.view.Slices))
	case len(service.Spec.Selector) == 0:
		// Its slices are written by others, or by MirrorReconciler.
		p.r.gauges.set(p.name, nil)
		return p.checkManual(time.Now()), nil
	}
	decision := p.decide(time.Now())
	if err := p.writer().carryOut(ctx, service, &decision); err != nil {
		return ctrl.Result{}, err
	}
	if !decision.keep {
		p.outcome = "standby"
		p.r.gauges.set(p.name, &serviceCount{})
		return ctrl.Result{RequeueAfter: decision.again}, nil
	}
	return p.keep(ctx, decision.slices)
}

// decide returns who manages the Service's slices.
func (p *slicePass) decide(now time.Time) decision {
	o := ownership{
		service: p.view.Service, mode: p.r.Mode, controller: "endpointslice-controller",
		ours: endpointslice.Owned(p.view.Service, p.view.Slices), others: endpointslice.KubeManaged(p.view.Service, p.view.Slices),
		began: p.view.Service.CreationTimestamp.Time, otherActive: p.r.source.index.KubeManagedSlices() > 0,
		history: p.state.history,
	}
	d := o.decide(now)
	p.state.history = d.history
	return d
}

// keep brings the slices up to date.
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
		// Another replica may have removed the endpoint from the other slice. Duplicates
		// are rare: they are left by failed writes.
		p.verified = true
		return ctrl.Result{}, cmp.Or(p.writer().refreshAll(ctx, p.name, p.view.Slices), errOutdated)
	}
	if err := p.writer().write(ctx, &plan); err != nil {
		return ctrl.Result{}, err
	}
	if !plan.Empty() {
		p.outcome = "written"
		if plan.Slices > pacedSlices {
			p.r.throttle.Wrote(p.name, plan.Writes(), time.Now())
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
		result.RequeueAfter = queue.Soonest(result.RequeueAfter, renameIn)
	}
	return result, nil
}

// renameIn returns how long the Service's slices still keep the manager's name of an earlier
// version, by which that version recognises them: during an upgrade it may lead again.
func (r *SliceReconciler) renameIn(name types.NamespacedName, now time.Time) time.Duration {
	r.began.CompareAndSwap(0, now.UnixNano())
	spread := fnv.New32a()
	_, _ = spread.Write([]byte(name.String()))
	return time.Unix(0, r.began.Load()).Add(renameAfter + time.Duration(spread.Sum32())%renameWithin).Sub(now)
}

// scheduleCompaction records since when the slices are sparse, and requeues the Service for
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

// checkManual reports what is wrong with the slices that others write for a Service without
// a selector, or that there are none.
func (p *slicePass) checkManual(now time.Time) ctrl.Result {
	problems := append(p.foreignFamilies(), p.annotations()...)
	if len(p.view.Slices) == 0 {
		if wait := graceForManual - now.Sub(p.view.Service.CreationTimestamp.Time); wait > 0 {
			return ctrl.Result{RequeueAfter: wait}
		}
		problems = append(problems, endpointslice.Problem{Reason: endpointslice.ReasonSelectorEmpty, Message: "the Service has no selector, " +
			"and no EndpointSlice names it: connections are refused; set a selector, or write an EndpointSlice with the label kubernetes.io/service-name"})
	}
	p.report(problems, now)
	return ctrl.Result{}
}

// foreignFamilies reports slices that others wrote for a family which the
// Service does not have.
func (p *slicePass) foreignFamilies() []endpointslice.Problem {
	families := endpointslice.Families(p.view.Service)
	names := endpointslice.ForeignFamilies(p.view.Slices, families)
	if len(names) == 0 {
		return nil
	}
	slices.Sort(names)
	return []endpointslice.Problem{{Reason: endpointslice.ReasonFamilyMismatch, Message: fmt.Sprintf(
		"EndpointSlice %s has an addressType that is not among the Service's ipFamilies, so nothing uses it; delete it or change ipFamilyPolicy",
		names[0])}}
}

// annotations reports annotations that have no effect. Those of Services of
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

// report records an event for each problem, at most one of a reason in reportEvery: what
// changes meanwhile is the number of Pods.
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
