// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// contender is a program that programs Services.
type contender struct {
	name string
	path string
	args []string
	// metric and labels are its own figure for the first full sync, at
	// metricsURL.
	metricsURL     string
	metric, labels string
}

type contenders struct {
	ours, peer *contender
	dir        string
}

func newContenders(ctx context.Context, c *cluster) (*contenders, error) {
	dir, err := os.MkdirTemp("", "nftables-sync-")
	if err != nil {
		return nil, err
	}
	agent := filepath.Join(dir, "agent")
	if out, err := exec.CommandContext(ctx, "go", "build", "-o", agent, "./cmd/agent").CombinedOutput(); err != nil {
		_ = os.RemoveAll(dir)
		return nil, fmt.Errorf("build agent: %w: %s", err, out)
	}
	proxy := filepath.Join(c.assets, "kube-proxy")
	version, err := exec.CommandContext(ctx, proxy, "--version").Output()
	if err != nil {
		return nil, fmt.Errorf("ask kube-proxy for its version: %w", err)
	}
	v := strings.TrimPrefix(strings.TrimSpace(string(version)), "Kubernetes ")
	return &contenders{
		dir: dir,
		ours: &contender{
			name: "causeway agent", path: agent,
			args: []string{"--node-name=" + nodeName, "--kubeconfig=" + c.kubeconfig, "--announce=false",
				"--metrics-address=127.0.0.1:10249", "--health-address=127.0.0.1:10256"},
			metricsURL: "http://127.0.0.1:10249/metrics",
			metric:     "causeway_proxy_sync_duration_seconds", labels: `kind="full"`,
		},
		peer: &contender{
			name: "kube-proxy " + v + " nftables", path: proxy,
			args: []string{"--proxy-mode=nftables", "--hostname-override=" + nodeName, "--kubeconfig=" + c.kubeconfig,
				"--cluster-cidr=10.244.0.0/16", "--conntrack-max-per-core=0",
				"--metrics-bind-address=127.0.0.1:10249", "--healthz-bind-address=127.0.0.1:10256"},
			metricsURL: "http://127.0.0.1:10249/metrics",
			metric:     "kubeproxy_sync_proxy_rules_duration_seconds", labels: `ip_family="IPv4"`,
		},
	}, nil
}

func (cs *contenders) clean() { _ = os.RemoveAll(cs.dir) }

// process is one run of a contender.
type process struct {
	cmd     *exec.Cmd
	output  bytes.Buffer
	stop    context.CancelFunc
	watched chan struct{}

	mu   sync.Mutex
	peak float64 // MB
}

func (c *contender) start(ctx context.Context) (*process, error) {
	ctx, cancel := context.WithCancel(ctx)
	p := &process{stop: cancel, watched: make(chan struct{})}
	p.cmd = exec.CommandContext(ctx, c.path, c.args...)
	p.cmd.Stdout, p.cmd.Stderr = &p.output, &p.output
	p.cmd.Cancel = func() error { return p.cmd.Process.Signal(syscall.SIGTERM) }
	p.cmd.WaitDelay = 10 * time.Second
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		cancel()
		return nil, err
	}
	go p.watchMemory(ctx)
	return p, nil
}

// end stops the process and returns its CPU seconds with its children's.
func (p *process) end() float64 {
	p.stop()
	_ = p.cmd.Wait() // ended by a signal, which is meant
	<-p.watched
	s := p.cmd.ProcessState
	return s.UserTime().Seconds() + s.SystemTime().Seconds()
}

// watchMemory notes the most that the process and its children have.
func (p *process) watchMemory(ctx context.Context) {
	defer close(p.watched)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			mb := treeRSS(p.cmd.Process.Pid)
			p.mu.Lock()
			p.peak = max(p.peak, mb)
			p.mu.Unlock()
		}
	}
}

// treeRSS is the resident memory of a process and its children, in MB.
func treeRSS(pid int) float64 {
	mb := statusMB(pid)
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, t := range tasks {
		data, _ := os.ReadFile(t)
		for _, child := range strings.Fields(string(data)) {
			if n, err := strconv.Atoi(child); err == nil {
				mb += statusMB(n)
			}
		}
	}
	return mb
}

func statusMB(pid int) float64 {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(data)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kb, _ := strconv.ParseFloat(strings.Fields(rest)[0], 64)
			return kb / 1024
		}
	}
	return 0
}

// measure starts the contender on an empty kernel and, if changes, has it
// follow changes.
func (c *contender) measure(ctx context.Context, cl *cluster, s *samples, changes bool) error {
	if out, err := exec.CommandContext(ctx, "nft", "flush", "ruleset").CombinedOutput(); err != nil {
		return fmt.Errorf("empty the kernel: %w: %s", err, out)
	}
	o, err := newObserver()
	if err != nil {
		return err
	}
	defer o.close()
	p, err := c.start(ctx)
	if err != nil {
		return err
	}
	err = c.follow(ctx, cl, p, o, s, changes)
	cpu := p.end()
	if err != nil {
		tail := p.output.Bytes()
		return fmt.Errorf("%w\n%s", err, tail[max(0, len(tail)-2000):])
	}
	s.cpu = append(s.cpu, cpu)
	s.rss = append(s.rss, p.peak)
	return nil
}

const (
	startLimit  = 10 * time.Minute
	changeLimit = time.Minute
	changesEach = 20
)

func (c *contender) follow(ctx context.Context, cl *cluster, p *process, o *observer, s *samples, changes bool) error {
	last := frontendPatterns(clusterIP(cl.services - 1))
	if err := o.await(ctx, startLimit, last...); err != nil {
		return fmt.Errorf("first sync: %w", err)
	}
	took, err := c.firstSync(ctx)
	if err != nil {
		return err
	}
	s.fullSync = append(s.fullSync, took)
	if !changes {
		return nil
	}
	for i := range changesEach {
		if err := settle(ctx); err != nil {
			return err
		}
		took, err := cl.changeEndpoint(ctx, o, i)
		if err != nil {
			return fmt.Errorf("change endpoint: %w", err)
		}
		s.endpointChange = append(s.endpointChange, took.Seconds())
	}
	for range changesEach {
		if err := settle(ctx); err != nil {
			return err
		}
		took, err := cl.addService(ctx, o)
		if err != nil {
			return fmt.Errorf("add Service: %w", err)
		}
		s.serviceAdd = append(s.serviceAdd, took.Seconds())
	}
	return nil
}

// settle lets kube-proxy finish what it does a second after a change.
func settle(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(1500 * time.Millisecond):
		return nil
	}
}

// firstSync reads the contender's own figure.
func (c *contender) firstSync(ctx context.Context) (float64, error) {
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline) && ctx.Err() == nil; time.Sleep(50 * time.Millisecond) {
		sum, count, err := scrape(ctx, c.metricsURL, c.metric, c.labels)
		if err == nil && count > 0 {
			return sum / count, nil
		}
	}
	return 0, errors.Join(ctx.Err(), fmt.Errorf("%s does not tell %s", c.name, c.metric))
}

func scrape(ctx context.Context, url, metric, labels string) (sum, count float64, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return 0, 0, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, 0, err
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(io.LimitReader(resp.Body, 16<<20))
	for lines.Scan() {
		line := lines.Text()
		if !strings.Contains(line, labels) {
			continue
		}
		fields := strings.Fields(line)
		v, _ := strconv.ParseFloat(fields[len(fields)-1], 64)
		switch {
		case strings.HasPrefix(line, metric+"_sum"):
			sum = v
		case strings.HasPrefix(line, metric+"_count"):
			count = v
		}
	}
	return sum, count, lines.Err()
}

// changeEndpoint replaces one endpoint of a Service and waits for the commit.
func (c *cluster) changeEndpoint(ctx context.Context, o *observer, round int) (time.Duration, error) {
	i := (round*7919 + 3) % c.services
	c.spare++
	fresh := spareAddr(c.spare)
	addrs := append([]netip.Addr{fresh}, endpointsOf(i)[1:]...)
	sl := slice(i, addrs...)
	sl.UID = "" // an update without conditions
	o.drain()
	start := time.Now()
	if _, err := c.kube.DiscoveryV1().EndpointSlices(namespace).Update(ctx, sl, metav1.UpdateOptions{}); err != nil {
		return 0, err
	}
	err := o.await(ctx, changeLimit, endpointPatterns(fresh)...)
	return time.Since(start), err
}

// addService adds a Service with its endpoints and waits for the commit.
func (c *cluster) addService(ctx context.Context, o *observer) (time.Duration, error) {
	i := c.services + c.added
	c.added++
	sl := slice(i, endpointsOf(i)...)
	sl.UID = ""
	if _, err := c.kube.DiscoveryV1().EndpointSlices(namespace).Create(ctx, sl, metav1.CreateOptions{}); err != nil {
		return 0, err
	}
	if err := settle(ctx); err != nil {
		return 0, err
	}
	svc := service(i)
	svc.UID = ""
	o.drain()
	start := time.Now()
	if _, err := c.kube.CoreV1().Services(namespace).Create(ctx, svc, metav1.CreateOptions{}); err != nil {
		return 0, err
	}
	err := o.await(ctx, changeLimit, frontendPatterns(clusterIP(i))...)
	return time.Since(start), err
}
