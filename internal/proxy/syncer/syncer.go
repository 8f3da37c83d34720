// SPDX-License-Identifier: Apache-2.0

package syncer

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/go-logr/logr"
	"k8s.io/apimachinery/pkg/types"

	"github.com/causeway-lb/causeway/internal/proxy/backend"
	"github.com/causeway-lb/causeway/internal/proxy/model"
)

// Source is where the syncer reads the API's objects from. Safe for
// concurrent use.
type Source interface {
	// Names lists all Services.
	Names() []types.NamespacedName
	// Input gives one Service with its slices, false if there is no such Service.
	Input(types.NamespacedName) (model.Input, bool)
}

// Config of a Syncer.
type Config struct {
	Backend backend.Backend
	Source  Source
	// Resync is how often the kernel is read back without a reason; 0 is 10
	// minutes.
	Resync time.Duration
	// MaxBackoff is the longest pause after failures; 0 is 30 seconds.
	MaxBackoff time.Duration
	// Node is what the rules depend on besides Services, at first.
	Node model.Node
	// Applied, unless nil, is told of every successful Sync, in order, from the
	// syncer's goroutine. The next Sync waits for it.
	Applied func(Applied)
	// Problems, unless nil, is told of a Service's problems whenever it was
	// computed, and when the Backend could not do all of it; none means that
	// they are gone.
	Problems func(types.NamespacedName, []model.Problem)
	// Drifted, unless nil, is told when others' changes were repaired.
	Drifted func(backend.Report)
	Metrics *Metrics
}

// Validate says what is missing.
func (c Config) Validate() error {
	if c.Backend == nil || c.Source == nil {
		return errors.New("syncer needs a Backend and a Source")
	}
	return nil
}

// Applied is what a successful Sync put in place.
type Applied struct {
	Node model.Node
	// Changes are the Services that differ from the last successful Sync.
	Changes []model.Change
	Report  backend.Report
}

// Status is how the kernel stands.
type Status struct {
	// Started says that a Sync has succeeded since the start.
	Started bool
	// InSync says that the kernel matches all that was notified, but for Refused.
	InSync bool
	// Refused are the Services that the kernel refuses; the others it has. Not
	// to be modified.
	Refused []types.NamespacedName
	// Since is when InSync last became what it is.
	Since time.Time
	// Behind is since when the oldest of what was notified is not in the kernel,
	// because the Backend works on it, cannot do it, or does not return; zero if
	// there is nothing, and before Run.
	Behind time.Time
	// Attempts is how often the Backend's Sync has returned.
	Attempts uint64
	// LastSync is when a Sync last succeeded.
	LastSync time.Time
	// Err is why the last Sync failed, nil if it did not.
	Err error
}

// LateAfter is how long something that was notified may take to be in the kernel.
const LateAfter = 10 * time.Second

// Late tells whether the kernel is behind for too long to call it in sync, though
// no Sync has failed, and else how soon it may be so by itself; 0 for never.
func (s Status) Late(now time.Time) (late bool, again time.Duration) {
	if s.Behind.IsZero() {
		return false, 0
	}
	left := LateAfter - now.Sub(s.Behind)
	return left <= 0, max(left, 0)
}

const (
	defaultResync = 10 * time.Minute
	// syncTimeout bounds one Sync, as far as the Backend heeds its context.
	syncTimeout = time.Minute
	minBackoff  = 50 * time.Millisecond
	maxBackoff  = 30 * time.Second
	// driftPause gathers the many notifications of one foreign transaction.
	driftPause = 20 * time.Millisecond
	// refusedPause is how long Services that the kernel refuses rest at first.
	refusedPause = time.Second
)

// Syncer drives one Backend.
type Syncer struct {
	cfg Config

	mu      sync.Mutex
	dirty   map[types.NamespacedName]cause
	node    *model.Node // set: to be taken in
	check   check
	status  Status
	queued  time.Time // since when something is in dirty, node or verify
	busy    time.Time // since when what was taken from there is not in the kernel
	running bool
	watches []chan struct{}
	wake    chan struct{}

	// The rest belongs to Run.
	begun time.Time
	state *model.State
	// postponed are the Services that the last sync left to the next.
	postponed map[types.NamespacedName]bool
	pending   map[types.NamespacedName]*model.Service  // Services to sync, as they were at the last success
	left      map[types.NamespacedName][]model.Problem // what the Backend could not do
	refused   map[types.NamespacedName]*model.Service  // what the kernel keeps of Services that it refuses
	causes    []cause                                  // of what the kernel does not have yet
}

// check is what to look at in the kernel besides what changes.
type check int

const (
	nothing   check = iota
	whatHeard       // what the Backend's Watch has notified of
	everything
)

// cause is why a Service is dirty.
type cause struct {
	// trigger is when it happened, zero if that is not known; noticed is when
	// Notify told of it.
	trigger, noticed time.Time
}

// earlier joins two causes of one change.
func (c cause) earlier(o cause) cause {
	if c.trigger.IsZero() || !o.trigger.IsZero() && o.trigger.Before(c.trigger) {
		c.trigger = o.trigger
	}
	if o.noticed.Before(c.noticed) {
		c.noticed = o.noticed
	}
	return c
}

// New gives a Syncer that does nothing before Run.
func New(cfg Config) (*Syncer, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if cfg.Resync == 0 {
		cfg.Resync = defaultResync
	}
	if cfg.MaxBackoff == 0 {
		cfg.MaxBackoff = maxBackoff
	}
	if cfg.Metrics == nil {
		cfg.Metrics = NewMetrics(cfg.Backend.Name())
	}
	return &Syncer{
		cfg:     cfg,
		dirty:   map[types.NamespacedName]cause{},
		wake:    make(chan struct{}, 1),
		state:   model.NewState(cfg.Node),
		pending: map[types.NamespacedName]*model.Service{},
		left:    map[types.NamespacedName][]model.Problem{},
		refused: map[types.NamespacedName]*model.Service{},
		status:  Status{Since: time.Now()},
	}, nil
}

// Notify says that a Service or its slices changed. trigger is when the cause
// happened, zero if unknown; it is measured against the commit.
func (s *Syncer) Notify(name types.NamespacedName, trigger time.Time) {
	c := cause{trigger: trigger, noticed: time.Now()}
	if s.cfg.Metrics.mode != nil {
		s.cfg.Metrics.kubeProxy.notified(c.noticed)
	}
	s.mu.Lock()
	if old, ok := s.dirty[name]; ok {
		c = c.earlier(old)
	}
	s.dirty[name] = c
	s.behind(c.noticed)
	s.mu.Unlock()
	s.kick()
}

// SetNode changes what the rules depend on besides Services.
func (s *Syncer) SetNode(n model.Node) {
	s.mu.Lock()
	s.node = &n
	s.behind(time.Now())
	s.mu.Unlock()
	s.kick()
}

// Verify has the kernel read back soon.
func (s *Syncer) Verify() { s.look(everything) }

// look has the next Sync check the kernel.
func (s *Syncer) look(at check) {
	s.mu.Lock()
	s.check = max(s.check, at)
	s.behind(time.Now())
	s.mu.Unlock()
	s.kick()
}

// behind notes that something has come in, with mu held.
func (s *Syncer) behind(since time.Time) {
	if !s.queued.IsZero() {
		return
	}
	s.queued = since
	if s.busy.IsZero() {
		s.wakeWatches()
	}
}

// Status is how the kernel stands now.
func (s *Syncer) Status() Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := s.status
	switch {
	case !s.running:
	case s.busy.IsZero() || !s.queued.IsZero() && s.queued.Before(s.busy):
		out.Behind = s.queued
	default:
		out.Behind = s.busy
	}
	return out
}

// Watch gives a channel that receives when Status may have changed; several
// changes may be one receive.
func (s *Syncer) Watch() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	ch := make(chan struct{}, 1)
	s.watches = append(s.watches, ch)
	return ch
}

func (s *Syncer) kick() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// set is called with mu held.
func (s *Syncer) set(inSync bool, err error) {
	now := time.Now()
	if s.status.InSync != inSync || s.status.Since.IsZero() {
		s.status.InSync, s.status.Since = inSync, now
	}
	s.status.Err = err
	if err == nil {
		s.status.Started, s.status.LastSync = true, now
	}
	s.wakeWatches()
}

// wakeWatches is called with mu held.
func (s *Syncer) wakeWatches() {
	for _, ch := range s.watches {
		select {
		case ch <- struct{}{}:
		default:
		}
	}
}

// Run programs the kernel until ctx ends, and then leaves it as it is. The
// Source must hold all Services when Run is called.
func (s *Syncer) Run(ctx context.Context) error {
	log := logr.FromContextOrDiscard(ctx).WithName("syncer").WithValues("backend", s.cfg.Backend.Name())
	s.mu.Lock()
	s.running, s.queued = true, time.Now()
	s.mu.Unlock()
	var watch sync.WaitGroup
	defer watch.Wait()
	if w, ok := s.cfg.Backend.(backend.Watcher); ok {
		// The first read-back comes after the watch has begun, so that nothing
		// is missed between them.
		watching := make(chan struct{})
		watch.Go(func() { s.watchDrift(ctx, log, w, sync.OnceFunc(func() { close(watching) })) })
		select {
		case <-watching:
		case <-ctx.Done():
			return nil
		}
	}
	s.beginAll()
	resync := time.NewTicker(s.cfg.Resync)
	defer resync.Stop()
	backoff := time.Duration(0)
	var again <-chan time.Time // to try what is refused
	pause := refusedPause
	for {
		var retry <-chan time.Time
		if backoff > 0 {
			retry = time.After(backoff)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-resync.C:
			s.Verify()
			continue
		case <-again:
			s.pendRefused()
			again, pause = nil, min(2*pause, s.cfg.MaxBackoff)
		case <-retry:
		case <-s.wakeUnless(backoff > minBackoff):
		}
		if err := s.sync(ctx, log, backoff > 0); err != nil && ctx.Err() == nil {
			backoff = min(max(2*backoff, minBackoff), s.cfg.MaxBackoff)
			log.Error(err, "Sync failed, the kernel keeps the old state", "retryIn", backoff)
			continue
		}
		backoff = 0
		switch {
		case len(s.refused) == 0:
			again, pause = nil, refusedPause
		case again == nil:
			again = time.After(pause)
		}
	}
}

// beginAll has everything computed by the first sync.
func (s *Syncer) beginAll() {
	s.begun = time.Now()
	s.mu.Lock()
	// What was notified until now the Source shows.
	clear(s.dirty)
	if s.node == nil {
		s.node = &s.cfg.Node
	}
	s.check = everything
	s.mu.Unlock()
	s.kick()
}

// wakeUnless gives nil, which never receives, while a failing backend rests.
func (s *Syncer) wakeUnless(resting bool) <-chan struct{} {
	if resting {
		return nil
	}
	return s.wake
}

// watchDrift keeps the backend's watch alive. begun is called when it first
// listens or turns out not to work.
func (s *Syncer) watchDrift(ctx context.Context, log logr.Logger, w backend.Watcher, begun func()) {
	for ctx.Err() == nil {
		err := w.Watch(ctx, func() { s.look(whatHeard); begun() })
		begun()
		if err != nil && ctx.Err() == nil {
			log.Error(err, "Watch for changes by others ended, beginning anew")
			select {
			case <-ctx.Done():
			case <-time.After(time.Second):
			}
		}
	}
}

// take empties the inbox.
func (s *Syncer) take() (dirty map[types.NamespacedName]cause, node *model.Node, at check) {
	s.mu.Lock()
	defer s.mu.Unlock()
	node, at = s.node, s.check
	if len(s.dirty) > 0 { // an empty one stays: Notify writes to it while the caller reads
		dirty, s.dirty = s.dirty, map[types.NamespacedName]cause{}
	}
	s.node, s.check = nil, nothing
	if s.busy.IsZero() {
		s.busy = s.queued
	}
	s.queued = time.Time{}
	return dirty, node, at
}

// narrow says whether the Backend can check what it has heard of without reading
// everything back.
func (s *Syncer) narrow() bool {
	r, ok := s.cfg.Backend.(backend.Repairer)
	return ok && r.Pinpointed()
}

// sync programs what has come in. retry says that the last Sync failed.
func (s *Syncer) sync(ctx context.Context, log logr.Logger, retry bool) error {
	dirty, node, at := s.take()
	if len(dirty) == 0 && len(s.pending) == 0 && node == nil && at == nothing && !retry {
		s.idle()
		return nil
	}
	if at != nothing && !retry && s.Status().Started && len(dirty) == 0 {
		// The rest of a foreign transaction's notifications come at once.
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(driftPause):
		}
		more, n, also := s.take()
		dirty, at = more, max(at, also)
		if n != nil {
			node = n
		}
	}
	full := node != nil || retry || at == everything || at == whatHeard && !s.narrow()
	if !full {
		dirty = s.postpone(dirty)
	}
	start := time.Now()
	if node != nil {
		s.rebuild(*node)
	}
	for name, c := range dirty {
		s.compute(name)
		s.causes = append(s.causes, c)
	}
	if len(s.pending) == 0 && !full && at == nothing {
		s.done()
		s.idle()
		return nil // nothing that matters to this node
	}
	var changed []types.NamespacedName
	if full {
		s.pendRefused()
	} else {
		changed = make([]types.NamespacedName, 0, len(s.pending))
		for name := range s.pending {
			changed = append(changed, name)
		}
	}
	s.mu.Lock()
	if s.busy.IsZero() {
		s.busy = start // tried again, without anything new
	}
	s.mu.Unlock()
	syncCtx, cancel := context.WithTimeout(ctx, syncTimeout)
	report, err := s.cfg.Backend.Sync(syncCtx, s.state.Desired(), changed)
	cancel()
	s.mu.Lock()
	s.status.Attempts++
	s.mu.Unlock()
	s.cfg.Metrics.synced(report, len(s.pending), time.Since(start), err)
	if err != nil {
		s.mu.Lock()
		s.set(false, err)
		s.mu.Unlock()
		return err
	}
	s.done()
	s.succeeded(log, report, time.Since(start))
	s.idle()
	return nil
}

// bigService is from how many endpoints, times ports, on a Service is programmed
// after others.
const bigService = 4096

// postpone leaves big Services to the next sync, which comes at once, if there are
// others: nobody's change waits for what somebody else's large one costs. None is
// left twice in a row.
func (s *Syncer) postpone(dirty map[types.NamespacedName]cause) map[types.NamespacedName]cause {
	later := map[types.NamespacedName]cause{}
	for name, c := range dirty {
		if s.postponed[name] || len(dirty) < 2 {
			continue
		}
		if in, ok := s.cfg.Source.Input(name); ok && in.Entries() > bigService {
			later[name] = c
		}
	}
	s.postponed = nil
	if len(later) == 0 || len(later) == len(dirty) {
		return dirty
	}
	s.postponed = map[types.NamespacedName]bool{}
	s.mu.Lock()
	for name, c := range later {
		if old, ok := s.dirty[name]; ok {
			c = c.earlier(old)
		}
		s.dirty[name] = c
		if s.queued.IsZero() || c.noticed.Before(s.queued) {
			s.queued = c.noticed
		}
		s.postponed[name] = true
		delete(dirty, name)
	}
	s.mu.Unlock()
	s.kick()
	return dirty
}

// idle notes that all that was taken in is in the kernel, and that everybody has
// been told.
func (s *Syncer) idle() {
	s.mu.Lock()
	s.busy = time.Time{}
	s.mu.Unlock()
}

// done measures how long what has come in until now took.
func (s *Syncer) done() {
	now := time.Now()
	for _, c := range s.causes {
		s.cfg.Metrics.took(c, now, s.begun)
	}
	s.causes = s.causes[:0]
}

func (s *Syncer) succeeded(log logr.Logger, report backend.Report, elapsed time.Duration) {
	applied := Applied{Node: s.state.Desired().Node, Report: report}
	s.setAside(log, report.Refused)
	for name, old := range s.pending {
		applied.Changes = append(applied.Changes, model.Change{Name: name, Old: old, New: s.state.Service(name)})
	}
	s.takeProblems(report)
	clear(s.pending)
	s.mu.Lock()
	first := !s.status.Started
	s.status.Refused = report.Refused
	s.set(true, nil)
	s.mu.Unlock()
	switch {
	case first:
		log.Info("Took over the kernel's state", "services", len(applied.Changes), "added", report.Added,
			"deleted", report.Deleted, "objects", report.Objects, "elapsed", elapsed)
	case report.Drift > 0:
		log.Info("Repaired what others had changed", "drift", report.Drift, "elapsed", elapsed)
	default:
		log.V(1).Info("Synced", "services", len(applied.Changes), "full", report.Full, "added", report.Added,
			"deleted", report.Deleted, "elapsed", elapsed)
	}
	if report.Drift > 0 && s.cfg.Drifted != nil {
		s.cfg.Drifted(report)
	}
	if s.cfg.Applied != nil {
		s.cfg.Applied(applied)
	}
}

// compute brings one Service up to date in the State, and notes whom that
// changed.
func (s *Syncer) compute(name types.NamespacedName) {
	var changes []model.Change
	if in, ok := s.cfg.Source.Input(name); ok {
		changes = s.state.Set(in)
	} else {
		changes = s.state.Delete(name)
	}
	for _, c := range changes {
		s.note(c.Name, c.Old)
	}
	for name := range s.state.Touched() {
		s.tell(name)
	}
}

// tell reports what is wrong with a Service, by the model and by the Backend.
func (s *Syncer) tell(name types.NamespacedName) {
	if s.cfg.Problems != nil {
		s.cfg.Problems(name, slices.Concat(s.state.Problems(name), s.left[name]))
	}
}

// takeProblems takes in what the Backend could not do.
func (s *Syncer) takeProblems(report backend.Report) {
	next := map[types.NamespacedName][]model.Problem{}
	for _, p := range report.Problems {
		next[p.Service] = append(next[p.Service], p)
	}
	for name, old := range s.left {
		_, synced := s.pending[name]
		switch {
		case !report.Full && !synced:
			next[name] = old // it was not looked at
		case len(next[name]) == 0:
			delete(s.left, name)
			s.tell(name)
		}
	}
	last := s.left
	s.left = next
	for name, ps := range next {
		if !slices.Equal(ps, last[name]) {
			s.tell(name)
		}
	}
}

// note remembers what a Service was when the kernel last had it.
func (s *Syncer) note(name types.NamespacedName, old *model.Service) {
	if kept, ok := s.refused[name]; ok {
		old = kept
		delete(s.refused, name)
	}
	if _, ok := s.pending[name]; !ok {
		s.pending[name] = old
	}
}

// pendRefused has the next Sync try again what the kernel refused.
func (s *Syncer) pendRefused() {
	for name, old := range s.refused {
		s.note(name, old)
	}
}

// setAside takes the Services that the kernel refuses out of those that were
// synced.
func (s *Syncer) setAside(log logr.Logger, refused []types.NamespacedName) {
	for _, name := range refused {
		if _, ok := s.refused[name]; ok {
			continue
		}
		old, ok := s.pending[name]
		if !ok {
			old = s.state.Service(name) // it had been accepted as it is
		}
		s.refused[name] = old
		delete(s.pending, name)
	}
	if !slices.Equal(refused, s.Status().Refused) {
		log.Info("The set of Services that the kernel refuses has changed; the others are programmed", "services", refused)
	}
}

// rebuild computes every Service anew, for another node.
func (s *Syncer) rebuild(node model.Node) {
	old := s.state
	s.state = model.NewState(node)
	names := s.cfg.Source.Names()
	for _, name := range names {
		if in, ok := s.cfg.Source.Input(name); ok {
			s.state.Set(in)
		}
	}
	for _, name := range names { // now that all claims are known
		s.tell(name)
	}
	prev, next := old.Desired().Services, s.state.Desired().Services
	for name, svc := range prev {
		if !svc.Equal(next[name]) {
			s.note(name, svc)
		}
	}
	for name := range next {
		if prev[name] == nil {
			s.note(name, nil)
		}
	}
}
