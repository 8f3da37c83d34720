// SPDX-License-Identifier: Apache-2.0

package traffic

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/causeway-lb/causeway/internal/lab/demoserver"
	"github.com/causeway-lb/causeway/internal/lab/network"
)

// Result is what became of one request.
type Result struct {
	// Sent and Done are when it began and ended.
	Sent, Done time.Time
	// Answer is valid when Err is nil.
	Answer demoserver.Answer
	Err    error
	// Lost counts the SYN segments that got no answer in time: those that the kernel
	// sent again before the connection was there, after a second, then two.
	Lost int
}

// Ask sends one request over a new connection from a machine.
func Ask(ctx context.Context, from *network.Namespace, address string) (demoserver.Answer, error) {
	answer, _, err := askCounting(ctx, from, address)
	return answer, err
}

// askCounting also counts lost SYN segments.
func askCounting(ctx context.Context, from *network.Namespace, address string) (answer demoserver.Answer, lost int, err error) {
	client := client(from, true)
	defer client.CloseIdleConnections()
	client.Transport.(*http.Transport).DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := from.Dial(ctx, network, address)
		if err == nil {
			lost, err = resent(conn)
		}
		return conn, err
	}
	answer, err = ask(ctx, client, address)
	return answer, lost, err
}

// resent counts the segments that a new connection has sent again: its SYN.
func resent(conn net.Conn) (int, error) {
	raw, err := conn.(*net.TCPConn).SyscallConn()
	if err != nil {
		return 0, err
	}
	var info *unix.TCPInfo
	var infoErr error
	err = raw.Control(func(fd uintptr) { info, infoErr = unix.GetsockoptTCPInfo(int(fd), unix.SOL_TCP, unix.TCP_INFO) })
	if err = errors.Join(err, infoErr); err != nil {
		return 0, fmt.Errorf("count retransmissions: %w", err)
	}
	return int(info.Total_retrans), nil
}

func client(from *network.Namespace, once bool) *http.Client {
	return &http.Client{Transport: &http.Transport{
		DisableKeepAlives: once,
		MaxIdleConns:      1, MaxConnsPerHost: 1,
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			return from.Dial(ctx, network, address)
		},
	}}
}

func ask(ctx context.Context, client *http.Client, address string) (demoserver.Answer, error) {
	var answer demoserver.Answer
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/", nil)
	if err != nil {
		return answer, err
	}
	response, err := client.Do(request)
	if err != nil {
		return answer, err
	}
	defer response.Body.Close()
	if err := json.NewDecoder(response.Body).Decode(&answer); err != nil {
		return answer, fmt.Errorf("read answer: %w", err)
	}
	_, err = io.Copy(io.Discard, response.Body) // to its end, so that the connection can be used again
	return answer, err
}

// Config says what a Generator sends.
type Config struct {
	From *network.Namespace
	// Address is the frontend, "192.0.2.200:30001".
	Address string
	// Interval between requests. Zero means 20 ms.
	Interval time.Duration
	// Timeout of a request. Zero means 500 ms, which is less than the first
	// retransmission of a lost SYN: one lost packet is one failure.
	Timeout time.Duration
}

// Generator sends requests until it is stopped.
type Generator struct {
	config Config
	cancel context.CancelFunc
	ended  chan struct{}

	mu      sync.Mutex
	results []Result
}

// Generate starts to send.
func Generate(ctx context.Context, config Config) *Generator {
	if config.Interval == 0 {
		config.Interval = 20 * time.Millisecond
	}
	if config.Timeout == 0 {
		config.Timeout = 500 * time.Millisecond
	}
	ctx, cancel := context.WithCancel(ctx)
	g := &Generator{config: config, cancel: cancel, ended: make(chan struct{})}
	go g.run(ctx)
	return g
}

func (g *Generator) run(ctx context.Context) {
	defer close(g.ended)
	var flying sync.WaitGroup
	defer flying.Wait()
	tick := time.NewTicker(g.config.Interval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		flying.Go(func() {
			// A request that is on its way when the generator is stopped
			// still gets its answer.
			own, cancel := context.WithTimeout(context.WithoutCancel(ctx), g.config.Timeout)
			defer cancel()
			result := Result{Sent: time.Now()}
			result.Answer, result.Lost, result.Err = askCounting(own, g.config.From, g.config.Address)
			result.Done = time.Now()
			g.mu.Lock()
			g.results = append(g.results, result)
			g.mu.Unlock()
		})
	}
}

// More waits until n requests have ended that were sent after the call. It
// returns an error if ctx ends or the generator is stopped before that.
func (g *Generator) More(ctx context.Context, n int) error {
	start := time.Now()
	tick := time.NewTicker(g.config.Interval)
	defer tick.Stop()
	for {
		count := g.endedSince(start)
		if count >= n {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %d requests to %s, %d have ended: %w", n, g.config.Address, count, ctx.Err())
		case <-g.ended:
			return fmt.Errorf("wait for %d requests to %s, %d have ended: the generator was stopped", n, g.config.Address, count)
		case <-tick.C:
		}
	}
}

// endedSince counts the results of requests that were sent after a time.
func (g *Generator) endedSince(start time.Time) int {
	g.mu.Lock()
	defer g.mu.Unlock()
	count := 0
	for i := range g.results {
		if g.results[i].Sent.After(start) {
			count++
		}
	}
	return count
}

// Stop ends sending, waits for the last answers and returns all results in
// the order in which requests were sent.
func (g *Generator) Stop() Results {
	g.cancel()
	<-g.ended
	return g.Results()
}

// Results returns what has ended so far, in the order of sending.
func (g *Generator) Results() Results {
	g.mu.Lock()
	defer g.mu.Unlock()
	results := slices.Clone(g.results)
	slices.SortFunc(results, func(a, b Result) int { return a.Sent.Compare(b.Sent) })
	return results
}

// Results are requests in the order in which they were sent.
type Results []Result

// Since returns those sent at or after a time.
func (r Results) Since(t time.Time) Results {
	return slices.DeleteFunc(slices.Clone(r), func(one Result) bool { return one.Sent.Before(t) })
}

// Until returns those sent before a time, whenever they ended.
func (r Results) Until(t time.Time) Results {
	return slices.DeleteFunc(slices.Clone(r), func(one Result) bool { return !one.Sent.Before(t) })
}

// Before returns those that had ended before a time.
func (r Results) Before(t time.Time) Results {
	return slices.DeleteFunc(slices.Clone(r), func(one Result) bool { return !one.Done.Before(t) })
}

// Failed returns those without an answer.
func (r Results) Failed() Results {
	return slices.DeleteFunc(slices.Clone(r), func(one Result) bool { return one.Err == nil })
}

// Resent returns those whose SYN was lost once or more, answered or not.
func (r Results) Resent() Results {
	return slices.DeleteFunc(slices.Clone(r), func(one Result) bool { return one.Lost == 0 })
}

// Hosts counts the answers by server.
func (r Results) Hosts() map[string]int {
	count := map[string]int{}
	for _, one := range r {
		if one.Err == nil {
			count[one.Answer.Host]++
		}
	}
	return count
}

// Sources counts the answers by the client's address as the servers saw it.
func (r Results) Sources() map[string]int {
	count := map[string]int{}
	for _, one := range r {
		if one.Err == nil {
			count[one.Answer.ClientIP]++
		}
	}
	return count
}

// LongestOutage returns the longest time in which no request succeeded that
// was sent in it: from the last good one before a failure to the first good
// one after. An outage at the end lasts until the last request.
func (r Results) LongestOutage() time.Duration {
	var longest time.Duration
	var good time.Time
	failing := false
	for _, one := range r {
		if good.IsZero() {
			good = one.Sent
		}
		failing = failing || one.Err != nil
		if failing {
			longest = max(longest, one.Sent.Sub(good))
		}
		if one.Err == nil {
			good, failing = one.Sent, false
		}
	}
	return longest
}

// FirstAnswer returns when the first answer came, and false if none did.
func (r Results) FirstAnswer() (time.Time, bool) {
	var first time.Time
	for _, one := range r {
		if one.Err == nil && (first.IsZero() || one.Done.Before(first)) {
			first = one.Done
		}
	}
	return first, !first.IsZero()
}

// Steady returns when the first request was sent after which none failed, and
// false when the last one failed.
func (r Results) Steady() (time.Time, bool) {
	var since time.Time
	for _, one := range r {
		switch {
		case one.Err != nil:
			since = time.Time{}
		case since.IsZero():
			since = one.Sent
		}
	}
	return since, !since.IsZero()
}
