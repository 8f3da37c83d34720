// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"path/filepath"

	corev1 "k8s.io/api/core/v1"

	"github.com/causeway-lb/causeway/internal/lab"
)

// external are the addresses that the specs take for external IPs (RFC 5737,
// RFC 3849).
const external = "203.0.113.0/24,2001:db8::cb00:71fa/128"

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
	if err := l.Apply(ctx, "config/overlays/lab"); err != nil {
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
