// SPDX-License-Identifier: Apache-2.0

package userspace

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/types"

	"github.com/causeway-lb/causeway/internal/proxy/model"
)

// What connections cost in file descriptors: two sockets, and two pipes of two
// ends each that splice moves the data through; a flow has one socket.
const (
	costTCP = 6
	costUDP = 1
)

// reserved descriptors are for the rest of the agent, which must go on when
// the proxy is full.
const reserved = 512

// overFor is how long a Service is said to be over the limit after the last
// connection that was refused.
const overFor = time.Minute

// budget counts the descriptors of connections against the process's limit.
type budget struct {
	limit int64
	used  atomic.Int64

	mu   sync.Mutex
	over map[types.NamespacedName]time.Time // last refused connection
	told time.Time
	// tell, unless nil, hears that over has changed, now and then.
	tell func()
}

// newBudget takes the process's limit if limit is 0.
func newBudget(limit int) (*budget, error) {
	if limit == 0 {
		var r unix.Rlimit
		if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &r); err != nil {
			return nil, fmt.Errorf("read the limit of file descriptors: %w", err)
		}
		limit = int(min(r.Cur, 1<<30))
		limit -= min(reserved, limit/2)
	}
	return &budget{limit: int64(limit), over: map[types.NamespacedName]time.Time{}}, nil
}

// take reserves descriptors, unless there are too few.
func (b *budget) take(n int64, svc types.NamespacedName, now time.Time) bool {
	if b.used.Add(n) <= b.limit {
		return true
	}
	b.used.Add(-n)
	b.mu.Lock()
	_, known := b.over[svc]
	b.over[svc] = now
	tell := !known && now.Sub(b.told) > overFor/10
	if tell {
		b.told = now
	}
	b.mu.Unlock()
	if tell && b.tell != nil {
		b.tell()
	}
	return false
}

func (b *budget) give(n int64) { b.used.Add(-n) }

// problems tells which Services had connections refused lately.
func (b *budget) problems(now time.Time) []model.Problem {
	b.mu.Lock()
	defer b.mu.Unlock()
	var ps []model.Problem
	for svc, last := range b.over {
		if now.Sub(last) > overFor {
			delete(b.over, svc)
			continue
		}
		ps = append(ps, model.Problem{Service: svc, Reason: "ConnectionLimit", Message: fmt.Sprintf(
			"connections are refused by this node: its proxy may use %d file descriptors, %d a TCP connection, and has none left; "+
				"raise the agent's limit of open files, or use mode nftables, iptables or ipvs", b.limit, costTCP)})
	}
	return ps
}
