// SPDX-License-Identifier: Apache-2.0

package proxybench

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Contender is a program that programs Services.
type Contender struct {
	Name, Path string
	Args       []string
	// Metric and Labels are its own figure for the time of a sync.
	Metric, Labels string
}

const metricsURL = "http://127.0.0.1:10249/metrics"

// Pair builds the agent into dir and returns it and kube-proxy, for the same
// mode.
func Pair(ctx context.Context, c *Cluster, dir, mode string) (ours, peer *Contender, err error) {
	agent := filepath.Join(dir, "agent")
	if out, err := exec.CommandContext(ctx, "go", "build", "-o", agent, "./cmd/agent").CombinedOutput(); err != nil {
		return nil, nil, fmt.Errorf("build agent: %w: %s", err, out)
	}
	proxy := filepath.Join(c.Assets, "kube-proxy")
	version, err := exec.CommandContext(ctx, proxy, "--version").Output()
	if err != nil {
		return nil, nil, fmt.Errorf("ask kube-proxy for its version: %w", err)
	}
	v := strings.TrimPrefix(strings.TrimSpace(string(version)), "Kubernetes ")
	return &Contender{
			Name: "causeway agent", Path: agent,
			Args: []string{"--mode=" + mode, "--node-name=" + NodeName, "--kubeconfig=" + c.Kubeconfig, "--announce=false",
				"--metrics-address=127.0.0.1:10249", "--health-address=127.0.0.1:10256"},
			Metric: "causeway_proxy_sync_duration_seconds", Labels: `kind="full"`,
		}, &Contender{
			Name: "kube-proxy " + v + " " + mode, Path: proxy,
			Args: []string{"--proxy-mode=" + mode, "--hostname-override=" + NodeName, "--kubeconfig=" + c.Kubeconfig,
				"--cluster-cidr=10.244.0.0/16", "--conntrack-max-per-core=0",
				"--metrics-bind-address=127.0.0.1:10249", "--healthz-bind-address=127.0.0.1:10256"},
			Metric: "kubeproxy_sync_proxy_rules_duration_seconds", Labels: `ip_family="IPv4"`,
		}, nil
}

// Process is one run of a contender.
type Process struct {
	cmd     *exec.Cmd
	output  bytes.Buffer
	stop    context.CancelFunc
	watched chan struct{}

	mu   sync.Mutex
	peak float64 // MB
}

// Start starts it. End the process.
func (c *Contender) Start(ctx context.Context) (*Process, error) {
	ctx, cancel := context.WithCancel(ctx)
	p := &Process{stop: cancel, watched: make(chan struct{})}
	p.cmd = exec.CommandContext(ctx, c.Path, c.Args...)
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

// End stops the process and returns its CPU seconds with its children's.
func (p *Process) End() float64 {
	p.stop()
	_ = p.cmd.Wait() // ended by a signal, which is meant
	<-p.watched
	s := p.cmd.ProcessState
	return s.UserTime().Seconds() + s.SystemTime().Seconds()
}

// watchMemory notes the most that the process and its children have.
func (p *Process) watchMemory(ctx context.Context) {
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

// Peak is the most that the process and its children had at a time, in MB. Ask
// after End.
func (p *Process) Peak() float64 { return p.peak }

// Rest waits until the process has nothing to do any more, and returns what it has
// then, in MB.
func (p *Process) Rest(ctx context.Context) (float64, error) {
	const window, idle, limit = 3 * time.Second, 0.03, 15 * time.Minute
	last := -1.0
	for deadline := time.Now().Add(limit); time.Now().Before(deadline); {
		seconds, err := cpuSeconds(p.cmd.Process.Pid)
		if err != nil {
			return 0, err
		}
		if last >= 0 && seconds-last < idle*window.Seconds() {
			return statusMB(p.cmd.Process.Pid), nil
		}
		last = seconds
		select {
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-time.After(window):
		}
	}
	return 0, fmt.Errorf("busy for %v", limit)
}

// cpuSeconds is the CPU time that a process has used.
func cpuSeconds(pid int) (float64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// The program's name, in parentheses, may hold blanks.
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	user, err1 := strconv.ParseFloat(fields[11], 64)
	system, err2 := strconv.ParseFloat(fields[12], 64)
	return (user + system) / 100, errors.Join(err1, err2)
}

// Tail is the end of what it printed. Ask after End.
func (p *Process) Tail() []byte {
	all := p.output.Bytes()
	return all[max(0, len(all)-2000):]
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

// FirstSync waits for the first sync and reads the contender's own figure, the
// mean of the syncs that it has made by then.
func (c *Contender) FirstSync(ctx context.Context) (took float64, syncs int, err error) {
	const limit = 10 * time.Minute
	for deadline := time.Now().Add(limit); time.Now().Before(deadline) && ctx.Err() == nil; time.Sleep(10 * time.Millisecond) {
		sum, count, err := scrape(ctx, metricsURL, c.Metric, c.Labels)
		if err == nil && count > 0 {
			return sum / count, int(count), nil
		}
	}
	return 0, 0, errors.Join(ctx.Err(), fmt.Errorf("%s does not tell %s", c.Name, c.Metric))
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
