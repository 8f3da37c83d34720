// SPDX-License-Identifier: Apache-2.0

package kubelet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"time"

	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	utilexec "k8s.io/utils/exec"
)

// How long a stream may be idle, and how long its parts may take to be made,
// as in the kubelet.
const (
	streamIdle     = 4 * time.Hour
	streamCreation = remotecommand.DefaultStreamCreationTimeout
)

// handleStreams adds exec, attach and port-forward to the kubelet's API, over
// SPDY and WebSocket.
func (k *Kubelet) handleStreams(mux *http.ServeMux) {
	for _, path := range []string{"/{namespace}/{pod}/{container}", "/{namespace}/{pod}/{uid}/{container}"} {
		mux.HandleFunc("/exec"+path, k.serveExec)
		mux.HandleFunc("/attach"+path, k.serveAttach)
	}
	mux.HandleFunc("/portForward/{namespace}/{pod}", k.servePortForward)
	mux.HandleFunc("/portForward/{namespace}/{pod}/{uid}", k.servePortForward)
}

// findPod returns the worker of a Pod by its name, nil for one that is not here.
func (k *Kubelet) findPod(namespace, name string) *worker {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, w := range k.workers {
		if pod := w.current(); pod.Namespace == namespace && pod.Name == name && !w.ended() {
			return w
		}
	}
	return nil
}

// runningContainer returns the container that a request is about. An error has been
// answered already.
func (k *Kubelet) runningContainer(w http.ResponseWriter, r *http.Request) (*container, bool) {
	pod := k.findPod(r.PathValue("namespace"), r.PathValue("pod"))
	if pod == nil {
		http.Error(w, "pod does not exist", http.StatusNotFound)
		return nil, false
	}
	c := pod.container(r.PathValue("container"))
	if c == nil || c.process() == nil {
		http.Error(w, fmt.Sprintf("container not found (%q)", r.PathValue("container")), http.StatusNotFound)
		return nil, false
	}
	return c, true
}

func (k *Kubelet) serveExec(w http.ResponseWriter, r *http.Request) {
	c, ok := k.runningContainer(w, r)
	if !ok {
		return
	}
	options, err := remotecommand.NewOptions(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	remotecommand.ServeExec(w, r, c, r.PathValue("pod"), string(c.w.uid), c.spec.Name, r.URL.Query()["command"], options,
		streamIdle, streamCreation, remotecommand.SupportedStreamingProtocols)
}

func (k *Kubelet) serveAttach(w http.ResponseWriter, r *http.Request) {
	c, ok := k.runningContainer(w, r)
	if !ok {
		return
	}
	options, err := remotecommand.NewOptions(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	remotecommand.ServeAttach(w, r, c, r.PathValue("pod"), string(c.w.uid), c.spec.Name, options,
		streamIdle, streamCreation, remotecommand.SupportedStreamingProtocols)
}

func (k *Kubelet) servePortForward(w http.ResponseWriter, r *http.Request) {
	pod := k.findPod(r.PathValue("namespace"), r.PathValue("pod"))
	if pod == nil {
		http.Error(w, "pod does not exist", http.StatusNotFound)
		return
	}
	options, err := portforward.NewV4Options(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	portforward.ServePortForward(w, r, pod, r.PathValue("pod"), string(pod.uid), options,
		streamIdle, streamCreation, portforward.SupportedProtocols)
}

// enter returns a command that runs in the namespaces and root of the container,
// as its user and with its environment.
func (c *container) enter(ctx context.Context, command []string) (*exec.Cmd, error) {
	c.mu.Lock()
	process, spec := c.running, c.ran
	c.mu.Unlock()
	if process == nil {
		return nil, fmt.Errorf("container %s does not run", c.spec.Name)
	}
	args := []string{"--target", strconv.Itoa(process.PID), "--mount", "--uts", "--ipc", "--net", "--pid", "--root", "--wd"}
	if spec.UID != 0 || spec.GID != 0 {
		args = append(args, "--setuid", strconv.Itoa(spec.UID), "--setgid", strconv.Itoa(spec.GID))
	}
	cmd := exec.CommandContext(ctx, "nsenter", append(append(args, "--"), command...)...)
	cmd.Env = spec.Env
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	// A child that it leaves behind may hold its streams.
	cmd.WaitDelay = 2 * time.Second
	return cmd, nil
}

// ExecInContainer runs a command in the container and waits for its end. A
// command that fails is a utilexec.CodeExitError. Terminals are not made.
func (c *container) ExecInContainer(ctx context.Context, _, _, _ string, command []string, in io.Reader, out, errOut io.WriteCloser, _ bool, _ <-chan remotecommand.TerminalSize, _ time.Duration) error {
	cmd, err := c.enter(ctx, command)
	if err != nil {
		return err
	}
	// An interface that holds a nil is not nil.
	if out != nil {
		cmd.Stdout = out
	}
	if errOut != nil {
		cmd.Stderr = errOut
	} else {
		cmd.Stderr = cmd.Stdout
	}
	if in != nil {
		// With cmd.Stdin, Wait would wait until the client closes its end.
		stdin, err := cmd.StdinPipe()
		if err != nil {
			return err
		}
		go func() {
			_, _ = io.Copy(stdin, in)
			stdin.Close()
		}()
	}
	err = cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		code := exit.ExitCode()
		if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() {
			code = 128 + int(status.Signal())
		}
		return utilexec.CodeExitError{Err: err, Code: code}
	}
	if errors.Is(err, exec.ErrWaitDelay) {
		return nil
	}
	return err
}

// AttachContainer sends the container's output from now on, of both streams as
// one, until the container ends or the client has gone; the input of a container
// with stdin goes to it.
func (c *container) AttachContainer(ctx context.Context, _, _, _ string, in io.Reader, out, errOut io.WriteCloser, _ bool, _ <-chan remotecommand.TerminalSize) error {
	c.mu.Lock()
	process, stdin := c.running, c.stdin
	c.mu.Unlock()
	if process == nil {
		return fmt.Errorf("container %s does not run", c.spec.Name)
	}
	if in != nil && stdin == nil {
		return fmt.Errorf("container %s has no stdin", c.spec.Name)
	}
	if out == nil {
		out = errOut
	}
	log, err := os.Open(c.logPath())
	if err != nil {
		return err
	}
	defer log.Close()
	if _, err := log.Seek(0, io.SeekEnd); err != nil {
		return err
	}
	if in != nil { // not before: the answer belongs to this client
		go func() {
			_, _ = io.Copy(stdin, in)
			if c.spec.StdinOnce {
				stdin.Close()
			}
		}()
	}
	for ended := false; ; {
		if out != nil {
			if _, err := io.Copy(out, log); err != nil {
				return nil //nolint:nilerr // the client has gone
			}
		}
		if ended || !sleep(ctx, attachInterval) {
			return nil
		}
		ended = c.process() != process // then once more, for its last words
	}
}

// attachInterval is how often an attached client gets what was written.
const attachInterval = 50 * time.Millisecond

// PortForward connects a stream to a port of the Pod's loopback until the server
// closes or the client has gone.
func (w *worker) PortForward(ctx context.Context, _, _ string, port int32, stream io.ReadWriteCloser) error {
	defer stream.Close()
	w.mu.Lock()
	namespace := w.k.host
	if w.network != nil {
		namespace = w.network.namespace
	}
	w.mu.Unlock()
	conn, err := namespace.Dial(ctx, "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(int(port))))
	if err != nil {
		return err
	}
	defer conn.Close()
	answered := make(chan struct{})
	go func() {
		_, _ = io.Copy(stream, conn)
		close(answered)
	}()
	go func() {
		_, _ = io.Copy(conn, stream)
		if half, ok := conn.(interface{ CloseWrite() error }); ok {
			_ = half.CloseWrite()
		}
	}()
	select {
	case <-answered: // the server has closed: there is nothing more to say to it
	case <-ctx.Done():
	}
	return nil
}
