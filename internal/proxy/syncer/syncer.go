// SPDX-License-Identifier: Apache-2.0

package syncer

import (
	"context"
	"errors"
	"maps"
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
	// Input returns one Service with its slices, false if there is no such Service.
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
	// Applied, unless nil, is told of every successful sync, in order, from the
	// syncer's goroutine. The next sync waits for it.
	Applied func(Applied)
	// Problems, unless nil, is told of a Service's problems whenever it was
	// computed, and when the Backend could not program all of it; none means that
	// it has none any longer.
	Problems func(types.NamespacedName, []model.Problem)
	// Drifted, unless nil, is told when other programs' changes were repaired.
	Drifted func(backend.Report)
	Metrics *Metrics
}

// Validate returns what is missing.
func (c Config) Validate() error {
	if c.Backend == nil || c.Source == nil {
		return errors.New("syncer needs a Backend and a Source")
	}
	return nil
}

// Applied is what a successful sync put in place.
type Applied struct {
	Node model.Node
	// Changes are the Services that differ from the last success.
	Changes []model.Change
	// Full reports whether the kernel was read back.
	Full bool
	// Rejected are all Services that the kernel does not have as they should be,
	// because it rejects them: it keeps what it had. Sorted.
	Rejected []types.NamespacedName
	// Report sums up the Backend's. Its Problems include those of Rejected.
	Report backend.Report
}

const (
	defaultResync = 10 * time.Minute
	// syncTimeout bounds one sync, as far as the Backend heeds its context.
	syncTimeout = time.Minute
	// driftPause gathers the many notifications of another program's transaction.
	driftPause = 20 * time.Millisecond
)

// Syncer drives one Backend.
type Syncer struct {
	cfg      Config
	inbox    *inbox
	progress progress

	// The rest belongs to Run.
	begun time.Time
	state *model.State
	// postponed are the Services that the last sync left to the next.
	postponed   map[types.NamespacedName]bool
	pending     map[types.NamespacedName]bool // Services to sync
	incremental *Incremental
	retries     retries
	problems    problems
	causes      []cause // of what the kernel does not have yet
}

// New returns a Syncer that does nothing before Run.
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
	s := &Syncer{
		cfg:         cfg,
		state:       model.NewState(cfg.Node),
		pending:     map[types.NamespacedName]bool{},
		incremental: NewIncremental(cfg.Backend),
		retries:     retries{longest: cfg.MaxBackoff, pause: rejectedPause},
		problems:    problems{report: cfg.Problems},
		progress:    progress{status: Status{Since: time.Now()}},
	}
	s.inbox = newInbox(&s.progress)
	return s, nil
}

// Notify says that a Service or its slices changed. trigger is when the cause
// happened, zero if unknown; it is measured against the commit.
func (s *Syncer) Notify(name types.NamespacedName, trigger time.Time) {
	c := cause{trigger: trigger, noticed: time.Now()}
	if s.cfg.Metrics.mode != nil {
		s.cfg.Metrics.kubeProxy.notified(c.noticed)
	}
	s.inbox.put(c.noticed, func(n *news) { n.service(name, c) })
}

// SetNode changes what the rules depend on besides Services.
func (s *Syncer) SetNode(node model.Node) {
	s.inbox.put(time.Now(), func(n *news) { n.node = &node })
}

// Verify has the kernel read back soon.
func (s *Syncer) Verify() { s.check(CheckAll) }

// check has the next sync check the kernel.
func (s *Syncer) check(at Check) {
	s.inbox.put(time.Now(), func(n *news) { n.check = max(n.check, at) })
}

// Status is how the kernel stands now.
func (s *Syncer) Status() Status { return s.progress.get() }

// Watch returns a channel that receives when Status may have changed; several
// changes may be one receive.
func (s *Syncer) Watch() <-chan struct{} { return s.progress.watch() }

// Run programs the kernel until ctx ends, and then leaves it as it is. The
// Source must hold all Services when Run is called.
func (s *Syncer) Run(ctx context.Context) error {
	log := logr.FromContextOrDiscard(ctx).WithName("syncer").WithValues("backend", s.cfg.Backend.Name())
	s.progress.begin()
	var watch sync.WaitGroup
	defer watch.Wait()
	if w, ok := s.cfg.Backend.(backend.Watcher); ok {
		// The first read comes after the watch has begun, so that nothing is
		// missed between them.
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
	for {
		arrived := s.inbox.arrived
		if s.retries.resting() {
			arrived = nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-resync.C:
			s.Verify()
			continue
		case <-s.retries.rejected:
			s.pendRejected()
			s.retries.rejectedDue()
		case <-s.retries.due():
		case <-arrived:
		}
		if err := s.sync(ctx, log, s.retries.backoff > 0); err != nil && ctx.Err() == nil {
			s.retries.failed()
			log.Error(err, "Sync failed, the kernel keeps the old state", "retryIn", s.retries.backoff)
			continue
		}
		s.retries.succeeded(len(s.incremental.rejected) > 0)
	}
}

// beginAll has everything computed by the first sync.
func (s *Syncer) beginAll() {
	s.begun = time.Now()
	s.inbox.put(s.begun, func(n *news) {
		clear(n.services) // the Source has what was notified until now
		if n.node == nil {
			n.node = &s.cfg.Node
		}
		n.check = CheckAll
	})
}

// watchDrift keeps the backend's watch alive. begun is called when it first
// listens or turns out not to work.
func (s *Syncer) watchDrift(ctx context.Context, log logr.Logger, w backend.Watcher, begun func()) {
	for ctx.Err() == nil {
		err := w.Watch(ctx, func() { s.check(CheckReported); begun() })
		begun()
		if err != nil && ctx.Err() == nil {
			log.Error(err, "Watch for changes by other programs ended, starting again")
			select {
			case <-ctx.Done():
			case <-time.After(time.Second):
			}
		}
	}
}

// sync programs what has come in. retry says that the last sync failed.
func (s *Syncer) sync(ctx context.Context, log logr.Logger, retry bool) error {
	in := s.inbox.take()
	if len(in.services)+len(s.pending) == 0 && in.node == nil && in.check == CheckNothing && !retry {
		s.progress.idle()
		return nil
	}
	if in.check != CheckNothing && !retry && s.Status().Started && len(in.services) == 0 {
		// The rest of another program's transaction arrives within moments.
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(driftPause):
		}
		more := s.inbox.take()
		in.services, in.check = more.services, max(in.check, more.check)
		if more.node != nil {
			in.node = more.node
		}
	}
	full := in.node != nil || retry || in.check == CheckAll
	if !full {
		s.postpone(in.services)
	}
	start := time.Now()
	if in.node != nil {
		s.rebuild(*in.node)
	}
	for name, c := range in.services {
		s.compute(name)
		s.causes = append(s.causes, c)
	}
	if len(s.pending) == 0 && !full && in.check == CheckNothing {
		s.done()
		s.progress.idle()
		return nil // nothing that matters to this node
	}
	if full {
		s.pendRejected()
	}
	s.progress.work(start)
	syncCtx, cancel := context.WithTimeout(ctx, syncTimeout)
	applied, err := s.incremental.Program(syncCtx, s.state.Desired(), maps.Keys(s.pending), in.check)
	cancel()
	s.cfg.Metrics.synced(&applied, time.Since(start), err)
	if err != nil {
		s.progress.done(nil, err)
		return err
	}
	s.done()
	s.succeeded(log, applied, time.Since(start))
	s.progress.idle()
	return nil
}

// bigService is from how many endpoints, times ports, on a Service is programmed
// after others.
const bigService = 4096

// postpone leaves big Services to the next sync, which follows at once, if there are
// others: no Service's change waits for another large one. None is left twice in a
// row.
func (s *Syncer) postpone(services map[types.NamespacedName]cause) {
	later := map[types.NamespacedName]cause{}
	for name, c := range services {
		if s.postponed[name] || len(services) < 2 {
			continue
		}
		if in, ok := s.cfg.Source.Input(name); ok && in.Entries() > bigService {
			later[name] = c
		}
	}
	s.postponed = nil
	if len(later) == 0 || len(later) == len(services) {
		return
	}
	s.postponed = map[types.NamespacedName]bool{}
	for name, c := range later {
		s.inbox.put(c.noticed, func(n *news) { n.service(name, c) })
		s.postponed[name] = true
		delete(services, name)
	}
}

// done measures how long what has come in until now took.
func (s *Syncer) done() {
	now := time.Now()
	for _, c := range s.causes {
		s.cfg.Metrics.took(c, now, s.begun)
	}
	s.causes = s.causes[:0]
}

func (s *Syncer) succeeded(log logr.Logger, applied Applied, elapsed time.Duration) {
	report := applied.Report
	looked := func(name types.NamespacedName) bool { return applied.Full || s.pending[name] }
	s.problems.take(report.Problems, looked, s.state.Problems)
	s.pending = emptied(s.pending)
	before := s.Status()
	s.progress.done(applied.Rejected, nil)
	if !slices.Equal(applied.Rejected, before.Rejected) {
		log.Info("The set of Services that the kernel rejects has changed; the others are programmed", "services", applied.Rejected)
	}
	switch {
	case !before.Started:
		log.Info("Took over the kernel's state", "services", len(applied.Changes), "added", report.Added,
			"deleted", report.Deleted, "objects", report.Objects, "elapsed", elapsed)
	case report.Drift > 0:
		log.Info("Repaired what other programs had changed", "drift", report.Drift, "elapsed", elapsed)
	default:
		log.V(1).Info("Synced", "services", len(applied.Changes), "full", applied.Full, "added", report.Added,
			"deleted", report.Deleted, "elapsed", elapsed)
	}
	if report.Drift > 0 && s.cfg.Drifted != nil {
		s.cfg.Drifted(report)
	}
	if s.cfg.Applied != nil {
		s.cfg.Applied(applied)
	}
}

// compute brings one Service up to date in the State, and notes which Services that
// changed.
func (s *Syncer) compute(name types.NamespacedName) {
	var changes []model.Change
	if in, ok := s.cfg.Source.Input(name); ok {
		changes = s.state.Set(in)
	} else {
		changes = s.state.Delete(name)
	}
	for _, c := range changes {
		s.pending[c.Name] = true
	}
	for name := range s.state.Touched() {
		s.problems.tell(name, s.state.Problems(name))
	}
}

// pendRejected has the next sync try again what the kernel rejected.
func (s *Syncer) pendRejected() {
	for name := range s.incremental.rejected {
		s.pending[name] = true
	}
}

// rebuild computes every Service again, for another node.
func (s *Syncer) rebuild(node model.Node) {
	prev := s.state.Desired().Services
	s.state = model.NewState(node)
	names := s.cfg.Source.Names()
	for _, name := range names {
		if in, ok := s.cfg.Source.Input(name); ok {
			s.state.Set(in)
		}
	}
	for _, name := range names { // now that all claims are known
		s.problems.tell(name, s.state.Problems(name))
	}
	next := s.state.Desired().Services
	for name, svc := range prev {
		if !svc.Equal(next[name]) {
			s.pending[name] = true
		}
	}
	for name := range next {
		if prev[name] == nil {
			s.pending[name] = true
		}
	}
}
