// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/causeway-lb/causeway/internal/proxy/syncer"
)

const (
	watchdogTick = time.Second
	// stuckTicks is the number of ticks without progress after which the process should
	// be restarted. The kubelet adds its own delay (config/agent).
	stuckTicks = 120
)

// watchdog detects a syncer without progress: there is something to program, and no Sync
// returns, not even with an error. It counts its own ticks instead of time: a process
// that is starved of CPU misses ticks as well, and restarting it would only cost more.
// Safe for concurrent use.
type watchdog struct {
	status func() syncer.Status
	ticks  atomic.Int64
}

func newWatchdog(status func() syncer.Status) *watchdog { return &watchdog{status: status} }

func (w *watchdog) run(ctx context.Context) {
	tick := time.NewTicker(watchdogTick)
	defer tick.Stop()
	var last syncer.Status
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		now := w.status()
		if now.Behind.IsZero() || !now.Behind.Equal(last.Behind) || now.Attempts != last.Attempts {
			w.ticks.Store(0)
		} else {
			w.ticks.Add(1)
		}
		last = now
	}
}

func (w *watchdog) stuck() bool { return w.ticks.Load() >= stuckTicks }
