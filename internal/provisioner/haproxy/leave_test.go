// SPDX-License-Identifier: Apache-2.0

package haproxy

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/causeway-lb/causeway/internal/alloc"
	"github.com/causeway-lb/causeway/internal/provisioner"
	"github.com/causeway-lb/causeway/internal/testkit"
)

var addr1, addr2 = netip.MustParseAddr("192.0.2.11"), netip.MustParseAddr("192.0.2.12")

// A client that HAProxy still tries to connect to a server counts nowhere: the server is
// deleted once it has been in maintenance for longer than that takes, whatever HAProxy
// answers; the time starts again if it was wanted meanwhile.
func TestServersAreDeletedAfterRetries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{maintenance: map[string]bool{}}
		p := start(t, Config{
			Class: "c", Addresses: []netip.Addr{addr1}, Ports: []alloc.PortRange{{First: 80, Last: 80}}, Slots: 1, Runtime: f,
		})
		req := provisioner.Request{
			Owner: alloc.Owner{Namespace: "ns", Name: "web", UID: "1"}, Families: []corev1.IPFamily{corev1.IPv4Protocol},
			Policy: corev1.IPFamilyPolicySingleStack, Ports: []provisioner.Port{{Protocol: corev1.ProtocolTCP, Port: 80}},
		}
		held, err := p.Allocate(t.Context(), req)
		if err != nil || held.Unmet != nil {
			t.Fatalf("allocate: %+v, %v", held, err)
		}
		nodes := []provisioner.Node{{Name: "node-1", Addresses: []netip.Addr{addr1}}, {Name: "node-2", Addresses: []netip.Addr{addr2}}}
		serve := func(n int) provisioner.Result {
			t.Helper()
			result, err := p.Ensure(t.Context(), provisioner.Desired{
				Owner: req.Owner, Addresses: held.Addresses, Nodes: nodes[:n],
				Ports: []provisioner.ServicePort{{Port: req.Ports[0], NodePort: 30080}},
			})
			if err != nil {
				t.Fatal(err)
			}
			return result
		}
		there := func(want bool) {
			t.Helper()
			if _, has := f.maintenance["causeway-cluster-0/node-2"]; has != want {
				t.Errorf("after %q node-2 is there: %v, want %v", f.said, has, want)
			}
		}
		serve(2)
		serve(1)
		time.Sleep(retried - time.Second)
		if result := serve(1); result.RequeueAfter > settling {
			t.Errorf("comes again after %v though a server is to be deleted", result.RequeueAfter)
		}
		there(true)
		serve(2) // wanted again
		serve(1)
		time.Sleep(retried - time.Second)
		serve(1)
		there(true)
		time.Sleep(time.Second)
		serve(1)
		there(false)
		if len(p.leaving) > 0 {
			t.Errorf("remembered: %v", p.leaving)
		}
	})
}

// fake is an HAProxy that has servers, in maintenance or not, and deletes any that is.
type fake struct {
	maintenance map[string]bool
	said        []string
}

func (f *fake) Do(_ context.Context, command string) (string, error) {
	words := strings.Fields(command)
	switch {
	case command == "show servers state":
		text := "1\n# be_name srv_name srv_addr srv_port srv_op_state srv_admin_state srv_uweight srv_check_port\n"
		for name, maintenance := range f.maintenance {
			backend, server, _ := strings.Cut(name, "/")
			admin := 0
			if maintenance {
				admin = 1
			}
			text += fmt.Sprintf("%s %s %s 30080 2 %d 1 0\n", backend, server, map[string]netip.Addr{"node-1": addr1, "node-2": addr2}[server], admin)
		}
		return text, nil
	case words[0] == "show", words[1] == "map":
		return "", nil
	}
	f.said = append(f.said, command)
	switch name := words[2]; {
	case words[0] == "add":
		f.maintenance[name] = true
	case words[0] == "del" && f.maintenance[name]:
		delete(f.maintenance, name)
	case strings.HasSuffix(command, "state maint"):
		f.maintenance[name] = true
	default:
		f.maintenance[name] = false
	}
	return "", nil
}

// An HAProxy that is killed during a change, after any command, and restarted empty, serves
// all Services after their next Ensure.
func TestEnsureAfterInterruptedChange(t *testing.T) {
	b := newBench(t)
	cut := &cutting{Runtime: b.config.Runtime, kill: b.kill}
	b.config.Runtime = cut
	p := start(t, b.config)
	nodes := []provisioner.Node{b.node(t, "node-1", 11, testNodePort), b.node(t, "node-2", 12, testNodePort)}
	var services []provisioner.Desired
	for i := range uint16(3) {
		req := provisioner.Request{
			Owner: alloc.Owner{Namespace: "ns", Name: fmt.Sprint("web-", i), UID: "1"}, Families: []corev1.IPFamily{corev1.IPv4Protocol},
			Policy: corev1.IPFamilyPolicySingleStack, Ports: []provisioner.Port{{Protocol: corev1.ProtocolTCP, Port: b.port(i)}},
		}
		held, err := p.Allocate(t.Context(), req)
		if err != nil || held.Unmet != nil {
			t.Fatalf("allocate: %+v, %v", held, err)
		}
		services = append(services, provisioner.Desired{
			Owner: req.Owner, Addresses: held.Addresses, Nodes: nodes, Ports: []provisioner.ServicePort{{Port: req.Ports[0], NodePort: testNodePort}},
		})
	}
	ensure := func(nodes []provisioner.Node) error {
		var errs []error
		for _, s := range services {
			s.Nodes = nodes
			_, err := p.Ensure(t.Context(), s)
			errs = append(errs, err)
		}
		return errors.Join(errs...)
	}
	answered := func() error {
		var errs []error
		for _, s := range services {
			_, err := ask(t, s.Addresses[0], s.Ports[0].Port.Port)
			errs = append(errs, err)
		}
		return errors.Join(errs...)
	}
	// Of the commands of one turn: what it reads, an added server, the key, a server that goes.
	for i, after := range []int{1, 4, 7, 13} {
		if err := ensure(nodes[i%2:]); err != nil {
			t.Fatal(err)
		}
		testkit.Eventually(t, patience, "served", answered)
		cut.at(after)
		if err := ensure(nodes[1-i%2:][:1]); err == nil {
			t.Errorf("killed after %d commands: no error", after)
		}
		cut.at(0)
		b.run(t)
		if err := ensure(nodes); err != nil {
			t.Fatalf("killed after %d commands: %v", after, err)
		}
		testkit.Eventually(t, patience, fmt.Sprintf("served once it was killed after %d commands", after), answered)
	}
}

// cutting kills HAProxy ahead of a command.
type cutting struct {
	Runtime
	kill func()
	mu   sync.Mutex
	left int // 0: never
}

func (c *cutting) at(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.left = n
}

func (c *cutting) Do(ctx context.Context, command string) (string, error) {
	c.mu.Lock()
	if c.left > 0 {
		if c.left--; c.left == 0 {
			c.kill()
		}
	}
	c.mu.Unlock()
	return c.Runtime.Do(ctx, command)
}
