// SPDX-License-Identifier: Apache-2.0

package kubelet

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/causeway-lb/causeway/internal/lab/sandbox"
)

// Restart back-off: none after the first end, then doubling.
const (
	minBackOff = 250 * time.Millisecond
	maxBackOff = 10 * time.Second
	// steady is how long a container must run for its back-off to be forgotten.
	steady = 10 * time.Second
)

// container is one container of a Pod over all its runs.
type container struct {
	w    *worker
	spec *corev1.Container

	mu             sync.Mutex
	state, last    corev1.ContainerState
	ready, started bool
	restarts       int32
	pid            int
	running        *sandbox.Process // nil while none runs
	ran            sandbox.Spec     // what runs, or ran last
	stdin          io.WriteCloser   // of a container with stdin
}

// process returns what runs, nil while nothing does.
func (c *container) process() *sandbox.Process {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.running
}

func newContainer(w *worker, spec *corev1.Container, before []corev1.ContainerStatus) *container {
	c := &container{w: w, spec: spec}
	for _, old := range before {
		// The node was restarted: whatever ran before is over.
		if old.Name == spec.Name && (old.State.Running != nil || old.LastTerminationState.Terminated != nil) {
			c.restarts = old.RestartCount + 1
			c.last = old.LastTerminationState
			if old.State.Running != nil {
				c.last = corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{
					ExitCode: 137, Reason: "NodeRestarted", StartedAt: old.State.Running.StartedAt, FinishedAt: metav1.Now(),
				}}
			}
		}
	}
	return c
}

// status describes the container; waiting is why it has not started yet.
func (c *container) status(waiting corev1.ContainerStateWaiting) corev1.ContainerStatus {
	c.mu.Lock()
	defer c.mu.Unlock()
	status := corev1.ContainerStatus{
		Name: c.spec.Name, Image: c.spec.Image, ImageID: "lab://" + c.spec.Image,
		State: c.state, LastTerminationState: c.last,
		Ready: c.ready, Started: ptr.To(c.started), RestartCount: c.restarts,
	}
	if c.state == (corev1.ContainerState{}) {
		status.State.Waiting = &waiting
	}
	if c.state.Running != nil || c.state.Terminated != nil {
		status.ContainerID = fmt.Sprintf("lab://%s-%s-%d", c.w.uid, c.spec.Name, c.restarts)
	}
	return status
}

// change modifies the state and has it reported.
func (c *container) change(f func()) {
	c.mu.Lock()
	f()
	c.mu.Unlock()
	c.w.touch()
}

// runInitial runs an init container until it succeeds. It tells whether it did.
func (c *container) runInitial(ctx context.Context) bool {
	c.run(ctx)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state.Terminated == nil || c.state.Terminated.ExitCode != 0 {
		return false
	}
	c.ready = true
	return true
}

// runOnce runs an ephemeral container, which is never restarted.
func (c *container) runOnce(ctx context.Context) {
	if process, err := c.start(); err == nil {
		c.oneRun(ctx, process)
	}
}

// run starts the container, again and again as the restart policy has it,
// until it has ended for good or ctx ends. Then it is stopped with grace.
func (c *container) run(ctx context.Context) {
	backOff := time.Duration(0)
	for again := false; c.released(ctx, again); again = true {
		began := time.Now()
		process, err := c.start()
		if err == nil {
			c.oneRun(ctx, process)
		}
		if ctx.Err() != nil || err == nil && !c.restartable() {
			return
		}
		if time.Since(began) > steady {
			backOff = 0
		}
		if backOff > 0 {
			why := fmt.Sprintf("back-off %s restarting", backOff)
			if err != nil {
				why += ": " + err.Error()
			}
			c.change(func() { c.wait("CrashLoopBackOff", why) })
			if !sleep(ctx, backOff) {
				return
			}
		}
		backOff = min(max(2*backOff, minBackOff), maxBackOff)
	}
}

// HoldAnnotation on a Pod keeps containers that have ended from being started
// again, for tests of what happens while they are down.
const HoldAnnotation = "lab.causeway.dev/hold"

// released waits while the Pod is held. It tells whether ctx is still alive.
func (c *container) released(ctx context.Context, again bool) bool {
	for pod := c.w.current(); ctx.Err() == nil; pod = c.w.current() {
		if again {
			// The watch may not have told yet that it is held.
			pod = c.latest(ctx, pod)
		}
		if pod.Annotations[HoldAnnotation] == "" {
			return true
		}
		if !sleep(ctx, eager) {
			return false
		}
	}
	return false
}

// latest asks the API server for the Pod; while it is down the known one must do.
func (c *container) latest(ctx context.Context, known *corev1.Pod) *corev1.Pod {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	pod, err := c.w.k.client.CoreV1().Pods(known.Namespace).Get(ctx, known.Name, metav1.GetOptions{})
	if err != nil {
		return known
	}
	return pod
}

// wait moves an end of a run to the last state. It needs c.mu.
func (c *container) wait(reason, message string) {
	if c.state.Terminated != nil {
		c.last = c.state
	}
	c.state = corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason, Message: message}}
}

func (c *container) restartable() bool {
	// Not under c.mu: whoever holds both locks took the worker's first.
	policy := c.w.current().Spec.RestartPolicy
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.sidecar() {
		return true
	}
	failed := c.state.Terminated != nil && c.state.Terminated.ExitCode != 0
	if c.initial() && policy == corev1.RestartPolicyAlways {
		policy = corev1.RestartPolicyOnFailure
	}
	return policy == corev1.RestartPolicyAlways || policy == corev1.RestartPolicyOnFailure && failed
}

// sidecar reports whether this is a restartable init container (KEP-753).
func (c *container) sidecar() bool { return sidecar(c.spec) }

func sidecar(spec *corev1.Container) bool {
	return ptr.Deref(spec.RestartPolicy, "") == corev1.ContainerRestartPolicyAlways
}

// awaitStarted waits until a sidecar has started and passed its startup probe.
// It reports whether it has.
func (c *container) awaitStarted(ctx context.Context) bool {
	for {
		c.mu.Lock()
		started := c.started && c.running != nil
		c.mu.Unlock()
		if started {
			return true
		}
		if !sleep(ctx, 50*time.Millisecond) {
			return false
		}
	}
}

func (c *container) initial() bool {
	for _, other := range c.w.initial {
		if other == c {
			return true
		}
	}
	return false
}

// start executes the program and records that, or why it could not.
func (c *container) start() (*sandbox.Process, error) {
	process, reason, err := c.execute()
	if err != nil {
		c.change(func() { c.wait(reason, err.Error()) })
		c.w.k.events.Event(c.w.current(), corev1.EventTypeWarning, "Failed", err.Error())
		return nil, err
	}
	c.change(func() {
		if c.state.Terminated != nil {
			c.last = c.state
		}
		if c.last.Terminated != nil && c.pid != 0 {
			c.restarts++
		}
		c.pid, c.running = process.PID, process
		c.state = corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: metav1.Now()}}
		c.started = c.spec.StartupProbe == nil
		c.ready = c.started && c.spec.ReadinessProbe == nil
	})
	return process, nil
}

func (c *container) execute() (*sandbox.Process, string, error) {
	image, err := c.w.k.config.image(c.spec.Image)
	if err != nil {
		return nil, "ErrImagePull", err
	}
	spec, err := c.sandbox(image)
	if err != nil {
		return nil, "CreateContainerConfigError", err
	}
	log, err := c.openLog()
	if err != nil {
		return nil, "CreateContainerError", err
	}
	defer log.Close()
	streams := sandbox.Streams{Out: log, Err: log}
	var stdin *os.File
	if c.spec.Stdin {
		var read *os.File
		if read, stdin, err = os.Pipe(); err != nil {
			return nil, "CreateContainerError", err
		}
		defer read.Close()
		streams.In = read
	}
	process, err := sandbox.Start(spec, streams)
	if err != nil {
		stdin.Close()
		return nil, "RunContainerError", err
	}
	c.mu.Lock()
	c.ran, c.stdin = spec, nil
	if stdin != nil {
		c.stdin = stdin
	}
	c.mu.Unlock()
	if err := c.writePID(process.PID); err != nil {
		process.Kill()
		process.Wait()
		return nil, "RunContainerError", err
	}
	return process, "", nil
}

// oneRun waits for the end of a run: by itself, because the Pod ends, or
// because a probe says that it must.
func (c *container) oneRun(ctx context.Context, process *sandbox.Process) {
	ended := make(chan int, 1)
	go func() { ended <- process.Wait() }()
	probing, stopProbing := context.WithCancel(context.WithoutCancel(ctx))
	sick := make(chan string, 1)
	var probes sync.WaitGroup
	probes.Go(func() { c.probe(probing, sick) })
	if limit, ok := c.spec.Resources.Limits[corev1.ResourceEphemeralStorage]; ok {
		probes.Go(func() { c.limitStorage(probing, process.PID, limit.Value()) })
	}
	defer probes.Wait()
	defer stopProbing()

	if hook := c.spec.Lifecycle; hook != nil && hook.PostStart != nil {
		if err := c.runHook(ctx, hook.PostStart); err != nil {
			c.w.k.events.Event(c.w.current(), corev1.EventTypeWarning, "FailedPostStartHook", err.Error())
			process.Kill()
		}
	}
	var code int
	select {
	case code = <-ended:
	case why := <-sick:
		c.w.k.events.Event(c.w.current(), corev1.EventTypeWarning, "Unhealthy", why)
		code = c.stop(process, ended)
		if code == 0 {
			code = 137
		}
	case <-ctx.Done():
		code = c.stop(process, ended)
	}
	reason := "Completed"
	if code != 0 {
		reason = "Error"
	}
	c.change(func() {
		began := metav1.Time{}
		if c.state.Running != nil {
			began = c.state.Running.StartedAt
		}
		c.state = corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{
			ExitCode: int32(code), Reason: reason, StartedAt: began, FinishedAt: metav1.Now(),
		}}
		c.ready, c.started, c.running = false, false, nil
		if c.stdin != nil {
			c.stdin.Close()
		}
	})
}

// limitStorage evicts the Pod when the container's own file system, a tmpfs,
// holds more than limit bytes.
func (c *container) limitStorage(ctx context.Context, pid int, limit int64) {
	for sleep(ctx, time.Second) {
		var fs unix.Statfs_t
		if err := unix.Statfs(fmt.Sprintf("/proc/%d/root", pid), &fs); err != nil {
			continue
		}
		if used := int64(fs.Blocks-fs.Bfree) * fs.Bsize; used > limit {
			c.w.evict(fmt.Sprintf("Container %s exceeded its local ephemeral storage limit %d", c.spec.Name, limit))
			return
		}
	}
}

// stop asks the program to end and, when its grace is over, kills it. It
// returns the exit code.
func (c *container) stop(process *sandbox.Process, ended <-chan int) int {
	pod := c.w.current()
	seconds := ptr.Deref(pod.DeletionGracePeriodSeconds, ptr.Deref(pod.Spec.TerminationGracePeriodSeconds, 30))
	grace, cancel := context.WithTimeout(context.Background(), time.Duration(seconds)*time.Second)
	defer cancel()
	if hook := c.spec.Lifecycle; hook != nil && hook.PreStop != nil {
		if err := c.runHook(grace, hook.PreStop); err != nil {
			c.w.k.events.Event(pod, corev1.EventTypeWarning, "FailedPreStopHook", err.Error())
		}
	}
	if err := process.Signal(syscall.SIGTERM); err != nil {
		c.w.k.log.Error(err, "Signal not sent", "pod", pod.Name, "container", c.spec.Name)
	}
	select {
	case code := <-ended:
		return code
	case <-grace.Done():
	case <-c.w.killed:
	}
	process.Kill()
	return <-ended
}

func (c *container) logPath() string {
	pod := c.w.current()
	return LogPath(c.w.k.config.Logs, pod.Namespace, pod.Name, c.spec.Name)
}

// LogPath is where a container's output goes, below a node's log directory.
func LogPath(logs, namespace, pod, container string) string {
	return filepath.Join(logs, namespace+"_"+pod, container+".log")
}

func (c *container) openLog() (*os.File, error) {
	path := c.logPath()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("make log directory: %w", err)
	}
	log, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	return log, nil
}

// PIDPath is where a container's process id is found, below the runtime
// directory.
func PIDPath(runtime, namespace, pod, container string) string {
	return filepath.Join(runtime, namespace+"_"+pod, container)
}

func (c *container) writePID(pid int) error {
	pod := c.w.current()
	path := PIDPath(c.w.k.config.Runtime, pod.Namespace, pod.Name, c.spec.Name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("write process id: %w", err)
	}
	if err := os.WriteFile(path, []byte(strconv.Itoa(pid)), 0o644); err != nil {
		return fmt.Errorf("write process id: %w", err)
	}
	return nil
}
