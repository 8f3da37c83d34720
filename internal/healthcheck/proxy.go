// SPDX-License-Identifier: Apache-2.0

package healthcheck

import (
	"encoding/json"
	"net/http"
	"time"
)

// Health is how the node's forwarding is.
type Health struct {
	// Started says that the kernel has been verified since the process started.
	Started bool
	// InSync says that the kernel matches Desired, but for Refused.
	InSync bool
	// Refused are the Services that the kernel refuses, by name. They leave the
	// node healthy: it serves all others, and other nodes refuse them as well.
	Refused []string
	// Err is why it does not, if that is known.
	Err error
	// LastUpdated is when the kernel was last brought up to date.
	LastUpdated time.Time
	// NodeEligible is false for a node that is about to be deleted.
	NodeEligible bool
}

// response has kube-proxy's fields and the kernel's state.
type response struct {
	LastUpdated  time.Time `json:"lastUpdated"`
	CurrentTime  time.Time `json:"currentTime"`
	NodeEligible *bool     `json:"nodeEligible,omitempty"`
	Healthy      bool      `json:"healthy"`
	Kernel       kernel    `json:"kernel"`
}

type kernel struct {
	InSync  bool     `json:"inSync"`
	Refused []string `json:"refused,omitempty"`
	Error   string   `json:"error,omitempty"`
}

// Handler serves /healthz, /livez and /readyz. health is called for every
// request, by many goroutines.
func Handler(health func() Health) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) {
		h := health()
		write(w, h, h.Started && h.InSync && h.NodeEligible, &h.NodeEligible)
	})
	mux.HandleFunc("/livez", func(w http.ResponseWriter, _ *http.Request) {
		// Restarting the process does not help against a refusing kernel.
		write(w, health(), true, nil)
	})
	mux.HandleFunc("/readyz", func(w http.ResponseWriter, _ *http.Request) {
		h := health()
		write(w, h, h.Started && h.InSync, nil)
	})
	return mux
}

func write(w http.ResponseWriter, h Health, ok bool, eligible *bool) {
	now := time.Now()
	r := response{LastUpdated: h.LastUpdated, CurrentTime: now, NodeEligible: eligible, Healthy: ok,
		Kernel: kernel{InSync: h.InSync && len(h.Refused) == 0, Refused: h.Refused}}
	if ok {
		r.LastUpdated = now // as kube-proxy has it: what is healthy is up to date
	}
	if h.Err != nil {
		r.Kernel.Error = h.Err.Error()
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	if !ok {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	// The client may be gone, which is its own affair.
	_ = json.NewEncoder(w).Encode(r)
}
