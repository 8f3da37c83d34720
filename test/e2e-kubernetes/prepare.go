// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"

	corev1 "k8s.io/api/core/v1"

	"github.com/causeway-lb/causeway/internal/lab"
	"github.com/causeway-lb/causeway/internal/lab/network"
)

// external are the addresses that the specs take for external IPs (RFC 5737,
// RFC 3849).
const external = "203.0.113.0/24,2001:db8::cb00:71fa/128"

// outside makes a machine behind the LAN's router, in other ranges than the nodes
// (RFC 5737, RFC 3849): specs tell by that whether an address was translated.
func outside(l *lab.Lab) (*network.Namespace, error) {
	router := l.Machine(lab.LAN)
	machine, err := network.New("outside")
	if err != nil {
		return nil, err
	}
	if err := network.Connect(network.End{Namespace: machine, Name: lab.Interface}, network.End{Namespace: router, Name: "outside"}); err != nil {
		return nil, err
	}
	if err := errors.Join(machine.Up(lab.Interface), router.Up("outside"), router.Sysctl("net/ipv4/ip_forward", "1"), router.Sysctl("net/ipv6/conf/all/forwarding", "1")); err != nil {
		return nil, err
	}
	for _, side := range []struct{ machine, router, all string }{
		{"198.51.100.2/24", "198.51.100.1/24", "0.0.0.0/0"}, {"2001:db8:0:2::2/64", "2001:db8:0:2::1/64", "::/0"},
	} {
		inside, gateway := netip.MustParsePrefix(side.machine), netip.MustParsePrefix(side.router)
		if err := errors.Join(machine.AddAddress(lab.Interface, inside), router.AddAddress("outside", gateway)); err != nil {
			return nil, err
		}
		if err := machine.AddRoute(netip.MustParsePrefix(side.all), gateway.Addr(), lab.Interface); err != nil {
			return nil, err
		}
	}
	return machine, nil
}

// prepare makes the cluster that the specs expect: nodes in three zones, Causeway
// in a proxy mode, a pool, and cluster DNS.
func prepare(ctx context.Context, l *lab.Lab, o options) error {
	for i, node := range l.Nodes() {
		zone := fmt.Sprintf("%s=zone-%c", corev1.LabelTopologyZone, 'a'+i%3)
		err := l.Wait(ctx, node.Name(), func(ctx context.Context) (bool, string, error) {
			_, err := l.Kubectl(ctx, nil, "label", "node", node.Name(), zone, "--overwrite")
			return err == nil, "", err
		})
		if err != nil {
			return err
		}
	}
	if err := l.Apply(ctx, "test/e2e-kubernetes/config"); err != nil {
		return err
	}
	patch := fmt.Sprintf(`{"spec":{"template":{"spec":{"containers":[{"name":"agent","args":["--mode=%s","--external-ip-ranges=%s","--localhost-node-ports"]}]}}}}`,
		o.mode, external)
	if _, err := l.Kubectl(ctx, nil, "-n", lab.SystemNamespace, "patch", "daemonset", "causeway-agent", "-p", patch); err != nil {
		return err
	}
	for _, command := range [][]string{
		{"rollout", "status", "-n", lab.SystemNamespace, "daemonset/causeway-agent", "--timeout=3m"},
		{"rollout", "status", "-n", lab.SystemNamespace, "deployment/causeway-controller", "--timeout=3m"},
	} {
		if _, err := l.Kubectl(ctx, nil, command...); err != nil {
			return err
		}
	}
	err := l.Wait(ctx, "the webhooks", func(ctx context.Context) (bool, string, error) {
		_, err := l.Kubectl(ctx, nil, "apply", "-f", filepath.Join(l.Setup.Source, "config", "samples", "go-http", "pool.yaml"))
		return err == nil, "", err
	})
	if err != nil {
		return err
	}
	if err := l.Apply(ctx, "config/samples/coredns"); err != nil {
		return err
	}
	return l.WaitDeployment(ctx, "kube-system", "coredns")
}
