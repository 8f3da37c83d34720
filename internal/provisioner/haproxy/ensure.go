// SPDX-License-Identifier: Apache-2.0

package haproxy

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/causeway-lb/causeway/api/v1alpha1"
	"github.com/causeway-lb/causeway/internal/provisioner"
)

// Errors of a port, in the format of PortStatus.error.
const (
	PortNotBound = "causeway.dev/PortNotBound" // outside Config.Ports, or not TCP
	PortTaken    = "causeway.dev/PortTaken"    // another Service has it at this address
	NoNodePort   = "causeway.dev/NoNodePort"   // the API server has not given one yet
	NoSlot       = "causeway.dev/NoSlot"       // all backends of the kind are in use
)

// settling is when to look again while servers are not up yet, or have
// connections left.
const settling = 2 * time.Second

// retried is longer than HAProxy tries to connect a client to one server: four times,
// by the timeouts of Config.Render. Such a client counts nowhere between two tries,
// so that "del server" does not wait for it. HAProxy 2.8 and earlier may then crash when the
// client goes on (haproxy#2298): a server has to be in maintenance that long first.
const retried = 30 * time.Second

// healthCheck is how servers are checked.
const healthCheck = "check inter 1s fall 2 rise 1"

// Ensure implements provisioner.Provisioner.
func (p *Provisioner) Ensure(ctx context.Context, want provisioner.Desired) (provisioner.Result, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.prime(ctx); err != nil {
		return provisioner.Result{}, err
	}
	have, err := readState(ctx, p.Runtime, p.MapFile)
	if err != nil {
		return provisioner.Result{}, err
	}
	maps.DeleteFunc(p.leaving, func(name string, _ time.Time) bool { return !have.has(name) })
	e := ensuring{p: p, want: want, have: have, used: map[string]bool{}}
	for _, backend := range have.keys {
		e.used[backend] = true
	}
	out := provisioner.Result{}
	for _, a := range want.Addresses {
		in, err := e.address(ctx, a)
		if err != nil {
			return provisioner.Result{}, err
		}
		out.Ingress = append(out.Ingress, in)
	}
	if err := e.removeOrphans(ctx); err != nil {
		return provisioner.Result{}, err
	}
	out.Conditions = []metav1.Condition{e.healthy()}
	out.RequeueAfter = p.Resync
	if e.up < e.servers || e.leaving > 0 {
		out.RequeueAfter = min(settling, p.Resync)
	}
	return out, nil
}

// ensuring serves one Service, with the provisioner locked.
type ensuring struct {
	p    *Provisioner
	want provisioner.Desired
	have state
	used map[string]bool // backends that a key refers to

	servers, fresh, up, leaving int
}

// address serves all ports of one address.
func (e *ensuring) address(ctx context.Context, a netip.Addr) (provisioner.Ingress, error) {
	in := provisioner.Ingress{Address: a, IPMode: corev1.LoadBalancerIPModeProxy}
	for _, port := range e.want.Ports {
		problem, err := e.port(ctx, frontend{a, port.Port}, port.NodePort)
		if err != nil {
			return in, err
		}
		if problem != "" {
			if in.PortErrors == nil {
				in.PortErrors = map[provisioner.Port]string{}
			}
			in.PortErrors[port.Port] = problem
		}
	}
	return in, nil
}

// port serves one frontend, or says why it cannot be.
func (e *ensuring) port(ctx context.Context, f frontend, nodePort uint16) (problem string, err error) {
	if !e.p.bound(f.port) {
		return PortNotBound, nil
	}
	if !e.p.owners[f].Is(e.want.Owner) {
		return PortTaken, nil
	}
	if nodePort == 0 {
		return NoNodePort, nil
	}
	k := kind{local: e.want.LocalPolicy && e.want.HealthCheckNodePort != 0, source: e.want.ClientIPAffinity}
	backend, ok := e.slot(f.key(), k)
	if !ok {
		return NoSlot, nil
	}
	if err := e.fill(ctx, backend, e.desired(f, nodePort)); err != nil {
		return "", err
	}
	return "", e.mapTo(ctx, f.key(), backend)
}

// slot is the backend of a frontend: the one it has, if that is of the kind,
// else an unused one, without servers if possible: they may still have
// connections.
func (e *ensuring) slot(key string, k kind) (string, bool) {
	best, have := "", e.have.keys[key]
	for n := range e.p.Slots {
		switch name := k.slot(n); {
		case name == have:
			return name, true
		case e.used[name] || best != "" && len(e.have.servers[name]) >= len(e.have.servers[best]):
		default:
			best = name
		}
	}
	return best, best != ""
}

// desired returns the servers of a frontend: the nodes of its family. With policy
// Local a node's weight is the number of its endpoints, and HAProxy's health check asks
// the node whether it has any.
func (e *ensuring) desired(f frontend, nodePort uint16) map[string]server {
	out := map[string]server{}
	for _, node := range e.want.Nodes {
		i := slices.IndexFunc(node.Addresses, func(a netip.Addr) bool { return a.BitLen() == f.addr.BitLen() })
		if i < 0 {
			continue
		}
		s := server{address: netip.AddrPortFrom(node.Addresses[i], nodePort), weight: 1}
		if e.want.LocalPolicy {
			s.weight = min(node.ReadyEndpoints, 256)
			s.checkPort = e.want.HealthCheckNodePort
		}
		out[node.Name] = s
	}
	return out
}

// fill makes a backend's servers the desired ones.
func (e *ensuring) fill(ctx context.Context, backend string, want map[string]server) error {
	have := e.have.servers[backend]
	left, err := e.p.empty(ctx, backend, have, want)
	if err != nil {
		return err
	}
	e.leaving += left
	for _, name := range slices.Sorted(maps.Keys(want)) {
		s, there := have[name]
		if err := e.p.place(ctx, backend+"/"+name, s, there, want[name]); err != nil {
			return err
		}
		e.servers++
		switch {
		case !there:
			e.fresh++
		case s.up && !s.leaving:
			e.up++
		}
	}
	return nil
}

// place adds a server, or corrects it.
func (p *Provisioner) place(ctx context.Context, name string, have server, there bool, want server) error {
	delete(p.leaving, name)
	var commands []string
	when := func(needed bool, format string, args ...any) {
		if needed {
			commands = append(commands, fmt.Sprintf(format, args...))
		}
	}
	check := healthCheck
	if want.checkPort != 0 {
		check += fmt.Sprintf(" port %d", want.checkPort)
	}
	when(!there, "add server %s %s %s weight %d", name, want.address, check, want.weight)
	when(there && have.address != want.address, "set server %s addr %s port %d", name, want.address.Addr(), want.address.Port())
	when(there && have.checkPort != want.checkPort && want.checkPort != 0, "set server %s check-port %d", name, want.checkPort)
	when(there && have.weight != want.weight, "set server %s weight %d", name, want.weight)
	when(!there || have.leaving, "enable health %s", name) // one that is leaving may only have been added so far
	when(!there, "enable server %s", name)
	when(there && have.leaving, "set server %s state ready", name)
	for _, command := range commands {
		if err := change(ctx, p.Runtime, "%s", command); err != nil {
			return err
		}
	}
	return nil
}

// empty removes servers from a backend, all but those in keep, and returns how many
// still have connections, or may have. A server that is gone already is no error.
func (p *Provisioner) empty(ctx context.Context, backend string, have, keep map[string]server) (left int, err error) {
	for _, name := range slices.Sorted(maps.Keys(have)) {
		if _, stays := keep[name]; stays {
			continue
		}
		full := backend + "/" + name
		since, known := p.leaving[full]
		if !have[name].leaving {
			if err := ignoreAbsent(change(ctx, p.Runtime, "set server %s state maint", full)); err != nil {
				return left, err
			}
			known = false
		}
		if !known {
			since = time.Now()
			p.leaving[full] = since
		}
		if time.Since(since) < p.deleteAfter {
			left++
			continue
		}
		err := change(ctx, p.Runtime, "del server %s", full)
		if errors.Is(err, errInUse) {
			left++
			continue
		}
		if err := ignoreAbsent(err); err != nil {
			return left, err
		}
		delete(p.leaving, full)
	}
	return left, nil
}

// mapTo makes the map send a frontend to a backend.
func (e *ensuring) mapTo(ctx context.Context, key, backend string) error {
	have, mapped := e.have.keys[key]
	e.used[backend] = true
	if have == backend {
		return nil
	}
	verb := "add"
	if mapped {
		verb = "set"
	}
	if err := change(ctx, e.p.Runtime, "%s map %s %s %s", verb, e.p.MapFile, key, backend); err != nil {
		return err
	}
	e.have.keys[key] = backend
	return nil
}

func (p *Provisioner) unmap(ctx context.Context, key string) error {
	return ignoreAbsent(change(ctx, p.Runtime, "del map %s %s", p.MapFile, key))
}

func ignoreAbsent(err error) error {
	if errors.Is(err, errAbsent) {
		return nil
	}
	return err
}

// removeOrphans removes the keys of frontends without an owner, and the servers of
// backends that no key refers to.
func (e *ensuring) removeOrphans(ctx context.Context) error {
	owned := map[string]bool{}
	for f := range e.p.owners {
		owned[f.key()] = true
	}
	mapped := map[string]bool{} // backends
	for key, backend := range e.have.keys {
		if owned[key] {
			mapped[backend] = true
		} else if err := e.p.unmap(ctx, key); err != nil {
			return err
		}
	}
	for backend, servers := range e.have.servers {
		if mapped[backend] {
			continue
		}
		left, err := e.p.empty(ctx, backend, servers, nil)
		if err != nil {
			return err
		}
		e.leaving += left
	}
	return nil
}

// healthy sums up the health checks as they were before this call's changes.
func (e *ensuring) healthy() metav1.Condition {
	c := metav1.Condition{Type: v1alpha1.ServiceHealthy, Status: metav1.ConditionTrue, Reason: "Healthy",
		Message: fmt.Sprintf("%d of %d servers (a node at a port) pass HAProxy's health check", e.up, e.servers)}
	switch {
	case e.servers == 0:
		c.Status, c.Reason = metav1.ConditionFalse, "NoServers"
		c.Message = "There is no node to send to: see that nodes have an InternalIP of the address's family and are not all excluded"
	case e.up == 0 && e.fresh > 0:
		c.Status, c.Reason = metav1.ConditionUnknown, "NotCheckedYet"
	case e.up == 0:
		c.Status, c.Reason = metav1.ConditionFalse, "NoHealthyServer"
		c.Message += ": see that HAProxy's host reaches the nodes' NodePorts and that the Service has ready endpoints"
	}
	return c
}
