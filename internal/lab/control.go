// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
)

// control serves commands from outside: POST /nodes/{node}/{action}.
func (l *Lab) control() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /nodes/{node}/{action}", func(w http.ResponseWriter, r *http.Request) {
		node := l.Node(r.PathValue("node"))
		if node == nil {
			http.Error(w, "no such node", http.StatusNotFound)
			return
		}
		actions := map[string]func() error{
			"off": node.PowerOff, "on": node.PowerOn, "cut": node.CutLink, "mend": node.MendLink,
			"isolate": node.Isolate, "rejoin": node.Rejoin,
		}
		action := actions[r.PathValue("action")]
		if action == nil {
			http.Error(w, "no such action: choose off, on, cut, mend, isolate or rejoin", http.StatusNotFound)
			return
		}
		if err := action(); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
		}
	})
	return mux
}

// Control has a running lab do something to a node, from outside: off, on,
// cut, mend, isolate, rejoin.
func Control(ctx context.Context, name, node, action string) error {
	dir, err := existing(name)
	if err != nil {
		return fmt.Errorf("reach lab %s: %w: is it running?", or(name, "lab"), err)
	}
	socket := filepath.Join(dir, controlSock)
	client := &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		},
	}}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://lab/nodes/"+node+"/"+action, nil)
	if err != nil {
		return err
	}
	response, err := client.Do(request)
	if err != nil {
		return fmt.Errorf("reach lab %s: %w: is it running?", or(name, "lab"), err)
	}
	defer response.Body.Close()
	body, _ := io.ReadAll(response.Body)
	if response.StatusCode != http.StatusOK {
		return errors.New(strings.TrimSpace(string(body)))
	}
	return nil
}

// Kubectl runs kubectl on the control plane's machine as administrator and
// returns what it printed. Input, which may be nil, is its standard input.
func (l *Lab) Kubectl(ctx context.Context, input io.Reader, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(l.Setup.Programs, "kubectl"), args...)
	cmd.Env = []string{"KUBECONFIG=" + filepath.Join(planeDir, "admin.conf"), "HOME=" + planeDir}
	cmd.Stdin = input
	return output(l, cmd)
}

// output runs a command on the control plane's machine.
func output(l *Lab, cmd *exec.Cmd) (string, error) {
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := l.Machine(ControlPlane).Start(cmd)
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		return stdout.String(), fmt.Errorf("kubectl %s: %w: %s", strings.Join(cmd.Args[1:], " "), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}
