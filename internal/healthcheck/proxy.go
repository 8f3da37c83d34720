// SPDX-License-Identifier: Apache-2.0

package healthcheck

import (
	"encoding/json"
	"net/http"
	"net/netip"
	"time"
)

// Health is how the node's forwarding is.
type Health struct {
	// Started says that the kernel has been verified since the process started.
	Started bool
	// InSync says that the kernel matches Desired, but for Refused.
	InSync bool
	// Late says that what has come in since Behind is not in the kernel, and should
	// be by now. Stuck says that it has been so for long, and that nothing has moved
	// meanwhile: a new process may do better.
	Late, Stuck bool
	Behind      time.Time
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

// forwards tells whether the kernel does what it should. Before the first sync it
// does what the process before left there; as kube-proxy, that counts as healthy
// until there is a reason for doubt.
func (h *Health) forwards() bool {
	if !h.Started {
		return h.Err == nil && !h.Late
	}
	return h.InSync && !h.Late
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
	InSync bool `json:"inSync"`
	// BehindSince is there while something is to be programmed.
	BehindSince *time.Time `json:"behindSince,omitempty"`
	// RejectedServices counts Refused, which names them, as Error may: that is for
	// who asks on the node itself, or was authorized.
	RejectedServices int      `json:"rejectedServices,omitempty"`
	Refused          []string `json:"refused,omitempty"`
	Error            string   `json:"error,omitempty"`
}

// Config of a Handler.
type Config struct {
	// Names has the handler name Services to everybody, because only authorized
	// requests come to it. Else it names them to requests from the node itself.
	Names bool
	// Count, unless nil, is told of every answer.
	Count func(path string, status int)
}

// Handler serves /healthz, /livez and /readyz. health is called for every
// request, by many goroutines.
func Handler(health func() Health, cfg Config) http.Handler {
	mux := http.NewServeMux()
	handle := func(path string, judge func(h *Health) (ok, healthy bool, eligible *bool)) {
		mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
			h := health()
			ok, healthy, eligible := judge(&h)
			status := http.StatusOK
			if !ok {
				status = http.StatusServiceUnavailable
			}
			if cfg.Count != nil {
				cfg.Count(path, status)
			}
			write(w, &h, status, healthy, eligible, cfg.Names || local(r))
		})
	}
	handle("/healthz", func(h *Health) (ok, healthy bool, eligible *bool) {
		healthy = h.forwards()
		return healthy && h.NodeEligible, healthy, &h.NodeEligible
	})
	handle("/livez", func(h *Health) (ok, healthy bool, eligible *bool) {
		// Restarting the process does not help against a refusing kernel.
		return !h.Stuck, !h.Stuck, nil
	})
	handle("/readyz", func(h *Health) (ok, healthy bool, eligible *bool) {
		ok = h.Started && h.forwards()
		return ok, ok, nil
	})
	return mux
}

// local tells whether a request comes from the node itself, over loopback.
func local(r *http.Request) bool {
	from, err := netip.ParseAddrPort(r.RemoteAddr)
	return err == nil && from.Addr().Unmap().IsLoopback()
}

func write(w http.ResponseWriter, h *Health, status int, healthy bool, eligible *bool, names bool) {
	now := time.Now()
	r := response{LastUpdated: h.LastUpdated, CurrentTime: now, NodeEligible: eligible, Healthy: healthy,
		Kernel: kernel{InSync: h.InSync && !h.Late && len(h.Refused) == 0, RejectedServices: len(h.Refused)}}
	if status == http.StatusOK {
		r.LastUpdated = now // as kube-proxy has it: what is healthy is up to date
	}
	if !h.Behind.IsZero() {
		r.Kernel.BehindSince = &h.Behind
	}
	switch {
	case names:
		r.Kernel.Refused = h.Refused
		if h.Err != nil {
			r.Kernel.Error = h.Err.Error()
		}
	case h.Err != nil:
		r.Kernel.Error = "the kernel refuses its rules; on the node itself this page says more"
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	// The client may be gone, which is its own affair.
	_ = json.NewEncoder(w).Encode(r)
}
