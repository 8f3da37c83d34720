// SPDX-License-Identifier: Apache-2.0

package syncer

import (
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/causeway-lb/causeway/internal/testkit"
	"github.com/causeway-lb/causeway/internal/testkit/modeltest"
)

func histogram(t *testing.T, h prometheus.Histogram) (count uint64, sum float64) {
	t.Helper()
	var m dto.Metric
	if err := h.Write(&m); err != nil {
		t.Fatal(err)
	}
	return m.GetHistogram().GetSampleCount(), m.GetHistogram().GetSampleSum()
}

// The latency counts from the trigger to the commit, over refused syncs too;
// what happened before this process does not count.
func TestProgrammingLatency(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, k := &world{w: modeltest.New(4)}, newKernel()
		for range 30 {
			w.change()
		}
		var failing atomic.Bool
		k.fail = func() (error, bool) {
			if failing.Load() {
				return errors.New("refused"), false
			}
			return nil, true
		}
		metrics := NewMetrics("test")
		s, err := New(Config{Backend: k, Source: w, Node: w.w.Node, Metrics: metrics})
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range w.Names() {
			s.Notify(name, time.Now().Add(-time.Hour)) // as the first list does
		}
		run(t, s)
		testkit.EventuallyTrue(t, 20*time.Second, "in sync", func() bool { return s.Status().InSync })
		if count, _ := histogram(t, metrics.programming); count != 0 {
			t.Errorf("%d latencies of what happened before the start", count)
		}
		failing.Store(true)
		time.Sleep(time.Millisecond) // what comes now comes after the start
		for range 20 {               // some changes concern no frontend
			s.Notify(w.change(), time.Now())
		}
		testkit.EventuallyTrue(t, 20*time.Second, "refused", func() bool { return s.Status().Err != nil })
		if count, _ := histogram(t, metrics.programming); count >= 20 {
			t.Error("a latency of what the kernel does not have")
		}
		time.Sleep(20 * time.Millisecond)
		failing.Store(false)
		testkit.EventuallyTrue(t, 20*time.Second, "in sync again", func() bool { return s.Status().InSync })
		count, sum := histogram(t, metrics.programming)
		if count == 0 || sum < 0.02 {
			t.Errorf("%d latencies of %v s together, want some of more than 20 ms", count, sum)
		}
		if noticed, _ := histogram(t, metrics.noticing); noticed < count {
			t.Errorf("%d times from event to kernel, %d from trigger", noticed, count)
		}
	})
}
