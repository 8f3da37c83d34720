// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// contender is a program that keeps slices.
type contender struct {
	name    string
	command []string

	process *exec.Cmd
	log     *os.File
}

type contenders struct {
	ours, peer *contender
	dir        string
}

// newContenders builds our controller as the image has it, and describes both.
func newContenders(ctx context.Context, cluster *clusterAPI, assets string) (*contenders, error) {
	dir, err := os.MkdirTemp("", "bench-endpointslice-")
	if err != nil {
		return nil, err
	}
	binary := filepath.Join(dir, "controller")
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", binary, "./cmd/controller")
	build.Stderr = os.Stderr
	if err := build.Run(); err != nil {
		return nil, fmt.Errorf("build controller: %w", err)
	}
	peer := filepath.Join(assets, "kube-controller-manager")
	version, err := exec.CommandContext(ctx, peer, "--version").Output()
	if err != nil {
		return nil, fmt.Errorf("ask kube-controller-manager for its version: %w", err)
	}
	fields := strings.Fields(string(version))
	return &contenders{
		dir: dir,
		ours: &contender{name: "causeway", command: []string{binary,
			"--kubeconfig", cluster.kubeconfig, "--kube-api-qps", "2000",
			"--load-balancer=false", "--allocation=false", "--webhook-port=0",
			"--metrics-address=0", "--health-address=127.0.0.1:0"}},
		peer: &contender{name: "kube-controller-manager " + fields[len(fields)-1], command: []string{peer,
			"--kubeconfig", cluster.kubeconfig, "--kube-api-qps", "2000", "--kube-api-burst", "4000",
			"--leader-elect=false", "--secure-port=0",
			"--controllers=endpointslice-controller,endpoints-controller,endpointslice-mirroring-controller"}},
	}, nil
}

func (c *contenders) clean() { os.RemoveAll(c.dir) }

// start runs the contender; its log goes to a file that is shown if it ends
// early.
func (c *contender) start() error {
	var err error
	if c.log, err = os.CreateTemp("", "bench-endpointslice-*.log"); err != nil {
		return err
	}
	c.process = exec.Command(c.command[0], c.command[1:]...)
	c.process.Stdout, c.process.Stderr = c.log, c.log
	c.process.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := c.process.Start(); err != nil {
		return fmt.Errorf("start %s: %w", c.name, err)
	}
	return nil
}

// stop ends the contender.
func (c *contender) stop() {
	_ = c.process.Process.Signal(syscall.SIGTERM)
	done := make(chan struct{})
	go func() {
		_ = c.process.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		_ = c.process.Process.Kill()
		<-done
	}
	c.log.Close()
	os.Remove(c.log.Name())
}

// tail returns the end of the contender's log.
func (c *contender) tail() string {
	text, _ := os.ReadFile(c.log.Name())
	lines := bytes.Split(bytes.TrimSpace(text), []byte("\n"))
	return string(bytes.Join(lines[max(0, len(lines)-10):], []byte("\n")))
}

// cpu returns the seconds of CPU time that the process has used.
func (c *contender) cpu() (float64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", c.process.Process.Pid))
	if err != nil {
		return 0, fmt.Errorf("read CPU time of %s: %w\n%s", c.name, err, c.tail())
	}
	// The program's name, in parentheses, may hold blanks.
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	user, err1 := strconv.ParseFloat(fields[11], 64)
	system, err2 := strconv.ParseFloat(fields[12], 64)
	if err1 != nil || err2 != nil {
		return 0, fmt.Errorf("read CPU time of %s: unexpected %q", c.name, text)
	}
	return (user + system) / 100, nil
}

// rss returns the most memory that the process has had, in MB.
func (c *contender) rss() (float64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", c.process.Process.Pid))
	if err != nil {
		return 0, fmt.Errorf("read memory of %s: %w\n%s", c.name, err, c.tail())
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kilobytes, err := strconv.ParseFloat(strings.Fields(rest)[0], 64)
			return kilobytes / 1024, err
		}
	}
	return 0, fmt.Errorf("read memory of %s: no VmHWM", c.name)
}
