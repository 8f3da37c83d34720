// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/workqueue"

	"github.com/causeway-lb/causeway/api/v1alpha1"
	"github.com/causeway-lb/causeway/internal/announce"
	"github.com/causeway-lb/causeway/internal/announce/elect"
	"github.com/causeway-lb/causeway/internal/announce/members"
)

const (
	statusWriters = 4
	statusTimeout = 5 * time.Second
	// statusDispute is how long another agent's status that differs is left alone: it
	// may be newer than what this agent knows.
	statusDispute = time.Second
	// maxStatusDispute is the longest such time, after being overwritten repeatedly.
	maxStatusDispute = 5 * time.Minute
	// lastStatuses bounds the time for the last writes at the end.
	lastStatuses = time.Second
)

// announceStatus writes the Speaker's reports to the status of the address records. It is
// level-based: as long as this node has a report about an address, the record is kept
// equal to it. It never delays an announcement.
type announceStatus struct {
	env   Env
	queue workqueue.TypedRateLimitingInterface[string]

	mu       sync.Mutex
	reports  map[string]announce.Report // by the record's name
	disputes map[string]dispute         // the same
	alive    map[string]bool            // other nodes whose agents are
}

// dispute is what is known of another agent that reports something else of an address.
type dispute struct {
	wrote bool // this agent wrote last
	lost  int  // how often its status was overwritten
}

func newAnnounceStatus(env Env) *announceStatus {
	return &announceStatus{
		env: env,
		queue: workqueue.NewTypedRateLimitingQueue(
			workqueue.NewTypedItemExponentialFailureRateLimiter[string](100*time.Millisecond, 30*time.Second)),
		reports: map[string]announce.Report{}, disputes: map[string]dispute{}, alive: map[string]bool{},
	}
}

// report takes a report; it does not block.
func (s *announceStatus) report(r announce.Report) {
	name := v1alpha1.LoadBalancerAddressName(r.Address)
	s.mu.Lock()
	old := s.reports[name]
	delete(s.disputes, name)
	if r.State == announce.Released {
		delete(s.reports, name)
	} else {
		s.reports[name] = r
	}
	s.mu.Unlock()
	s.event(name, old, r)
	if r.State != announce.Released {
		s.queue.Add(name)
	}
}

// changed checks a record whose status may have been overwritten.
func (s *announceStatus) changed(name string) {
	record := s.env.Store.Address(name)
	s.mu.Lock()
	defer s.mu.Unlock()
	r, ok := s.reports[name]
	if !ok || record == nil {
		return
	}
	if equality.Semantic.DeepEqual(s.desired(record, r), record.Status) {
		return
	}
	d := s.disputes[name]
	if d.wrote {
		d.wrote, d.lost = false, d.lost+1
	}
	s.disputes[name] = d
	s.queue.AddAfter(name, s.patience(record, r, d))
}

// patience is how long this agent waits before it writes again what another agent has
// overwritten. If two announce an address (on two LANs, or because one does not know
// yet that it has to stop) the lower-ranked one leaves the other's status and checks it
// at increasing intervals, in case the other has stopped.
func (s *announceStatus) patience(record *v1alpha1.LoadBalancerAddress, r announce.Report, d dispute) time.Duration {
	other := record.Status.Node
	said := meta.IsStatusConditionTrue(record.Status.Conditions, v1alpha1.AddressAnnounced) && other != "" && other != s.env.NodeName
	switch {
	case !said && r.State == announce.Announced,
		said && r.State == announce.Announced && elect.Outranks(r.Address, s.env.NodeName, other):
		return statusDispute
	case said && s.alive[other]:
		d.lost += 2
	}
	return min(statusDispute<<min(2*d.lost, 16), maxStatusDispute)
}

// members sets which other agents are alive.
func (s *announceStatus) members(view map[string]members.Member) {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.alive)
	for name, m := range view {
		s.alive[name] = m.Alive()
	}
}

// run writes until ctx ends, and then what is left for at most lastStatuses.
func (s *announceStatus) run(ctx context.Context) {
	inner, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	var wg sync.WaitGroup
	for range statusWriters {
		wg.Go(func() {
			for s.next(inner) {
			}
		})
	}
	<-ctx.Done()
	timer := time.AfterFunc(lastStatuses, cancel)
	defer timer.Stop()
	s.queue.ShutDown()
	wg.Wait()
}

func (s *announceStatus) next(ctx context.Context) bool {
	name, shutdown := s.queue.Get()
	if shutdown {
		return false
	}
	defer s.queue.Done(name)
	err := s.write(ctx, name)
	switch {
	case err == nil, apierrors.IsNotFound(err):
		s.queue.Forget(name)
	case ctx.Err() == nil:
		logr.FromContextOrDiscard(ctx).V(1).Info("Writing status failed, will try again", "address", name, "reason", err.Error())
		s.queue.AddRateLimited(name)
	}
	return true
}

// write brings one record's status in line with the last report.
func (s *announceStatus) write(ctx context.Context, name string) error {
	s.mu.Lock()
	r, ok := s.reports[name]
	s.mu.Unlock()
	record := s.env.Store.Address(name)
	if !ok || record == nil {
		return nil // nothing to say, or nowhere to say it
	}
	want := s.desired(record, r)
	if equality.Semantic.DeepEqual(want, record.Status) {
		return nil
	}
	// In a merge patch nil deletes what another announcer wrote.
	status := map[string]any{"node": nil, "interface": nil, "since": nil, "conditions": want.Conditions}
	if want.Node != "" {
		status["node"], status["interface"], status["since"] = want.Node, want.Interface, want.Since
	}
	body, err := json.Marshal(map[string]any{"status": status})
	if err != nil {
		return fmt.Errorf("encode status of %s: %w", name, err)
	}
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	err = s.env.Causeway.Patch(types.MergePatchType).Resource("loadbalanceraddresses").Name(name).
		SubResource("status").Body(body).Do(ctx).Error()
	if err != nil {
		return fmt.Errorf("write status of %s: %w", name, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.reports[name] == r {
		d := s.disputes[name]
		d.wrote = true
		s.disputes[name] = d
	}
	return nil
}

// desired returns the record's status with the report.
func (s *announceStatus) desired(record *v1alpha1.LoadBalancerAddress, r announce.Report) v1alpha1.LoadBalancerAddressStatus {
	out := *record.Status.DeepCopy()
	out.Node, out.Interface, out.Since = "", "", nil
	announced := metav1.Condition{Type: v1alpha1.AddressAnnounced, Status: metav1.ConditionFalse, ObservedGeneration: record.Generation}
	switch r.State {
	case announce.Announced:
		since := metav1.NewTime(r.Since.Truncate(time.Second))
		out.Node, out.Interface, out.Since = s.env.NodeName, r.Interface, &since
		announced.Status, announced.Reason = metav1.ConditionTrue, "Announced"
		announced.Message = fmt.Sprintf("%s answers for it on %s", s.env.NodeName, r.Interface)
		if r.Unreachable != "" {
			announced.Message += "; " + silent(r)
		}
		if r.Reason != "" {
			announced.Message += ": " + r.Reason
		}
	case announce.Conflicted:
		announced.Reason = "Conflict"
		announced.Message = describe(r, s.env.NodeName) + ", and had it first: take it off that host, or give the Service another address"
	default:
		announced.Reason = "NoEligibleNode"
		announced.Message = "No node may announce it. " + r.Reason
	}
	meta.SetStatusCondition(&out.Conditions, announced)
	s.setUncontested(&out.Conditions, record.Generation, r)
	return out
}

// setUncontested writes the condition Uncontested, which is absent until there is a
// conflict, in place of what former versions wrote.
func (s *announceStatus) setUncontested(conditions *[]metav1.Condition, generation int64, r announce.Report) {
	c := metav1.Condition{Type: v1alpha1.AddressUncontested, ObservedGeneration: generation}
	had := v1alpha1.Contested(*conditions) != nil || meta.FindStatusCondition(*conditions, v1alpha1.AddressUncontested) != nil
	v1alpha1.RemoveFormer(conditions)
	switch {
	case !r.ConflictingHost.IsZero():
		c.Status, c.Reason, c.Message = metav1.ConditionFalse, "AddressInUse", describe(r, s.env.NodeName)
	case !had:
		return
	default:
		c.Status, c.Reason, c.Message = metav1.ConditionTrue, "NoConflict", "no other host uses the address"
	}
	meta.SetStatusCondition(conditions, c)
}

// silent says which node does not answer.
func silent(r announce.Report) string {
	return fmt.Sprintf("%s should announce it, and its agent is alive, but it does not answer on this LAN: it does not hear, or is not heard; look at its cable and switch port", r.Unreachable)
}

// event records an event for a move or a conflict.
func (s *announceStatus) event(name string, old, r announce.Report) {
	record := s.env.Store.Address(name)
	if record == nil {
		return
	}
	if r.State == announce.Announced && old.State != announce.Announced {
		message := fmt.Sprintf("%s announces it on %s", s.env.NodeName, r.Interface)
		if before := record.Status.Node; before != "" && before != s.env.NodeName {
			message += ", before it was " + before
		}
		s.record(record, corev1.EventTypeNormal, "Announcing", message)
	}
	if r.ConflictingHost != old.ConflictingHost && !r.ConflictingHost.IsZero() {
		s.record(record, corev1.EventTypeWarning, "AddressConflict", describe(r, s.env.NodeName))
	}
	if r.Unreachable != old.Unreachable && r.Unreachable != "" {
		s.record(record, corev1.EventTypeWarning, "AnnouncerUnreachable", silent(r))
	}
	if r.State == announce.NoEligibleNode && old.State != announce.NoEligibleNode {
		s.record(record, corev1.EventTypeWarning, "NoEligibleNode", r.Reason)
	}
}

// record records an event on an address.
func (s *announceStatus) record(on *v1alpha1.LoadBalancerAddress, kind, reason, note string) {
	if s.env.Recorder != nil {
		ref := &corev1.ObjectReference{APIVersion: v1alpha1.GroupVersion.String(), Kind: "LoadBalancerAddress", Name: on.Name, UID: on.UID}
		s.env.Recorder.Eventf(ref, nil, kind, reason, "Announce", "%s", note)
	}
}
