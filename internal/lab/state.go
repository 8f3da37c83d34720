// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/causeway-lb/causeway/internal/lab/cache"
	"github.com/causeway-lb/causeway/internal/lab/kubelet"
)

// Setup is what is decided outside of the lab's namespaces, where networks
// and tool chains are.
type Setup struct {
	// Name tells labs apart that run at the same time. Empty means "lab".
	Name string
	// Source is the directory of Causeway's source tree.
	Source string
	// Programs is the directory of the control plane's programs.
	Programs string
	// Images are the programs that Pods can run.
	Images map[string]kubelet.Image
	// Nodes is the number of worker nodes. Zero means 3.
	Nodes int
	// EndpointControllers leaves EndpointSlices to kube-controller-manager, as
	// in a cluster that Causeway is added to.
	EndpointControllers bool
	// FeatureGates are the API server's, as "Name=false". Empty means its own.
	FeatureGates string
	// RuntimeDefault is the seccomp profile of containers that ask for the
	// runtime's. Empty means that they have none.
	RuntimeDefault []unix.SockFilter

	// State is the lab's directory and RelayPort the port on the host's
	// 127.0.0.1 that leads to the API server; Enter sets both.
	State     string
	RelayPort int
}

// Files below the state directory.
const (
	setupFile      = "setup.json"
	lockFile       = "lock"
	pidFile        = "pid"
	kubeconfigFile = "kubeconfig"
	apiServerSock  = "apiserver.sock"
	controlSock    = "control.sock"
	logsDir        = "logs"
	runtimeDir     = "run"
)

// StateDir returns where the lab of a name keeps its logs and sockets: below
// the directory for temporary files, one directory a user, short enough for
// the names of sockets.
func StateDir(name string) string {
	return filepath.Join(stateRoot(), or(name, "lab"))
}

func stateRoot() string {
	return filepath.Join(os.TempDir(), "causeway-lab-"+strconv.Itoa(os.Getuid()))
}

// state is a state directory that this process has locked.
type state struct {
	dir   string
	setup Setup
	lock  *os.File
}

// openState makes a lab's directory and takes it. What an earlier lab of the
// same name left there is removed.
func openState(setup Setup) (*state, error) {
	if err := checkName(setup.Name); err != nil {
		return nil, err
	}
	dir := StateDir(setup.Name)
	for _, part := range []string{stateRoot(), dir} { // in this order: one looks into the other
		if err := cache.Private(part); err != nil {
			return nil, fmt.Errorf("make state directory: %w", err)
		}
	}
	lock, err := lockState(dir)
	if err != nil {
		return nil, err
	}
	s := &state{dir: dir, setup: setup, lock: lock}
	s.setup.State = dir
	if err := s.empty(); err != nil {
		lock.Close()
		return nil, err
	}
	for _, sub := range []string{logsDir, runtimeDir} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			lock.Close()
			return nil, fmt.Errorf("make state directory: %w", err)
		}
	}
	return s, nil
}

// existing returns the directory of a lab that was made before. Nothing below it
// may be read, called or removed otherwise: root acts on what it finds there, and
// anyone may make files beside it. The error is os.ErrNotExist if there is none.
func existing(name string) (string, error) {
	if err := checkName(name); err != nil {
		return "", err
	}
	dir := StateDir(name)
	for _, part := range []string{stateRoot(), dir} {
		if err := cache.CheckPrivate(part); err != nil {
			return "", fmt.Errorf("look at state directory: %w", err)
		}
	}
	return dir, nil
}

// checkName refuses names that lead elsewhere.
func checkName(name string) error {
	if name != "" && (name != filepath.Base(name) || name == "." || name == "..") {
		return fmt.Errorf("lab %q: choose a --name without slashes", name)
	}
	return nil
}

func lockState(dir string) (*os.File, error) {
	lock, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock state directory: %w", err)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		lock.Close()
		return nil, fmt.Errorf("a lab called %s is running (process %s): end it, or choose another --name", filepath.Base(dir), readPID(dir))
	}
	return lock, nil
}

func readPID(dir string) string {
	pid, err := numberIn(filepath.Join(dir, pidFile))
	if err != nil {
		return "unknown"
	}
	return strconv.Itoa(pid)
}

// numberIn reads a file with a process id.
func numberIn(path string) (int, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil || pid <= 1 {
		return 0, fmt.Errorf("%s: %q is no process id", path, data)
	}
	return pid, nil
}

// labProcess returns the first process of a running lab: one that says of itself
// that it is, for the number may be another's by now.
func labProcess(dir string) (int, error) {
	pid, err := numberIn(filepath.Join(dir, pidFile))
	if err != nil {
		return 0, err
	}
	environment, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	if err != nil {
		return 0, err
	}
	if !slices.Contains(strings.Split(string(environment), "\x00"), insideVariable+"="+dir) {
		return 0, fmt.Errorf("process %d is no lab", pid)
	}
	return pid, nil
}

func (s *state) empty() error {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return fmt.Errorf("empty state directory: %w", err)
	}
	for _, entry := range entries {
		if entry.Name() == lockFile {
			continue
		}
		if err := os.RemoveAll(filepath.Join(s.dir, entry.Name())); err != nil {
			return fmt.Errorf("empty state directory: %w", err)
		}
	}
	return nil
}

// write records the process that other commands enter the lab through.
func (s *state) write(pid int) error {
	if err := os.WriteFile(filepath.Join(s.dir, pidFile), []byte(strconv.Itoa(pid)), 0o644); err != nil {
		return fmt.Errorf("write state: %w", err)
	}
	return nil
}

// close gives the directory back. With keep, the logs stay until Clean or the
// next lab of the name; else nothing stays.
func (s *state) close(keep bool) {
	defer s.lock.Close()
	if !keep {
		_ = os.RemoveAll(s.dir)
		_ = os.Remove(stateRoot()) // stays if another lab has its directory there
		return
	}
	for _, name := range []string{pidFile, kubeconfigFile, apiServerSock, controlSock, runtimeDir} {
		_ = os.RemoveAll(filepath.Join(s.dir, name))
	}
}

// startRelay listens on 127.0.0.1 of the host for the user's kubectl, hands
// connections to the API server's socket, and writes the setup with the port.
func (s *state) startRelay() (net.Listener, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listen for kubectl: %w", err)
	}
	s.setup.RelayPort = listener.Addr().(*net.TCPAddr).Port
	data, err := json.Marshal(s.setup)
	if err == nil {
		err = os.WriteFile(filepath.Join(s.dir, setupFile), data, 0o600)
	}
	if err != nil {
		listener.Close()
		return nil, fmt.Errorf("write setup: %w", err)
	}
	go relay(listener, func() (net.Conn, error) { return net.Dial("unix", filepath.Join(s.dir, apiServerSock)) })
	return listener, nil
}

// relay connects everyone who comes to listener with what dial gives, until
// the listener is closed.
func relay(listener net.Listener, dial func() (net.Conn, error)) {
	for {
		near, err := listener.Accept()
		if err != nil {
			return
		}
		go func() {
			defer near.Close()
			far, err := dial()
			if err != nil {
				return
			}
			defer far.Close()
			done := make(chan struct{}, 2)
			for _, pair := range [][2]net.Conn{{near, far}, {far, near}} {
				go func() {
					_, _ = io.Copy(pair[0], pair[1])
					done <- struct{}{}
				}()
			}
			<-done
		}()
	}
}

// Clean removes what labs of this user have left: directories of logs of labs
// that no longer run. It returns the names that were removed and those that
// are still running.
func Clean() (removed, running []string, err error) {
	err = cache.CheckPrivate(stateRoot())
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("look at state directory: %w", err)
	}
	entries, err := os.ReadDir(stateRoot())
	if err != nil {
		return nil, nil, fmt.Errorf("list labs: %w", err)
	}
	for _, entry := range entries {
		dir := filepath.Join(stateRoot(), entry.Name())
		if !entry.IsDir() {
			continue // none of ours
		}
		lock, lockErr := lockState(dir)
		if lockErr != nil {
			running = append(running, entry.Name())
			continue
		}
		err = errors.Join(err, os.RemoveAll(dir))
		lock.Close()
		removed = append(removed, entry.Name())
	}
	if len(running) == 0 {
		err = errors.Join(err, os.Remove(stateRoot()))
	}
	return removed, running, err
}

func or[T comparable](value, fallback T) T {
	var zero T
	if value == zero {
		return fallback
	}
	return value
}
