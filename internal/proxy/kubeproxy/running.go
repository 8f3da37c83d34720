// SPDX-License-Identifier: Apache-2.0

package kubeproxy

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// modeURL is where kube-proxy tells its mode, unless it was configured
// otherwise.
const modeURL = "http://127.0.0.1:10249/proxyMode"

// AgentHeader is on Causeway's own answers to the question for the proxy mode, by
// which they are told from kube-proxy's.
const AgentHeader = "Causeway-Agent"

// Running says how it shows that kube-proxy runs in this network namespace; ""
// means that there is no sign of it. It sees a process if it may see the
// node's processes, and else the port on which kube-proxy tells its mode.
func Running(ctx context.Context) string {
	here, err := os.Readlink("/proc/thread-self/ns/net")
	if err == nil {
		names, _ := filepath.Glob("/proc/[0-9]*/comm")
		for _, at := range names {
			name, _ := os.ReadFile(at)
			there, err := os.Readlink(filepath.Join(filepath.Dir(at), "ns/net"))
			if strings.TrimSpace(string(name)) == "kube-proxy" && err == nil && there == here {
				return "process " + filepath.Base(filepath.Dir(at))
			}
		}
	}
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, modeURL, nil)
	if err != nil {
		return ""
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return ""
	}
	defer resp.Body.Close()
	if resp.Header.Get(AgentHeader) != "" {
		return "" // our own agent, which tells its mode as kube-proxy does
	}
	mode, err := io.ReadAll(io.LimitReader(resp.Body, 64))
	if err != nil || resp.StatusCode != http.StatusOK {
		return ""
	}
	return fmt.Sprintf("%s answers %q", modeURL, mode)
}
