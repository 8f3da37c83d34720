// SPDX-License-Identifier: Apache-2.0

// Command allocator compares package bitmap with the bitmap that
// kube-apiserver allocates ClusterIPs and NodePorts from: a free number is
// taken at random and given back, under a lock on both sides, for ranges from
// a /24 to a /12 and at every degree of fullness. A range of 2^32, which the
// peer cannot have, is measured alone.
//
// Times are CPU time of the thread, in rounds that alternate: what else the
// machine does disturbs both sides alike, and little.
package main

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/kubernetes/pkg/registry/core/service/allocator"

	"github.com/causeway-lb/causeway/internal/bitmap"
	"github.com/causeway-lb/causeway/test/bench/report"
)

const (
	peerName = "kube-apiserver v1.37.2 AllocationBitmap"
	rounds   = 60
	// budget is how long a round takes at most, roughly.
	budget = 2 * time.Millisecond
)

// threadTime is the CPU time that this thread has used.
func threadTime() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &t); err != nil {
		panic(err) // every Linux has this clock
	}
	return time.Duration(t.Nano())
}

func main() {
	runtime.LockOSThread()
	debug.SetGCPercent(-1) // the collector would charge its work to whoever runs
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "allocator:", err)
		os.Exit(1)
	}
}

// contender is a set of numbers under a lock.
type contender interface {
	// use takes a certain number.
	use(n int)
	// cycle takes any free number and gives it back; false when there is none.
	cycle() bool
}

type ours struct {
	mu  sync.Mutex
	set *bitmap.Bitmap
}

func (o *ours) use(n int) { o.set.Set(uint64(n)) }

func (o *ours) cycle() bool {
	o.mu.Lock()
	if o.set.Free() == 0 {
		o.mu.Unlock()
		return false
	}
	n, ok := o.set.FindRandom(rand.Uint64(), 0, o.set.Size())
	if ok {
		o.set.Set(n)
	}
	o.mu.Unlock()
	if !ok {
		return false
	}
	o.mu.Lock()
	o.set.Clear(n)
	o.mu.Unlock()
	return true
}

type peer struct{ set *allocator.AllocationBitmap }

func (p peer) use(n int) {
	if ok, err := p.set.Allocate(n); !ok || err != nil {
		panic(fmt.Sprintf("allocate %d: %v, %v", n, ok, err))
	}
}

func (p peer) cycle() bool {
	n, ok, err := p.set.AllocateNext()
	if err != nil {
		panic(err)
	}
	if ok {
		_ = p.set.Release(n) // never fails
	}
	return ok
}

func run() error {
	out := report.Report{Bench: "allocator"}
	for _, size := range []struct {
		name string
		bits int
	}{{"/24", 8}, {"/20", 12}, {"/16", 16}, {"/12", 20}} {
		n := 1 << size.bits
		for _, fill := range []struct {
			name string
			used int
		}{{"1% full", n / 100}, {"50% full", n / 2}, {"99% full", n - n/100}, {"one left", n - 1}, {"100% full", n}} {
			a, b := &ours{set: bitmap.New(uint64(n))}, peer{allocator.NewAllocationMap(n, size.name)}
			for _, i := range rand.New(rand.NewPCG(1, uint64(n))).Perm(n)[:fill.used] {
				a.use(i)
				b.use(i)
			}
			mine, theirs, err := compare(a, b, fill.used < n)
			if err != nil {
				return fmt.Errorf("%s %s: %w", size.name, fill.name, err)
			}
			figures := report.Summarise(peerName, theirs)
			out.Add(report.Line{Case: size.name + " " + fill.name, Metric: "allocate_ns", Unit: "ns", Ours: report.Summarise("", mine), Peer: &figures})
		}
	}
	if err := huge(&out); err != nil {
		return err
	}
	return out.Write(os.Stdout, filepath.Join("build", "bench"))
}

// compare measures both in turns, so that whatever else the machine does meets
// both alike.
func compare(a, b contender, free bool) (mine, theirs []float64, err error) {
	turns := [2]int{calibrate(a), calibrate(b)}
	for range rounds {
		for i, c := range []contender{a, b} {
			start := threadTime()
			for range turns[i] {
				if c.cycle() != free {
					return nil, nil, fmt.Errorf("contender %d: found a number: %v, want %v", i, !free, free)
				}
			}
			ns := float64(threadTime()-start) / float64(turns[i])
			if i == 0 {
				mine = append(mine, ns)
			} else {
				theirs = append(theirs, ns)
			}
		}
	}
	return mine, theirs, nil
}

// calibrate returns how many cycles fit the budget.
func calibrate(c contender) int {
	n := 1
	for {
		start := threadTime()
		for range n {
			c.cycle()
		}
		if took := threadTime() - start; took > budget/2 {
			return max(1, int(float64(n)*float64(budget)/float64(took)))
		}
		n *= 2
	}
}

// huge measures a /96 of IPv6, with a million numbers used at random.
func huge(out *report.Report) error {
	a := &ours{set: bitmap.New(1 << 32)}
	for a.set.Used() < 1<<20 {
		n, _ := a.set.FindRandom(rand.Uint64(), 0, a.set.Size())
		a.set.Set(n)
	}
	turns := calibrate(a)
	var mine []float64
	for range rounds {
		start := threadTime()
		for range turns {
			if !a.cycle() {
				return fmt.Errorf("/96: nothing free")
			}
		}
		mine = append(mine, float64(threadTime()-start)/float64(turns))
	}
	out.Add(report.Line{Case: "/96 2^20 used", Metric: "allocate_ns", Unit: "ns", Ours: report.Summarise("", mine)})
	return nil
}
