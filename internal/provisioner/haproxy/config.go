// SPDX-License-Identifier: Apache-2.0

package haproxy

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/causeway-lb/causeway/internal/alloc"
	"github.com/causeway-lb/causeway/internal/provisioner"
)

// Config is what New needs.
type Config struct {
	// Class is the load balancer class; required.
	Class string
	// Addresses that HAProxy is bound to; at least one.
	Addresses []netip.Addr
	// Ports that it is bound to at each address; at least one.
	Ports []alloc.PortRange
	// Runtime is the runtime interface; required.
	Runtime Runtime
	// MapFile is the map's name there; empty means /etc/haproxy/causeway.map.
	MapFile string
	// Slots is the number of backends of each kind, and so of ports served at
	// once; 0 means 64.
	Slots int
	// Resync is the longest time between two reads of HAProxy's state; 0 means 30 s.
	Resync time.Duration
	// Holders lists the Services that have addresses already; nil means none. It is
	// called once, before anything is assigned.
	Holders func(context.Context) ([]Holder, error)

	// deleteAfter is how long a server is in maintenance before it is deleted; 0 means
	// retried.
	deleteAfter time.Duration
}

// Holder is a Service and the frontends that its status shows.
type Holder struct {
	Owner     alloc.Owner
	Addresses []netip.Addr
	Ports     []provisioner.Port
}

// Validate returns an error that names everything that is wrong.
func (c *Config) Validate() error {
	var errs []error
	check := func(bad bool, text string) {
		if bad {
			errs = append(errs, errors.New(text))
		}
	}
	check(c.Class == "", "class is missing: write the spec.loadBalancerClass of the Services to serve, such as example.com/haproxy")
	check(len(c.Addresses) == 0, "addresses is empty: list the addresses that HAProxy is bound to")
	check(len(c.Ports) == 0, "ports is empty: list the ports that HAProxy is bound to, such as 8000-8063")
	check(c.Runtime == nil, "runtime is missing: write where the runtime interface is, such as tcp://192.0.2.60:9999 or unix:///run/haproxy.sock")
	check(c.Resync != 0 && c.Resync < time.Second, "resync is less than a second: each reads all of HAProxy's servers")
	check(c.Slots < 0 || c.Slots > 4096, "slots must be between 1 and 4096")
	return errors.Join(errs...)
}

func (c *Config) setDefaults() {
	c.MapFile = cmp.Or(c.MapFile, "/etc/haproxy/causeway.map")
	c.Slots = cmp.Or(c.Slots, 64)
	c.Resync = cmp.Or(c.Resync, 30*time.Second)
	c.deleteAfter = cmp.Or(c.deleteAfter, retried)
}

// file is the format of the operator's file.
type file struct {
	LoadBalancers []struct {
		Class   string `json:"class"`
		HAProxy struct {
			Runtime   string   `json:"runtime"`
			Addresses []string `json:"addresses"`
			Ports     []string `json:"ports"`
			MapFile   string   `json:"mapFile"`
			Slots     int      `json:"slots"`
			Resync    string   `json:"resync"`
		} `json:"haproxy"`
	} `json:"loadBalancers"`
}

// Parse reads the operator's file of external load balancers. Unknown fields
// are errors. The error names each mistake by its place.
func Parse(text []byte) ([]Config, error) {
	var f file
	if err := yaml.UnmarshalStrict(text, &f); err != nil {
		return nil, fmt.Errorf("read load balancers: %w", err)
	}
	var out []Config
	var errs []error
	for i, lb := range f.LoadBalancers {
		c := Config{Class: lb.Class, MapFile: lb.HAProxy.MapFile, Slots: lb.HAProxy.Slots}
		place := fmt.Sprintf("loadBalancers[%d].haproxy", i)
		for j, a := range lb.HAProxy.Addresses {
			addr, err := netip.ParseAddr(a)
			if err != nil {
				errs = append(errs, fmt.Errorf("%s.addresses[%d]: %q is not an address: write it like 192.0.2.60", place, j, a))
				continue
			}
			c.Addresses = append(c.Addresses, addr.Unmap())
		}
		if text := lb.HAProxy.Resync; text != "" {
			var err error
			if c.Resync, err = time.ParseDuration(text); err != nil {
				errs = append(errs, fmt.Errorf("%s.resync: %q is not a time: write it like 30s", place, text))
			}
		}
		ports, err := alloc.ParsePortRanges(place+".ports", lb.HAProxy.Ports)
		errs = append(errs, err)
		c.Ports = ports
		if lb.HAProxy.Runtime != "" {
			socket, err := ParseSocket(lb.HAProxy.Runtime)
			if err != nil {
				errs = append(errs, fmt.Errorf("%s.runtime: %w", place, err))
			}
			c.Runtime = socket
		}
		if err := c.Validate(); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", place, err))
		}
		out = append(out, c)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("read load balancers: %w", err)
	}
	return out, nil
}

// RenderFile returns the haproxy.cfg of one class of the operator's file.
func RenderFile(text []byte, class string) (string, error) {
	configs, err := Parse(text)
	if err != nil {
		return "", err
	}
	for _, c := range configs {
		if socket, ok := c.Runtime.(Socket); ok && c.Class == class {
			return c.Render(socket), nil
		}
	}
	return "", fmt.Errorf("render haproxy.cfg: the file describes no load balancer of class %q", class)
}

// Render returns the haproxy.cfg for this configuration, with its runtime interface at the
// socket. A host that reaches it can redirect every connection: it belongs to a network that
// only the controller can reach. The map file has to exist, empty.
func (c Config) Render(socket Socket) string {
	c.setDefaults()
	var b strings.Builder
	fmt.Fprintf(&b, `global
    stats socket %s level admin
defaults
    mode tcp
    timeout connect 5s
    timeout client 1h
    timeout server 1h
    timeout check 2s
frontend causeway
`, socket.bind())
	for _, a := range c.Addresses {
		for _, p := range c.Ports {
			fmt.Fprintf(&b, "    bind %s:%d-%d\n", a, p.First, p.Last)
		}
	}
	key := fmt.Sprintf("dst,concat(:,sess.port),map(%s)", c.MapFile)
	fmt.Fprintf(&b, `    tcp-request connection set-var(sess.port) dst_port
    tcp-request connection reject unless { %s -m found }
    use_backend %%[%s]
`, key, key)
	for _, k := range kinds() {
		for n := range c.Slots {
			fmt.Fprintf(&b, "backend %s\n", k.slot(n))
			if k.source {
				b.WriteString("    balance source\n    hash-type consistent\n")
			} else {
				b.WriteString("    balance roundrobin\n")
			}
			if k.local {
				b.WriteString("    option httpchk GET /healthz\n")
			}
		}
	}
	return b.String()
}

// kind is what cannot be changed about a backend at run time.
type kind struct{ local, source bool }

func kinds() []kind { return []kind{{}, {source: true}, {local: true}, {local: true, source: true}} }

// slot names the n-th backend of the kind.
func (k kind) slot(n int) string {
	name := "causeway-cluster"
	if k.local {
		name = "causeway-local"
	}
	if k.source {
		name += "-source"
	}
	return fmt.Sprintf("%s-%d", name, n)
}
