// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/causeway-lb/causeway/internal/lab/network"
)

// ErrNotRunning is returned for a lab that isn't there to enter.
var ErrNotRunning = errors.New("not running")

// ShellCommand returns the command line that runs command inside a machine or
// a Pod of a running lab. A target is "client", "lan", a node's name, "pod/x"
// or "pod/namespace/x"; of a Pod's name the beginning is enough, and of several
// that begin so, the first is taken.
//
// It is a chain of nsenter: into the lab, into the node, into the container.
func ShellCommand(name, target string, command []string) ([]string, error) {
	dir, err := existing(name)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	pid := 0
	if err == nil {
		pid, err = labProcess(dir)
	}
	if err != nil {
		return nil, fmt.Errorf("enter lab %s: %w (%w): start it with `causeway-lab up`", or(name, "lab"), ErrNotRunning, err)
	}
	chain := []string{"nsenter", "--target", strconv.Itoa(pid)}
	if !privileged() {
		chain = append(chain, "--user", "--preserve-credentials")
	}
	chain = append(chain, "--mount", "--pid", "--net", "--")
	inner, err := enterTarget(filepath.Join(dir, runtimeDir), target)
	if err != nil {
		return nil, err
	}
	return slices.Concat(chain, inner, command), nil
}

func enterTarget(dir, target string) ([]string, error) {
	if pod, ok := strings.CutPrefix(target, "pod/"); ok {
		return enterPod(dir, pod)
	}
	if target == Client || target == LAN {
		return []string{"nsenter", "--net=" + filepath.Join(network.Dir, target), "--"}, nil
	}
	if target != filepath.Base(target) {
		return nil, fmt.Errorf("no machine %q in the lab: there are %s", target, strings.Join(machines(dir), ", "))
	}
	pid, err := numberIn(filepath.Join(dir, target+".pid"))
	if err != nil {
		return nil, fmt.Errorf("no machine %q in the lab: there are %s", target, strings.Join(machines(dir), ", "))
	}
	return []string{"nsenter", "--target", strconv.Itoa(pid), "--mount", "--uts", "--net", "--pid", "--"}, nil
}

func machines(dir string) []string {
	names := []string{Client, LAN}
	files, _ := filepath.Glob(filepath.Join(dir, "*.pid"))
	for _, file := range files {
		names = append(names, strings.TrimSuffix(filepath.Base(file), ".pid"))
	}
	return names
}

// enterPod finds a Pod by the files that kubelets keep:
// <runtime>/<node>/<namespace>_<pod>/<container>.
func enterPod(dir, pod string) ([]string, error) {
	namespace, name, ok := strings.Cut(pod, "/")
	if !ok {
		namespace, name = "default", pod
	}
	found, err := filepath.Glob(filepath.Join(dir, "*", namespace+"_"+name+"*", "*"))
	if err != nil {
		return nil, fmt.Errorf("find Pod %s: %w", pod, err)
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("no Pod %s runs in the lab", pod)
	}
	// Glob sorts: the shortest name, which may be the whole one, comes first.
	podDir := filepath.Dir(found[0])
	pid, err := numberIn(found[0])
	if err != nil {
		return nil, fmt.Errorf("find Pod %s: %w", pod, err)
	}
	node, err := enterTarget(dir, filepath.Base(filepath.Dir(podDir)))
	if err != nil {
		return nil, err
	}
	return append(node, "nsenter", "--target", strconv.Itoa(pid), "--mount", "--uts", "--ipc", "--net", "--pid", "--root", "--wd", "--"), nil
}

// PodLogs returns the log files of a Pod's containers, in a lab that runs or
// ran. The Pod is named as for ShellCommand, without "pod/".
func PodLogs(name, pod string) ([]string, error) {
	namespace, prefix, ok := strings.Cut(pod, "/")
	if !ok {
		namespace, prefix = "default", pod
	}
	dir, err := existing(name)
	if err != nil {
		return nil, fmt.Errorf("find logs of lab %s: %w", or(name, "lab"), err)
	}
	files, err := filepath.Glob(filepath.Join(dir, logsDir, "*", namespace+"_"+prefix+"*", "*.log"))
	if err != nil {
		return nil, fmt.Errorf("find logs: %w", err)
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("no logs of a Pod %s in %s", pod, filepath.Join(dir, logsDir))
	}
	return files, nil
}
