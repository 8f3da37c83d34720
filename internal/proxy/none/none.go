// SPDX-License-Identifier: Apache-2.0

package none

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/causeway-lb/causeway/internal/inspect"
	"github.com/causeway-lb/causeway/internal/proxy/backend"
	"github.com/causeway-lb/causeway/internal/proxy/model"
)

// KubeProxy is where kube-proxy says on every node whether it is up to date:
// unlike /healthz, whatever the Node object says.
const KubeProxy = "http://127.0.0.1:10256/livez"

const (
	defaultInterval = time.Second
	// timeout of one question. An answer that late is none.
	timeout = time.Second
)

// Config of a Backend. The zero value asks nobody.
type Config struct {
	// Health is the URL that answers 200 for as long as this node forwards;
	// empty: it always does.
	Health string
	// Interval between questions; 0 is a second.
	Interval time.Duration
}

// Validate says what is wrong with the URL.
func (c Config) Validate() error {
	if c.Health == "" {
		return nil
	}
	u, err := url.Parse(c.Health)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return fmt.Errorf("%q is not the URL of a health check such as %s", c.Health, KubeProxy)
	}
	return nil
}

// Backend programs nothing. It implements backend.Backend and backend.Watcher.
type Backend struct {
	cfg    Config
	client *http.Client
}

var (
	_ backend.Backend = (*Backend)(nil)
	_ backend.Watcher = (*Backend)(nil)
)

// New returns the backend of a valid config.
func New(cfg Config) (*Backend, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if cfg.Interval == 0 {
		cfg.Interval = defaultInterval
	}
	return &Backend{cfg: cfg, client: &http.Client{Timeout: timeout}}, nil
}

// Name implements backend.Backend.
func (b *Backend) Name() string { return "none" }

// Inspect implements backend.Inspector with an empty State: what another program forwards is its own.
func (b *Backend) Inspect(context.Context) (inspect.State, error) {
	return inspect.NewState(inspect.Mode{Name: b.Name()}), nil
}

// Resync asks the forwarder whether it is up to date; an error says that it is
// not.
func (b *Backend) Resync(ctx context.Context, _ model.Desired) (backend.Report, error) {
	return backend.Report{}, b.ask(ctx)
}

// Apply is Resync: the forwarder programs the Services itself.
func (b *Backend) Apply(ctx context.Context, _ backend.Delta) (backend.Report, error) {
	return backend.Report{}, b.ask(ctx)
}

func (b *Backend) ask(ctx context.Context) error {
	if b.cfg.Health == "" {
		return nil
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, b.cfg.Health, http.NoBody)
	if err != nil {
		return fmt.Errorf("ask forwarder: %w", err)
	}
	resp, err := b.client.Do(req)
	if err != nil {
		return fmt.Errorf("ask forwarder: %w: is kube-proxy running on this node, with its health check there?", err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err != nil {
		return fmt.Errorf("ask forwarder: read answer of %s: %w", b.cfg.Health, err)
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("ask forwarder: %s says %s: it is not up to date", b.cfg.Health, resp.Status)
	}
	if starting(body) {
		return fmt.Errorf("ask forwarder: %s says that kube-proxy has not programmed this node yet", b.cfg.Health)
	}
	return nil
}

// starting recognises the answer of a kube-proxy that has just been started: it
// calls itself healthy before its first sync, but lists the families that it
// has programmed. Versions before 1.34 list none, and do not say "healthy".
func starting(body []byte) bool {
	var says struct {
		Healthy *bool                      `json:"healthy"`
		Status  map[string]json.RawMessage `json:"status"`
	}
	return json.Unmarshal(body, &says) == nil && says.Healthy != nil && len(says.Status) == 0
}

// Watch implements backend.Watcher: it notifies when the forwarder stops being
// up to date. The Resync that is then tried again finds out when it is again.
func (b *Backend) Watch(ctx context.Context, notify func()) error {
	notify()
	tick := time.NewTicker(b.cfg.Interval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if b.ask(ctx) != nil && ctx.Err() == nil {
			notify()
		}
	}
}

// Cleanup implements backend.Backend: there is nothing to remove.
func (b *Backend) Cleanup(context.Context) error { return nil }

// Close implements backend.Backend.
func (b *Backend) Close() error {
	b.client.CloseIdleConnections()
	return nil
}
