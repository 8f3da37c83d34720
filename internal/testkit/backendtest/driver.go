// SPDX-License-Identifier: Apache-2.0

package backendtest

import (
	"context"
	"maps"
	"slices"
	"sync"

	"k8s.io/apimachinery/pkg/types"

	"github.com/causeway-lb/causeway/internal/proxy/backend"
	"github.com/causeway-lb/causeway/internal/proxy/model"
	"github.com/causeway-lb/causeway/internal/proxy/syncer"
)

// Result is the outcome of one Sync.
type Result struct {
	backend.Report
	// Full and Rejected are as in syncer.Applied.
	Full     bool
	Rejected []types.NamespacedName
}

// drivers has the record of what each Backend's kernel has: *driver by backend.Backend.
var drivers sync.Map

type driver struct {
	*syncer.Incremental
	last map[types.NamespacedName]*model.Service
}

// Sync drives a Backend as package syncer does: changed are the Services that differ
// from those of the last Sync, in any order. nil means that any may differ, and that
// the kernel is to be read back.
func Sync(ctx context.Context, b backend.Backend, want model.Desired, changed []types.NamespacedName) (Result, error) {
	found, _ := drivers.LoadOrStore(b, &driver{Incremental: syncer.NewIncremental(b)})
	d := found.(*driver)
	names, at := map[types.NamespacedName]bool{}, syncer.CheckNothing
	if _, ok := b.(backend.Repairer); ok {
		at = syncer.CheckReported
	}
	if changed == nil {
		at = syncer.CheckAll
		changed = slices.AppendSeq(slices.Collect(maps.Keys(want.Services)), maps.Keys(d.last))
	}
	for _, name := range changed {
		names[name] = true
	}
	done, err := d.Program(ctx, want, maps.Keys(names), at)
	if err == nil {
		d.last = maps.Clone(want.Services)
	}
	return Result{done.Report, done.Full, done.Rejected}, err
}

// Cleanup cleans up, after which nothing is known of the kernel.
func Cleanup(ctx context.Context, b backend.Backend) error {
	Forget(b)
	return b.Cleanup(ctx)
}

// Forget has the next Sync read the kernel back without knowing what it had.
func Forget(b backend.Backend) { drivers.Delete(b) }
